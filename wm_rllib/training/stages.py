"""The stages of an iteration: sample, fit, dream, update, publish. Each counts and times itself in the report."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wm_rllib.actors.calling import call
from wm_rllib.dreamers.dreamer import Dreamed
from wm_rllib.dreamers.orders import DreamHarvest, DreamOrder
from wm_rllib.dreamers.pool import DreamerPool
from wm_rllib.env_runners.collection import RealExperience, Sampling, combine
from wm_rllib.env_runners.env_runner import Collected, CollectRequest
from wm_rllib.learners.calls import update_policy
from wm_rllib.mixing import AUTO, ratio_at, real_rows_for, rounds_at, split_evenly, split_within, value_at
from wm_rllib.models.conv_vae import is_image
from wm_rllib.models.parts import WHOLE
from wm_rllib.replay.client import ReplayClient
from wm_rllib.seeding import stage_seed
from wm_rllib.training.fit_calls import FIT, FITTED_BY, Instalment, fit_in_calls
from wm_rllib.training.frame_fit import encode_replay, fit_on_frames
from wm_rllib.training.iteration import IterationReport
from wm_rllib.training.publishing import Publisher
from wm_rllib.training.state import Phase, TrainingState

logger = logging.getLogger(__name__)

LAST_ROUND_LR = 0.3
"""C's learning rate in an iteration's last dream round, as a fraction of that in its first: what acts next in the real
environment, and is evaluated, should be a settled policy."""


LARGELY_REAL = 0.5
"""Ratio up to which real rows are at least as many as imagined ones."""


@dataclass(frozen=True)
class Parts:
    """What the stages work on; all of it belongs to the algorithm.

    Attributes:
        env_runners: RLlib's group.
        learners: RLlib's group.
        server: The parameter server.
        replay: Where raw experience goes.
        publisher: What others pull from.
        pool: The dreamers; None where no dream is ever asked for.
        state: Counters, versions, phase.
        metrics: RLlib's metrics of the algorithm.
    """

    env_runners: EnvRunnerGroup
    learners: LearnerGroup
    server: Any
    replay: ReplayClient
    publisher: Publisher
    pool: DreamerPool | None
    state: TrainingState
    metrics: MetricsLogger


class Stages:
    """What an iteration consists of, in whatever order.

    Args:
        config: The algorithm's config.
        parts: What to work on.
        iteration: The number of the current iteration.

    Attributes:
        sampling: Requests to the env runners.
        report: This iteration's figures; a new one an iteration.
        is_cut_short: Whether the iteration is to end after its present stage; see `WorldModelPPO.cut_short`.
    """

    def __init__(self, config: Any, parts: Parts, iteration: Callable[[], int]):
        self.config, self.parts = config, parts
        self.sampling = Sampling(parts.env_runners, config.num_envs_per_env_runner, parts.server)
        self.report = IterationReport()
        self._iteration = iteration
        self.is_cut_short = False

    @property
    def num_shards(self) -> int:
        """Parts that experience and dreams come in: one for each learner."""
        return max(1, self.config.num_learners)

    @property
    def timesteps(self) -> dict[str, int]:
        """What schedules of learning rates and of the entropy's weight go by.

        Real steps; imagined rows where C learns in the dream alone, since real steps stand still then.
        """
        state = self.parts.state
        steps = state.num_env_steps if self.config.online_collection else state.num_imagined_rows
        return {NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}

    def seed(self, stage: str) -> int | None:
        """Seed of a stage of this iteration, or None."""
        return None if self.config.seed is None else stage_seed(self.config.seed, self._iteration(), stage)

    # --- real experience ---------------------------------------------------------------------------------------------

    def collect(self, num_timesteps: int, *, random_actions: bool) -> RealExperience:
        """Real env steps: features to the learners, raw experience to the replay."""
        request = self.request(num_timesteps, random_actions=random_actions)
        with self.report.stage("sample"):
            parts = self.sampling.sample(request, self.config.sample_timeout_s)
        real = self.take_in(parts)
        self.count(real)
        return real

    def request(self, num_timesteps: int, *, random_actions: bool, stage: str = "collect") -> CollectRequest:
        """What is asked of the env runners; `stage` is what its seed is named after."""
        return CollectRequest(
            num_timesteps=num_timesteps,
            num_shards=self.num_shards,
            random_actions=random_actions,
            seed=self.seed(stage),
            random_hold=self.config.random_hold,
            greedy_fraction=self.config.greedy_fraction if self._learns_from_dreams() else 0.0,
        )

    def _learns_from_dreams(self) -> bool:
        """Whether imagined rows will outnumber real ones, as far as can be told beforehand.

        Where they do not, real rows must be what PPO takes them for: actions drawn from the policy.
        """
        ratio, state = self.config.imagination_ratio, self.parts.state
        bounds = self.config.gate_bounds
        return (state.gate.ratio(bounds) if ratio == AUTO else ratio_at(ratio, state.num_env_steps)) > LARGELY_REAL

    def take_in(self, parts: list[Collected]) -> RealExperience:
        """Adds what env runners delivered to the replay and to the real steps so far."""
        state = self.parts.state
        ages = [state.staleness(part.sequence) for part in parts]
        real = combine(parts, self.num_shards, ages, self.config.max_staleness)
        with self.report.stage("replay"):
            if real.raw_refs:
                self.report.add_replay(call(self.parts.replay.service, "add", real.raw_refs))
        self.parts.metrics.aggregate(real.metrics, key=ENV_RUNNER_RESULTS)
        state.num_env_steps += real.num_timesteps
        state.num_ends += sum(part.num_ends for part in parts)
        if state.phase is Phase.MIXED:
            state.pending_updates += self.config.updates_per_step * real.num_timesteps
        return real

    def count(self, real: RealExperience) -> None:
        """Counts real experience in the report of the iteration that learns from it."""
        self.report.num_env_steps += real.num_timesteps
        self.report.staleness = max(self.report.staleness, real.staleness)
        self.report.dropped_rows += real.dropped_rows

    # --- the world model ---------------------------------------------------------------------------------------------

    def fit_owed(self) -> None:
        """Fits V and M as often as the env steps taken in since the last fit ask for, and publishes them."""
        state = self.parts.state
        updates = int(state.pending_updates)
        if updates and not self.is_cut_short:
            state.pending_updates -= updates
            self.fit(updates)

    def fit(self, num_updates: int, instalment: Instalment | None = None) -> bool:
        """Gradient steps on V and M, and their publication when all are done; none if both are frozen.

        Returns:
            Whether all are done; without an instalment to be kept to they are.
        """
        config, state = self.config, self.parts.state
        if config.frozen_parts == WHOLE:
            return True
        if self.takes_frames:
            fit_on_frames(self, num_updates, num_updates, config.vae_online_lr_fraction)
            self.publish_world_model()
            return True
        size, length = config.sequence_batch_size, config.sequence_length

        def sequences(count: int) -> Any:
            return call(self.parts.replay.service, "fit_batches", count, size, length, self.num_shards)

        update_bytes = size * (length + 1) * self.observation_bytes
        vae_lr_scale = 1.0 if state.phase is Phase.PRETRAIN else config.vae_online_lr_fraction
        if not fit_in_calls(self, FIT, num_updates, size, update_bytes, sequences, vae_lr_scale, instalment):
            return False
        self.publish_world_model()
        return True

    def take_fit_results(self, results: list[Any], num_updates: int, name: str, *, begins: bool) -> None:
        """Counts gradient steps of the fit of this name, and keeps their losses."""
        self.parts.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.report.fit_updates += num_updates
        self.report.take_fit_losses(self.parts.metrics, FITTED_BY[name], begins=begins)

    def publish_world_model(self) -> None:
        """V and M as the learners have them now, as a new version."""
        self.parts.state.world_model_version += 1
        self.publish(policy=False, world_model=True)

    @functools.cached_property
    def observation_space(self) -> Any:
        """Of one environment."""
        return self.parts.env_runners.get_spaces()[INPUT_ENV_SINGLE_SPACES][0]

    @property
    def takes_frames(self) -> bool:
        """Whether observations are images."""
        return is_image(self.observation_space.shape)

    @property
    def observation_bytes(self) -> int:
        """Of one observation."""
        space = self.observation_space
        return math.prod(space.shape) * space.dtype.itemsize

    # --- dreams and updates ------------------------------------------------------------------------------------------

    def dream(self, rows: int, horizon: int, round_index: int) -> DreamHarvest:
        """Imagined rows, dreamed now."""
        assert self.parts.pool is not None
        order = self.dream_order(rows, horizon)  # has a stage of its own on images
        with self.report.stage("dream"):
            harvest = self.parts.pool.dream(
                order,
                lambda attempt: self.seed(f"dream/{round_index}/{attempt}"),
                self.is_stale,
            )
        self.report.dropped_rows += harvest.dropped_rows
        return harvest

    def dream_order(self, rows: int, horizon: int) -> DreamOrder:
        """What is asked of the dreamers, who start from what the replay holds: images are given their latents first."""
        if self.takes_frames:
            encode_replay(self)
        steps = self.parts.state.num_env_steps
        return DreamOrder(
            rows=split_evenly(rows, self.num_shards),
            horizon=horizon,
            temperature=self.config.temperature,
            max_disagreement=self.config.max_disagreement,
            exploration_bonus=value_at(self.config.exploration_bonus, steps),
            optimism=value_at(self.config.optimism, steps),
            burn_in=self.config.burn_in,
        )

    def is_stale(self, part: Dreamed) -> bool:
        """Whether a dream is too old to learn from."""
        age = self.parts.state.staleness(part.sequence)
        self.report.staleness = max(self.report.staleness, age)
        return age > self.config.max_staleness

    @property
    def num_rounds(self) -> int:
        """Of dreams and updates, as of the real steps so far."""
        state = self.parts.state
        return rounds_at(self.config.num_dream_rounds, state.num_env_steps, seen_an_end=state.num_ends > 0)

    def update(
        self,
        real: RealExperience,
        harvest: DreamHarvest | None,
        rows: int,
        ratio: float,
        round_index: int,
        num_rounds: int,
    ) -> None:
        """The exact merge, one PPO update, and its publication.

        Args:
            real: Real experience of this iteration.
            harvest: What was dreamed, if anything was asked for.
            rows: Imagined rows that were asked for.
            ratio: The imagined fraction.
            round_index: Number of the dream round.
            num_rounds: Of this iteration.
        """
        real_rows = [0] * self.num_shards if ratio == 1.0 else real.rows
        dreamed = harvest.rows if harvest else [0] * self.num_shards
        # Dreams that were ordered ahead may be more than these real rows ask for.
        imagined = [min(have, want) for have, want in zip(dreamed, split_evenly(rows, self.num_shards), strict=True)]
        self.report.surplus_rows += sum(dreamed) - sum(imagined)
        keep: list[int] | None = None
        if sum(imagined) < rows:
            # Fewer dreams came than asked for: the real part shrinks with them, so that the ratio holds.
            keep = real_rows = split_within(real_rows_for(sum(imagined), ratio), real_rows)
        if not sum(real_rows) + sum(imagined) or (rows and not sum(imagined)):
            self.report.updates_skipped += 1
            logger.warning("update skipped: %d real and %d imagined rows", sum(real_rows), sum(imagined))
            return
        with self.report.stage("update"):
            results = update_policy(
                self.parts.learners,
                episodes_refs=self._episode_refs(real if sum(real_rows) else None),
                imagined=harvest.shard_refs if harvest else None,
                ratio=ratio if sum(imagined) else None,
                real_rows=keep,
                rows=list(zip(real_rows, imagined, strict=True)),
                lr_scale=1.0 - (1.0 - LAST_ROUND_LR) * round_index / max(1, num_rounds - 1),
                timesteps=self.timesteps,
                seed=self.seed(f"update/{round_index}"),
            )
        self.parts.metrics.aggregate(results, key=LEARNER_RESULTS)
        if not self.report.add_update(self.parts.metrics, self.num_shards, harvest):
            logger.warning("update skipped: all rows of a learner were lost with their processes")
            return
        self.parts.state.num_imagined_rows += self.report.rounds[-1][1]
        lost = sum(real_rows) + sum(imagined) - sum(self.report.rounds[-1])
        if lost:
            self.report.lost_rows += lost
            logger.warning("an update lost %d rows with the process that had them; its ratio is kept", lost)
        self.report.take_update_losses(self.parts.metrics)
        self.parts.state.policy_version += 1
        self.publish(policy=True, world_model=False)

    def _episode_refs(self, real: RealExperience | None) -> list[ray.ObjectRef]:
        """References for `LearnerGroup.update`: equally many for each learner, learner 0's first."""
        if real is None:
            return [ray.put([])] * self.num_shards
        return [ref for refs in real.shard_refs for ref in refs]

    def publish(self, *, policy: bool, world_model: bool) -> None:
        """What the learners have now, under a new sequence number."""
        with self.report.stage("publish"):
            self.parts.publisher.publish(self._iteration(), policy=policy, world_model=world_model)
