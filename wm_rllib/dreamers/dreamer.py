"""Dreamers: actors that imagine trajectories inside the world model, beside the real-env workers."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.actor_manager import FaultAwareApply
from torch import Tensor

from wm_rllib.actors.failures import Failure
from wm_rllib.actors.heap import Heap
from wm_rllib.actors.parameter_server import ParameterClient
from wm_rllib.dreamers.starts import burned_in
from wm_rllib.logs import set_log_level
from wm_rllib.models.config import WorldModelConfig
from wm_rllib.models.dreaming import Dream, dream
from wm_rllib.models.precision import FLOAT32, dtype_of
from wm_rllib.models.world_model import WorldModel
from wm_rllib.rl_modules.policy_network import make_policy
from wm_rllib.seeding import seed_process

logger = logging.getLogger(__name__)

GPU_ERRORS: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
"""An illegal access, an ECC error and the like (not: no memory), of which a process does not recover; torch 2.8 on."""


@dataclass(frozen=True)
class DreamerSpec:
    """What a dreamer is built from: small, so that Ray keeps it inline and a restarted actor needs no other object."""

    world_model: WorldModelConfig
    policy: RLModuleSpec
    log_level: str
    num_threads: int
    device: str
    precision: str = FLOAT32


@dataclass(frozen=True)
class DreamRequest:
    """One order of imagined rows.

    Attributes:
        rows: For each learner, how many rows; every one of them will be valid.
        horizon: H.
        temperature: tau of M's mixture.
        max_disagreement: Where dreams are cut; see `dream`.
        exploration_bonus: What it is worth to try what M is unsure of; see `dream`.
        optimism: What it is worth to try what may turn out better than expected; see `dream`.
        starts_ref: Reference to at least as many start sequences as `num_lanes` says.
        first_start: Index of the first start that is this dreamer's.
        seed: Seed of this stage and dreamer, or None.
    """

    rows: list[int]
    horizon: int
    temperature: float
    max_disagreement: float | None
    exploration_bonus: float
    optimism: float
    starts_ref: ray.ObjectRef
    first_start: int
    seed: int | None

    @property
    def num_lanes(self) -> int:
        """Lanes of the dream: each learner's rows fill whole lanes, but for its last one."""
        return num_lanes(self.rows, self.horizon)


