"""Greedy evaluation: whole episodes in a vector environment, every episode that was started counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]

logger = logging.getLogger(__name__)

MAX_LANES = 20
MAX_EPISODE_STEPS = 50_000
"""Of a greedy episode: without a time limit, one that stands still never ends. Atari's limit is 27,000 decisions."""

MAX_TRIES = 10
"""Of a round of episodes in environments that raise now and then."""


class GreedyPolicy(Protocol):
    """What an evaluation needs of an agent: `WorldModelPolicy`, or any other with this surface."""

    def initial_state(self, batch_size: int, /) -> Any:
        """The memory of B new episodes; None where the agent has none."""

    def act(self, observations: np.ndarray, state: Any, /) -> tuple[np.ndarray, Any]:
        """Greedy actions [B, ...] in env space for observations [B, *O], and the memory after them."""


@dataclass(frozen=True)
class EvaluationResult:
    """Undiscounted returns and lengths (env steps) of the episodes, in the order of their seeds."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Population standard deviation of the returns."""
        return float(np.std(self.returns))


def evaluate_in(
    env: VectorEnv,
    policy: GreedyPolicy,
    num_episodes: int,
    seed: int | None,
    remake: Callable[[], VectorEnv] | None = None,
) -> EvaluationResult:
    """Plays `num_episodes` greedy episodes in the lanes of `env`.

    All lanes are reset together and each plays one episode a round; what a lane does after its episode is ignored.
    Counting the first `num_episodes` to finish, as RLlib's `sample(num_episodes=)` does, would favour short ones. An
    episode that goes on after `MAX_EPISODE_STEPS` counts as it is then, with a warning.

    Args:
        env: Vector environment; it is left in need of a reset.
        policy: The agent.
        num_episodes: Episodes to count.
        seed: Seeds the resets, a number a round; None draws fresh ones.
        remake: Makes the vector environment anew where it has raised; the round is played again then, up to
            `MAX_TRIES` times. None: the first error is raised.
    """
    returns: list[float] = []
    lengths: list[int] = []
    for round_index in range(-(-num_episodes // env.num_envs)):
        round_seed = None if seed is None else (seed + round_index * env.num_envs) % 2**31
        count = min(env.num_envs, num_episodes - len(returns))
        env, round_returns, round_lengths = _play_round_again(env, policy, count, round_seed, remake)
        returns += round_returns
        lengths += round_lengths
    return EvaluationResult(returns, lengths)


def _play_round_again(
    env: VectorEnv,
    policy: GreedyPolicy,
    count: int,
    seed: int | None,
    remake: Callable[[], VectorEnv] | None,
) -> tuple[VectorEnv, list[float], list[int]]:
    """A round, in the vector environment in which it came to its end; see `evaluate_in`."""
    for _ in range(MAX_TRIES - 1):
        if remake is None:
            break
        try:
            return env, *_play_round(env, policy, count, seed)
        except Exception as error:
            logger.warning("an environment raised in an evaluation, and is made anew: %r", error)
            env = remake()
    return env, *_play_round(env, policy, count, seed)


def _play_round(env: VectorEnv, policy: GreedyPolicy, count: int, seed: int | None) -> tuple[list[float], list[int]]:
    """One episode in each of the first `count` lanes."""
    observations, _ = env.reset(seed=seed)
    state = policy.initial_state(env.num_envs)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    playing = np.arange(env.num_envs) < count
    for _ in range(MAX_EPISODE_STEPS):
        if not playing.any():
            break
        actions, state = policy.act(observations, state)
        observations, rewards, terminateds, truncateds, _ = env.step(actions)
        returns[playing] += rewards[playing]
        lengths[playing] += 1
        playing &= ~(terminateds | truncateds)
    if playing.any():
        logger.warning(
            "%d of %d greedy episodes did not end in %d steps, and count as they are. Fix: give the environment a time "
            "limit (gymnasium.wrappers.TimeLimit).",
            playing.sum(),
            count,
            MAX_EPISODE_STEPS,
        )
    return returns[:count].tolist(), lengths[:count].tolist()


def make_vector_env(env: str | Any, num_envs: int, env_config: dict[str, Any] | None = None) -> VectorEnv:
    """A synchronous vector of a Gymnasium id, or of a class or function that takes the env config."""
    if isinstance(env, str):
        return gym.make_vec(env, num_envs=num_envs, vectorization_mode="sync", **(env_config or {}))
    return gym.vector.SyncVectorEnv([lambda: env(env_config or {})] * num_envs)


def evaluate_policy(
    policy: GreedyPolicy,
    env: str | Any,
    num_episodes: int,
    seed: int | None,
    env_config: dict[str, Any] | None = None,
) -> EvaluationResult:
    """Evaluates an agent in an environment made for the purpose; see `evaluate_in`."""
    vector_env = make_vector_env(env, min(num_episodes, MAX_LANES), env_config)
    try:
        return evaluate_in(vector_env, policy, num_episodes, seed)
    finally:
        vector_env.close()
