"""Greedy evaluation counts every episode it starts, once, however long it is."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wm_rllib.acting.evaluation import MAX_LANES, evaluate_in, evaluate_policy, make_vector_env

LENGTHS = (1, 2, 40)


class Uneven(gym.Env[np.ndarray, int]):
    """Its seed chooses the length; each step's reward is the length, so that long episodes are good ones."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(5)
    started = 0

    def __init__(self, config: dict[str, Any] | None = None):
        self.truncates = bool(config and config.get("truncates"))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = int(self.np_random.choice(LENGTHS))
        self.t = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action == self.t % 5, "an action of another lane or time"
        self.t += 1
        done = self.t == self.length
        return self._observation(), float(self.length), done and not self.truncates, done and self.truncates, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.length, self.t], np.float32)


class ByTheClock:
    """Acts by how many observations each lane has seen, so that a memory not reset shows."""

    def initial_state(self, lanes: int) -> np.ndarray:
        return np.zeros(lanes, int)

    def act(self, observations: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A lane whose episode is over goes on in the next one; what happens there must not count.
        return np.where(observations[:, 1] == 0, 0, state) % 5, np.where(observations[:, 1] == 0, 0, state) + 1


def length_of(seed: int) -> int:
    """The episode's length by Gymnasium's own seeding."""
    env = Uneven()
    env.reset(seed=seed)
    return env.length


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize(("num_episodes", "lanes"), [(1, 1), (7, 7), (10, 4), (3, 8), (25, 1)])
def test_each_started_episode_is_counted_once(num_episodes: int, lanes: int, truncates: bool):
    env = make_vector_env(Uneven, lanes, {"truncates": truncates})
    result = evaluate_in(env, ByTheClock(), num_episodes, seed=100)
    expected = [length_of(100 + episode) for episode in range(num_episodes)]
    assert result.lengths == expected
    assert result.returns == [length**2 for length in expected]
    assert result.mean == pytest.approx(np.mean([length**2 for length in expected]))
    assert result.std == pytest.approx(np.std([length**2 for length in expected]))


class RaisesNowAndThen(Uneven):
    """In the steps with these numbers, counted over all instances."""

    steps, raises = 0, (7, 30)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        type(self).steps += 1
        if self.steps in self.raises:
            raise OSError("the valve is stuck")
        return super().step(action)


def test_rounds_in_which_an_environment_raised_are_played_again(monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(RaisesNowAndThen, "steps", 0)
    monkeypatch.setattr(RaisesNowAndThen, "raises", (7, 30))

    def remake() -> Any:
        made.append(make_vector_env(RaisesNowAndThen, 4))
        return made[-1]

    result = evaluate_in(remake(), ByTheClock(), 10, 100, remake)
    assert result.lengths == [length_of(100 + episode) for episode in range(10)] and len(made) == 3
    with pytest.raises(OSError, match="the valve is stuck"):
        monkeypatch.setattr(RaisesNowAndThen, "steps", 0)
        evaluate_in(remake(), ByTheClock(), 10, 100)
    monkeypatch.setattr(RaisesNowAndThen, "raises", range(10_000))
    with pytest.raises(OSError, match="the valve is stuck"):
        evaluate_in(remake(), ByTheClock(), 10, 100, remake)


def test_mean_is_unbiased():
    result = evaluate_policy(ByTheClock(), Uneven, 600, seed=0)
    truth = np.mean([length**2 for length in LENGTHS])
    error = np.std([length**2 for length in LENGTHS]) / np.sqrt(600)
    assert abs(result.mean - truth) < 4 * error


def test_seeds_repeat_and_differ():
    one, again, other = (evaluate_policy(ByTheClock(), Uneven, 30, seed=seed).lengths for seed in (1, 1, 50))
    assert one == again
    assert one != other


def test_without_a_seed_episodes_are_fresh():
    assert (
        evaluate_policy(ByTheClock(), Uneven, 40, seed=None).lengths
        != evaluate_policy(ByTheClock(), Uneven, 40, seed=None).lengths
    )


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31 - MAX_LANES])
def test_the_largest_seeds_work(seed: int):
    assert len(evaluate_policy(ByTheClock(), Uneven, 45, seed=seed).returns) == 45


@pytest.mark.parametrize(("num_episodes", "lanes"), [(3, 8), (9, 8)])
def test_nobody_waits_for_a_lane_that_does_not_count(monkeypatch: pytest.MonkeyPatch, num_episodes: int, lanes: int):
    """The last round's other lanes would never end."""

    class First(Uneven):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            observation, info = super().reset(seed=seed)
            self.length = 2 if seed is None or seed < 100 + num_episodes else 10**9
            return observation, info

    monkeypatch.setattr("wm_rllib.acting.evaluation.MAX_EPISODE_STEPS", 10**9)
    assert (
        evaluate_in(make_vector_env(First, lanes), ByTheClock(), num_episodes, seed=100).lengths == [2] * num_episodes
    )


def test_an_episode_without_end_counts_as_it_is_and_it_is_said(monkeypatch, caplog):
    monkeypatch.setattr("wm_rllib.acting.evaluation.MAX_EPISODE_STEPS", 5)
    result = evaluate_in(make_vector_env(Uneven, 6), ByTheClock(), 6, seed=100)
    expected = [length_of(100 + episode) for episode in range(6)]
    assert result.lengths == [min(5, length) for length in expected]
    assert result.returns == [length * min(5, length) for length in expected]
    assert 0 < expected.count(40) < 6
    assert f"{expected.count(40)} of 6 greedy episodes did not end in 5 steps" in caplog.text


def test_environments_by_name():
    env = make_vector_env("CartPole-v1", 3, {"sutton_barto_reward": True})
    assert env.num_envs == 3
    assert env.envs[0].unwrapped._sutton_barto_reward
    env.close()
