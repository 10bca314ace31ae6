"""Real episodes for the dream to be held against, and windows cut from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wm_rllib.acting.evaluation import VectorEnv
from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.models.judging import Windows

MAX_STEPS = 2000
"""Of an episode whose environment sets no limit: an agent may go on for ever."""


@dataclass(frozen=True)
class Episode:
    """One real episode of T steps: observations [T + 1, *O], actions [T, ...] in policy space, rewards [T].

    terminated: whether it ended by itself rather than by a limit.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        """T."""
        return len(self.rewards)


Actor = Callable[[np.ndarray], np.ndarray]
"""Observations [B, *O] of all lanes to their actions [B, ...] in env space."""


def policy_actor(policy: WorldModelPolicy, lanes: int, *, explore: bool) -> Actor:
    """The agent in B new episodes."""
    state = policy.initial_state(lanes)

    def act(observations: np.ndarray) -> np.ndarray:
        nonlocal state
        actions, state = policy.act(observations, state, explore=explore)
        return actions

    return act


def random_actor(env: VectorEnv, seed: int) -> Actor:
    """Actions drawn from the space."""
    env.action_space.seed(seed)
    return lambda _: np.asarray(env.action_space.sample())


def play(env: VectorEnv, actor: Actor, policy: WorldModelPolicy, seed: int) -> list[Episode]:
    """One episode in each lane; what a lane does after its episode is ignored.

    Args:
        env: Vector environment; it is left in need of a reset.
        actor: Chooses actions.
        policy: Knows how actions are written in policy space.
        seed: Of the resets.
    """
    observations, _ = env.reset(seed=seed)
    seen, acted = [observations.copy()], []
    paid: list[np.ndarray] = []
    lengths = np.zeros(env.num_envs, int)
    terminated, playing = np.zeros(env.num_envs, bool), np.ones(env.num_envs, bool)
    while playing.any() and len(paid) < MAX_STEPS:
        actions = actor(observations)
        observations, rewards, terminateds, truncateds, _ = env.step(actions)
        seen.append(observations.copy())
        acted.append(policy.world_model.codec.env_to_policy(np.asarray(actions)))
        paid.append(np.asarray(rewards, np.float32))
        lengths[playing] += 1
        terminated |= playing & terminateds
        playing &= ~(terminateds | truncateds)
    columns = np.stack(seen, 1), np.stack(acted, 1), np.stack(paid, 1)
    return [
        Episode(columns[0][lane, : n + 1], columns[1][lane, :n], columns[2][lane, :n], bool(terminated[lane]))
        for lane, n in enumerate(lengths)
    ]


def windows_at(places: Iterable[tuple[Episode, int]], burn_in: int, horizon: int) -> Windows:
    """Windows of the steps after each place (an episode and a step in it), with the real steps before it.

    Args:
        places: Where the windows' H steps begin; each before its episode's end.
        burn_in: L, at most.
        horizon: H, at most.
    """
    rows = [_row(episode, t, burn_in, horizon) for episode, t in places]
    columns = (torch.as_tensor(np.stack(column)) for column in zip(*rows, strict=True))
    return Windows(burn_in, *columns)


def _row(episode: Episode, t: int, burn_in: int, horizon: int) -> Sequence[np.ndarray]:
    start, stop = max(0, t - burn_in), min(t + horizon, len(episode))
    at = burn_in - (t - start)
    end, width = at + stop - start, burn_in + horizon

    def column(values: np.ndarray, size: int, count: int) -> np.ndarray:
        out = np.zeros((size, *values.shape[1:]), values.dtype)
        out[at : at + count] = values[start : start + count]
        return out

    count = stop - start
    terminateds, mask = np.zeros(width, bool), np.zeros(width, bool)
    mask[at:end] = True
    terminateds[end - 1] = episode.terminated and stop == len(episode)
    observations = column(episode.observations, width + 1, count + 1)
    return observations, column(episode.actions, width, count), column(episode.rewards, width, count), terminateds, mask


def places_every(episodes: Sequence[Episode], gap: int) -> list[tuple[Episode, int]]:
    """Steps at this distance in each episode, its first one included: windows of that length do not overlap."""
    return [(episode, t) for episode in episodes for t in range(0, len(episode), gap)]


def step_limit(env: VectorEnv) -> int | None:
    """The time limit of the environments, if they have one."""
    # A vector that was made of a function has no specification of its own.
    specs = (getattr(one, "spec", None) for one in (env, *getattr(env, "envs", ())))
    limits = (getattr(spec, "max_episode_steps", None) for spec in specs)
    return next((limit for limit in limits if limit is not None), None)
