"""Real episodes, windows of them, and what dreams promise from the same states."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from look_parts import agent, episodes
from test_evaluation import Uneven, length_of

from wm_rllib.acting.evaluation import make_vector_env
from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.look.episodes import Episode, places_every, play, policy_actor, random_actor, step_limit, windows_at
from wm_rllib.look.measuring import DREAMS_PER_START, NUM_TRACES, DreamSettings, measure

SETTINGS = DreamSettings(horizon=4, burn_in=2, temperature=1.0)


# Episodes


class ByTheClock:
    """Five actions in turn, as the environment of test_evaluation.py asks for."""

    def __init__(self) -> None:
        self.t = -1

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        self.t += 1
        return np.where(observations[:, 1] == 0, 0, self.t) % 5


@pytest.mark.parametrize("truncates", [False, True])
def test_each_lane_gives_its_first_episode(truncates: bool):
    env = make_vector_env(Uneven, 6, {"truncates": truncates})
    # Lanes that end early begin another episode, whose clock is not ours: only the first one's actions are checked.
    for one in env.envs:
        one.unwrapped.step = checked_once(one.unwrapped)
    found = play(env, ByTheClock(), agent(), seed=100)
    lengths = [length_of(100 + lane) for lane in range(6)]
    assert [len(episode) for episode in found] == lengths
    for episode, length in zip(found, lengths, strict=True):
        np.testing.assert_array_equal(episode.observations, [[length, t] for t in range(length + 1)])
        np.testing.assert_array_equal(episode.actions, np.arange(length) % 5)
        assert episode.rewards.tolist() == [length] * length
        assert episode.terminated is not truncates


def checked_once(env: Any) -> Any:
    """Its step; in later episodes any action will do."""
    step, first = env.step, True

    def stepped(action: int) -> Any:
        nonlocal first
        result = step(action if first else env.t % 5)
        first = first and not (result[2] or result[3])
        return result

    return stepped


def test_random_actions_are_the_seeds():
    env = make_vector_env("CartPole-v1", 3)
    policy = agent()
    one, again, other = (play(env, random_actor(env, seed), policy, 5) for seed in (1, 1, 2))
    assert [e.actions.tolist() for e in one] == [e.actions.tolist() for e in again]
    assert [e.actions.tolist() for e in one] != [e.actions.tolist() for e in other]
    env.close()


def test_the_policy_explores_with_a_memory_for_each_lane():
    env = make_vector_env("CartPole-v1", 3)
    policy = agent()
    found = play(env, policy_actor(policy, 3, explore=True), policy, 5)
    assert all(0 < episode.actions.mean() < 1 for episode in found)
    greedy = play(env, policy_actor(policy, 3, explore=False), policy, 5)
    for episode in greedy:
        policy.reset()
        assert [policy.compute_action(o) for o in episode.observations[:-1]] == episode.actions.tolist()
    env.close()


@pytest.mark.parametrize(
    ("env", "limit"), [("CartPole-v1", 500), (partial(gym.make, "CartPole-v1"), 500), (Uneven, None)]
)
def test_the_time_limit_is_the_environments(env: Any, limit: int | None):
    made = gym.vector.SyncVectorEnv([env] * 2) if isinstance(env, partial) else make_vector_env(env, 2)
    assert step_limit(made) == limit
    made.close()


# Windows


def test_windows_by_hand():
    (episode,) = episodes([5])
    windows = windows_at([(episode, 0), (episode, 3), (episode, 1)], burn_in=2, horizon=3)
    assert windows.mask.tolist() == [
        [False, False, True, True, True],
        [True, True, True, True, False],
        [False, True, True, True, True],
    ]
    assert windows.terminateds.tolist() == [[False] * 5, [False, False, False, True, False], [False] * 5]
    np.testing.assert_array_equal(windows.observations[0, 2:], episode.observations[:4])
    np.testing.assert_array_equal(windows.observations[1, :5], episode.observations[1:])
    np.testing.assert_array_equal(windows.actions[2, 1:], episode.actions[:4])
    np.testing.assert_array_equal(windows.rewards[1], [1, 1, 1, 1, 0])
    assert not windows_at([(dataclasses.replace(episode, terminated=False), 3)], 2, 3).terminateds.any()


def test_places_do_not_overlap():
    short, long = episodes([2, 7])
    assert places_every([short, long], 3) == [(short, 0), (long, 0), (long, 3), (long, 6)]


# Promises


def endless(policy: WorldModelPolicy, reward: float) -> WorldModelPolicy:
    """An agent whose dreams never end and pay a reward each step."""
    with torch.no_grad():
        last = policy.world_model.mdn_rnn.outcome_head[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([reward, 0.0, -50.0]))
    return policy


def test_promises_by_hand():
    played = [*episodes([6]), *episodes([3], terminated=False)]
    figures = measure(endless(agent(), 2.0), played, episodes([4]), SETTINGS, step_limit=10, seed=0)
    # Starts: steps 0 and 4 of the first, which ends by itself, and step 0 of the second, which was cut off after 3.
    assert figures.near.real.tolist() == [4.0, 2.0, 3.0]
    assert figures.near.dreamed.shape == (3, DREAMS_PER_START)
    np.testing.assert_allclose(figures.near.dreamed.mean(1), [8.0, 8.0, 6.0])
    assert figures.whole.real.tolist() == [6.0, 3.0]
    np.testing.assert_allclose(figures.whole.dreamed.mean(1), [20.0, 6.0])
    assert figures.near.gap == pytest.approx((4 + 6 + 3) / 3)
    assert (figures.near.steps, figures.whole.steps) == (4, 10)


def test_dreams_count_up_to_their_first_end():
    policy = endless(agent(), 2.0)
    with torch.no_grad():
        policy.world_model.mdn_rnn.outcome_head[-1].bias.copy_(torch.tensor([2.0, 7.0, 50.0]))
        policy.world_model.mdn_rnn.last_reward_scale.fill_(1.0)
    figures = measure(policy, episodes([6]), episodes([4]), SETTINGS, step_limit=None, seed=0)
    np.testing.assert_allclose(figures.near.dreamed, 7.0)
    assert figures.ends.expected_ends == pytest.approx(10.0)
    assert figures.ends.seen_ends == 2
    assert np.isfinite(figures.traces.dreamed[:, :2]).all() and np.isnan(figures.traces.dreamed[:, 2:]).all()


def test_figures_are_the_seeds():
    policy, played = agent(), episodes([6, 9])

    def measured(seed: int) -> tuple[Any, ...]:
        state = torch.random.get_rng_state()
        figures = measure(policy, played, episodes([4], seed=1), SETTINGS, step_limit=None, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return figures.near.dreamed.tolist(), figures.traces.dreamed.tolist(), figures.ends.predicted

    assert repr(measured(1)) == repr(measured(1)) != repr(measured(2))


def test_traces_are_of_one_real_stretch():
    played: list[Episode] = episodes([3, 12])
    figures = measure(agent(), played, episodes([4]), SETTINGS, step_limit=None, seed=0)
    np.testing.assert_array_equal(figures.traces.real, played[1].observations[6:11])
    assert figures.traces.expected.shape == (5, 4)
    assert figures.traces.dreamed.shape == (NUM_TRACES, 5, 4)
