"""The figures of trust: what a checkpoint's dream says of fresh real episodes, and what happened in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.look.episodes import Episode, places_every, windows_at
from wm_rllib.models.dreaming import dream
from wm_rllib.models.judging import Windows, expected_path
from wm_rllib.models.stepping import Place, Stepper
from wm_rllib.models.trust import (
    Calibration,
    OpenLoop,
    Traversal,
    calibrate,
    end_probabilities,
    open_loop_errors,
    traverse,
)
from wm_rllib.models.world_model import WorldModel
from wm_rllib.rl_modules.policy_network import make_policy

DREAMS_PER_START = 8
MAX_STARTS = 256
NUM_TRACES = 5
"""Dreams that are drawn beside a real stretch."""


@dataclass(frozen=True)
class DreamSettings:
    """How a run dreams.

    Attributes:
        horizon: Longest dream, in steps.
        burn_in: Real steps that set h before it.
        temperature: tau of M's mixture.
    """

    horizon: int
    burn_in: int
    temperature: float


@dataclass(frozen=True)
class Promise:
    """Undiscounted rewards from N real start states: what was paid, and what dreams of the same policy promise.

    Attributes:
        steps: Longest stretch that is summed.
        real: [N].
        dreamed: [N, K], K dreams from each start.
    """

    steps: int
    real: np.ndarray
    dreamed: np.ndarray

    @property
    def gap(self) -> float:
        """Mean promised less mean paid."""
        return float((self.dreamed.mean(1) - self.real).mean())

    @property
    def gap_error(self) -> float:
        """Standard error of the gap; infinite with a single start."""
        if len(self.real) < 2:
            return math.inf
        return float((self.dreamed.mean(1) - self.real).std(ddof=1) / math.sqrt(len(self.real)))

    @property
    def scale(self) -> float:
        """What a gap is compared with: the mean of what was paid, or its spread where that is larger."""
        return float(max(abs(self.real.mean()), self.real.std(), 1e-9))


@dataclass(frozen=True)
class Traces:
    """One real stretch, and dreams of it under the same actions: observations in the environment's units.

    Attributes:
        real: [T + 1, *O].
        expected: [T + 1, *O], M's expectation fed back.
        dreamed: [NUM_TRACES, T + 1, *O]; NaN after a dream's end.
    """

    real: np.ndarray
    expected: np.ndarray
    dreamed: np.ndarray


@dataclass(frozen=True)
class TrustFigures:
    """All of it.

    Attributes:
        settings: How it was dreamed.
        num_episodes: Fresh episodes of the exploring policy, and as many of random actions.
        on_policy: Open-loop errors on the policy's episodes.
        off_policy: The same on the random ones.
        ends: Calibration of ends on all of them.
        near: Promise over the run's horizon from states along the policy's episodes.
        whole: Promise over whole episodes, up to the environment's time limit.
        traces: One stretch.
        traversal: What V's latents stand for.
    """

    settings: DreamSettings
    num_episodes: int
    on_policy: OpenLoop
    off_policy: OpenLoop
    ends: Calibration
    near: Promise
    whole: Promise
    traces: Traces
    traversal: Traversal


@torch.no_grad()
def measure(
    policy: WorldModelPolicy,
    played: Sequence[Episode],
    wandered: Sequence[Episode],
    settings: DreamSettings,
    *,
    step_limit: int | None,
    seed: int,
) -> TrustFigures:
    """Measures a dream against fresh real episodes.

    Args:
        policy: V, M and C.
        played: Episodes of the exploring policy, as dreams are made with it.
        wandered: Episodes of random actions.
        settings: How to dream.
        step_limit: The environment's time limit, where it has one.
        seed: Of the dreams; torch's global generator is as it was afterwards.
    """
    world_model, length = policy.world_model, (settings.burn_in, settings.horizon)
    near = _spread_out(places_every(played, settings.horizon))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        on_policy = windows_at(near, *length)
        off_policy = windows_at(_spread_out(places_every(wandered, settings.horizon)), *length)
        starts = [(episode, 0) for episode in played]
        whole = windows_at(starts, 0, max(step_limit or 0, *(len(episode) for episode in played)))
        observations = torch.as_tensor(np.concatenate([episode.observations for episode in (*played, *wandered)]))
        return TrustFigures(
            settings=settings,
            num_episodes=len(played),
            on_policy=open_loop_errors(world_model, on_policy),
            off_policy=open_loop_errors(world_model, off_policy),
            ends=_ends(world_model, (*played, *wandered), settings),
            near=_promise(policy, on_policy, settings),
            whole=_promise(policy, whole, settings),
            traces=_traces(world_model, *_longest_place(played, settings), settings, seed),
            traversal=traverse(world_model, observations),
        )


def _spread_out(places: list[tuple[Episode, int]]) -> list[tuple[Episode, int]]:
    """At most `MAX_STARTS` of them, evenly."""
    return places[:: -(-len(places) // MAX_STARTS)]


def _ends(world_model: WorldModel, episodes: Sequence[Episode], settings: DreamSettings) -> Calibration:
    whole = windows_at([(episode, 0) for episode in episodes], 0, max(len(episode) for episode in episodes))
    return calibrate(*end_probabilities(world_model, whole, settings.temperature))


@torch.no_grad()
def _promise(policy: WorldModelPolicy, windows: Windows, settings: DreamSettings) -> Promise:
    """Rewards up to the first end; starts whose real stretch was cut off by a time limit dream no longer than it."""
    length = windows.burn_in
    valid = windows.mask[:, length:]
    real = torch.where(valid, windows.rewards[:, length:], torch.zeros(())).sum(1)
    z, state = windows.start(policy.world_model)
    # A real episode that ended by itself says nothing of how long a dream may be; one that was cut off does.
    cut_off = ~windows.terminateds[:, length:].any(1)
    limits = torch.where(cut_off, valid.sum(1), torch.full_like(valid.sum(1), windows.horizon))
    sums = []
    for _ in range(DREAMS_PER_START):
        dreams = dream(policy.world_model, make_policy(policy.module), z, state, windows.horizon, settings.temperature)
        sums.append(_rewards_up_to(dreams.rewards, dreams.terminateds, limits))
    return Promise(windows.horizon, real.numpy(), torch.stack(sums, 1).numpy())


def _rewards_up_to(rewards: Tensor, terminateds: Tensor, limits: Tensor) -> Tensor:
    """Sums [N] of rewards [N, H] up to the first end and no more than limits [N] of them."""
    before = terminateds.cumsum(1) - terminateds.long()
    counts = (before == 0) & (torch.arange(rewards.shape[1]) < limits[:, None])
    return torch.where(counts, rewards, torch.zeros(())).sum(1)


def _longest_place(episodes: Sequence[Episode], settings: DreamSettings) -> tuple[Episode, int]:
    """The middle of the first of the longest episodes, if a whole horizon follows it; else its beginning."""
    episode = max(episodes, key=len)
    middle = len(episode) // 2
    return (episode, middle) if middle + settings.horizon <= len(episode) else (episode, 0)


def _traces(world_model: WorldModel, episode: Episode, t: int, settings: DreamSettings, seed: int) -> Traces:
    window = windows_at([(episode, t)], settings.burn_in, min(settings.horizon, len(episode) - t))
    length = window.burn_in
    z, (h, c) = window.start(world_model)
    path, _ = expected_path(world_model, window)
    lanes = Stepper(
        world_model,
        Place(z.repeat(NUM_TRACES, 1), (h.repeat(NUM_TRACES, 1), c.repeat(NUM_TRACES, 1))),
        seed,
    )
    seen, alive = [lanes.observations], torch.ones(NUM_TRACES, dtype=torch.bool)
    for action in window.actions[0, length:]:
        step = lanes.step(action.repeat(NUM_TRACES, *[1] * action.ndim), settings.temperature)
        missing = torch.full_like(seen[0], math.nan)
        seen.append(torch.where(alive.view(-1, *[1] * (missing.ndim - 1)), lanes.observations, missing))
        alive &= ~step.terminated
    expected = torch.cat([z[:, None], path], 1)
    return Traces(
        real=window.observations[0, length:].numpy(),
        expected=world_model.vae.decode(expected)[0].numpy(),
        dreamed=torch.stack(seen, 1).numpy(),
    )