def num_lanes(rows: list[int], horizon: int) -> int:
    """Lanes needed for these rows, learner by learner."""
    return sum(-(-count // horizon) for count in rows)


@dataclass(frozen=True)
class Dreamed:
    """What a dreamer hands over: references and numbers only.

    Attributes:
        shard_refs: For each learner a reference to a list of blocks (dicts of arrays [B, H, ...]).
        rows: For each learner the number of rows in its blocks.
        num_segments: Separate imagined trajectories, for the mean realised horizon.
        num_cuts: Those that were cut because M was unsure.
        sequence: Record of the parameter server that both versions come from.
        world_model_version: V and M dreamed with.
        policy_version: C dreamed with.
        seconds: Time the dreamer worked.
    """

    shard_refs: list[ray.ObjectRef]
    rows: list[int]
    num_segments: int
    num_cuts: int
    sequence: int
    world_model_version: int
    policy_version: int
    seconds: float


@dataclass(frozen=True)
class NoWeights:
    """A restarted dreamer met a restarted, empty parameter server: the driver has to push again."""


class Dreamer(FaultAwareApply):
    """Holds copies of V, M and C, pulls newer ones before each dream, and returns references.

    An actor under RLlib's `FaultTolerantActorManager`, or a plain object when `num_dreamers` is 0.

    Args:
        spec: What to build.
        server: The parameter server, an actor handle or object.
    """

    def __init__(self, spec: DreamerSpec, server: Any):
        set_log_level(spec.log_level)
        if spec.num_threads:
            torch.set_num_threads(spec.num_threads)
        self._device = torch.device(spec.device)
        self._dtype = dtype_of(spec.precision)
        self._world_model = WorldModel(spec.world_model).eval().to(self._device)
        self._module = spec.policy.build().to(self._device)
        self._client = ParameterClient(server)
        self._heap = Heap()

    def dream(self, request: DreamRequest) -> Dreamed | Failure | NoWeights:
        """Pulls the newest weights and imagines exactly the rows asked for."""
        start = time.perf_counter()
        try:
            self._pull()
            if self._client.world_model_version < 0:
                return NoWeights()
            seed_process(request.seed)
            lanes = self._dream_lanes(request)
            shards = shard_lanes(lanes, request.rows, request.horizon)
            refs = [ray.put([to_arrays(block) for block in shard]) for shard in shards]
            self._heap.trim()
        except Exception as error:
            logger.exception("a dream failed")
            if self._device.type == "cuda" and isinstance(error, GPU_ERRORS):
                os._exit(1)  # after an error of the GPU's every call fails in this process; Ray starts another one
            return Failure.of(error)
        seconds = time.perf_counter() - start
        logger.debug("dreamed %s rows in %.3f s", request.rows, seconds)
        return Dreamed(
            shard_refs=refs,
            rows=request.rows,
            num_segments=sum(block.num_segments for shard in shards for block in shard),
            num_cuts=sum(block.num_cuts for shard in shards for block in shard),
            sequence=self._client.sequence,
            world_model_version=self._client.world_model_version,
            policy_version=self._client.policy_version,
            seconds=seconds,
        )

    def _pull(self) -> None:
        update = self._client.pull()
        if update is None:
            return
        if update.world_model is not None:
            self._world_model.load_state_dict({k: torch.as_tensor(v) for k, v in update.world_model.items()})
        if update.policy is not None:
            self._module.set_state(update.policy)

    def _dream_lanes(self, request: DreamRequest) -> Dream:
        arrays = ray.get(request.starts_ref)
        own = slice(request.first_start, request.first_start + request.num_lanes)
        with torch.no_grad():
            chosen = {name: array[own].copy() for name, array in arrays.items()}
            z, state = burned_in(self._world_model, chosen, self._dtype)
        policy = make_policy(self._module)
        how = request.horizon, request.temperature, request.max_disagreement
        bonus, optimism = request.exploration_bonus, request.optimism
        return dream(
            self._world_model,
            policy,
            z,
            state,
            *how,
            exploration_bonus=bonus,
            optimism=optimism,
            dtype=self._dtype,
        )


def shard_lanes(lanes: Dream, rows: list[int], horizon: int) -> list[list[Dream]]:
    """Cuts a dream into one list of rectangular blocks for each learner, with exactly rows[i] rows.

    The lane that a learner does not need whole becomes a block of its own: it is truncated early, and bootstrapped from
    the observation after its last row (contract 1: trim before GAE, keep the bootstrap observation).
    """
    shards, lane = [], 0
    for count in rows:
        whole, rest = divmod(count, horizon)
        shard = [_block(lanes, slice(lane, lane + whole), horizon)] if whole else []
        lane += whole
        if rest:
            shard.append(_block(lanes, slice(lane, lane + 1), rest))
            lane += 1
        shards.append(shard)
    return shards


def _block(lanes: Dream, which: slice, length: int) -> Dream:
    whole = length == lanes.rewards.shape[1]
    bootstrap = lanes.bootstrap_features[which] if whole else _features_after(lanes, which, length)
    return Dream(
        lanes.features[which, :length],
        lanes.actions[which, :length],
        lanes.action_logp[which, :length],
        lanes.action_dist_inputs[which, :length],
        lanes.rewards[which, :length],
        lanes.terminateds[which, :length],
        bootstrap,
        *_cuts_within(lanes, which, length),
    )


def _features_after(lanes: Dream, which: slice, length: int) -> Tensor:
    """What the policy would see after the first `length` steps; after a cut that is not what the lane went on with."""
    following = lanes.features[which, length]
    if lanes.truncateds is None or lanes.cut_features is None:
        return following
    last = torch.zeros_like(lanes.truncateds)
    last[which, length - 1] = True
    was_cut = lanes.truncateds[which, length - 1, None]
    return following.masked_scatter(was_cut, lanes.cut_features[last[lanes.truncateds]])


def _cuts_within(lanes: Dream, which: slice, length: int) -> tuple[Tensor, Tensor] | tuple[()]:
    """The cuts of some lanes up to some length; a cut after the last step is the truncation that is there anyway."""
    if lanes.truncateds is None or lanes.cut_features is None:
        return ()
    inside = torch.zeros_like(lanes.truncateds)
    inside[which, : length - 1] = True
    kept = inside[lanes.truncateds]
    return (lanes.truncateds & inside)[which, :length], lanes.cut_features[kept]


def to_arrays(block: Dream) -> dict[str, np.ndarray]:
    """A block under RLlib's column names, as arrays that Ray ships without copying."""
    columns = {
        Columns.OBS: block.features,
        Columns.ACTIONS: block.actions,
        Columns.ACTION_LOGP: block.action_logp,
        Columns.ACTION_DIST_INPUTS: block.action_dist_inputs,
        Columns.REWARDS: block.rewards,
        Columns.TERMINATEDS: block.terminateds,
        "bootstrap_obs": block.bootstrap_features,
    }
    if block.truncateds is not None and block.cut_features is not None:
        columns |= {Columns.TRUNCATEDS: block.truncateds, "cut_obs": block.cut_features}
    return {name: value.cpu().numpy() for name, value in columns.items()}
