"""Episodes played one at a time, as an agent meets them in use, with the time that each decision takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from wm_rllib.acting.evaluation import MAX_EPISODE_STEPS, GreedyPolicy
from wm_rllib.actors.threads import one_thread

AnyEnv = gym.Env[Any, Any]


@dataclass(frozen=True)
class Episode:
    """One episode: its undiscounted return, and the seconds that each of its decisions took."""

    total_reward: float
    decision_seconds: list[float]


@dataclass(frozen=True)
class DecisionTimes:
    """Milliseconds of one decision for one environment: median and 95th percentile over `count` decisions."""

    median_ms: float
    p95_ms: float
    count: int

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> DecisionTimes:
        """Of all decisions but the very first, in which an agent may copy weights and reserve memory."""
        seconds = [second for episode in episodes for second in episode.decision_seconds]
        milliseconds = 1e3 * np.array(seconds[1:] or seconds)
        return cls(float(np.median(milliseconds)), float(np.percentile(milliseconds, 95)), len(milliseconds))


def play_episode(policy: GreedyPolicy, env: AnyEnv, seed: int | None, max_steps: int = MAX_EPISODE_STEPS) -> Episode:
    """One episode on one thread, or its first `max_steps`, as there are environments in which none ends."""
    observation, _ = env.reset(seed=seed)
    state, total = policy.initial_state(1), 0.0
    seconds: list[float] = []
    with one_thread():
        while len(seconds) < max_steps:
            start = time.perf_counter()
            actions, state = policy.act(np.asarray(observation)[None], state)
            seconds.append(time.perf_counter() - start)
            observation, reward, terminated, truncated, _ = env.step(actions[0])
            total += float(reward)
            if terminated or truncated:
                break
    return Episode(total, seconds)


def time_decisions(policy: GreedyPolicy, env: AnyEnv, num_decisions: int, seed: int | None) -> DecisionTimes:
    """Plays until there are so many decisions, and times them."""
    episodes: list[Episode] = []
    missing = num_decisions
    while missing > 0:
        episodes.append(play_episode(policy, env, None if episodes else seed, missing))
        missing -= len(episodes[-1].decision_seconds)
    return DecisionTimes.of(episodes)
