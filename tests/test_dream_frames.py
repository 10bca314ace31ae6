"""Dreamed states are drawn as the environment draws them; what cannot be drawn that way is drawn as traces."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wm_rllib.look.frames import PixelPainter, StatePainter, TracePainter, make_painter, make_state_painter
from wm_rllib.look.pictures import cut_height

ENVS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
needs_box2d = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="Box2D is not installed")


class Scaled(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole with observations in other units, of the same shape."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(gym.make("CartPole-v1", render_mode=render_mode))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return 50.0 * observation


class Blind(gym.Env[np.ndarray, int]):
    """It cannot be drawn."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2, np.float32), {}


def after(env: gym.Env[Any, Any], steps: int, seed: int) -> np.ndarray:
    """An observation of some random steps later."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not (terminated or truncated)
    return observation


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("env_id", [*ENVS, pytest.param("LunarLander-v3", marks=needs_box2d)])
def test_a_state_is_drawn_as_the_environment_draws_it(env_id: str):
    painter = make_state_painter(env_id, {})
    assert painter is not None
    env = gym.make(env_id, render_mode="rgb_array")
    drawn, real = [], []
    for steps in (1, 8):
        # LunarLander's ground is the seed's, and the painter's is that of seed 0.
        observation = after(env, steps, seed=0)
        if hasattr(env.unwrapped, "last_u"):
            env.unwrapped.last_u = None  # the arrow of the torque is not in an observation
        if hasattr(env.unwrapped, "particles"):
            env.unwrapped._clean_particles(True)  # nor are flames
        real.append(env.render())
        drawn.append(painter.paint(observation[None]))
        assert difference(drawn[-1], real[-1]) < 0.3
    assert difference(drawn[0], drawn[1]) > 3 * max(difference(*pair) for pair in zip(drawn, real, strict=True))
    env.close()
    painter.close()


@pytest.mark.parametrize("env_id", ["test_dream_frames:Scaled", "test_dream_frames:Blind"])
def test_what_does_not_fit_is_drawn_as_traces(env_id: str):
    assert make_state_painter(env_id, {}) is None
    painter = make_painter(env_id, {}, np.array([[0.0, -1.0], [1.0, 1.0]]), 10)
    assert isinstance(painter, TracePainter)
    flat, steep = painter.paint(np.zeros((6, 2))), painter.paint(np.linspace([0, 0], [1, 1], 6))
    assert flat.shape == steep.shape == (300, 400, 3) and flat.dtype == np.uint8
    assert difference(flat, steep) > 0


def test_observations_that_are_pictures_are_shown():
    picture = np.full((1, 4, 5, 3), 300.0)
    picture[0, 0, 0] = (-4.0, 20.6, 255.0)
    painter = make_painter("CartPole-v1", {}, picture, 10)
    assert isinstance(painter, PixelPainter)
    assert painter.paint(picture)[0, 0].tolist() == [0, 20, 255]
    assert painter.paint(picture[..., :1]).shape == (4, 5, 3)


def test_cartpole_is_drawn_by_itself():
    painter = make_painter("CartPole-v1", {}, np.zeros((3, 4)), 10)
    assert isinstance(painter, StatePainter)
    painter.close()


def test_frames_are_cut_to_what_any_of_them_shows():
    frames = [np.full((100, 10, 3), 255, np.uint8) for _ in range(2)]
    frames[0][40, 2], frames[1][60, 3] = 0, 0
    cut = cut_height(frames, margin=5)
    assert [frame.shape for frame in cut] == [(31, 10, 3)] * 2
    assert (cut[0][5, 2] == 0).all() and (cut[1][25, 3] == 0).all()
    assert cut_height([frames[0][:10]])[0].shape == (10, 10, 3)


def test_traces_are_drawn_anew_for_each_frame_and_say_what_they_leave_out():
    low, high, path = np.full(12, -1.0), np.full(12, 1.0), np.linspace(-1.0, 1.0, 12 * 30).reshape(30, 12)
    painter = TracePainter(low, high, 20)
    frames = [painter.paint(path[: count + 1]) for count in (0, 10, 29)]
    assert all(frame.shape == (300, 400, 3) and frame.dtype == np.uint8 for frame in frames)
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    # The same path again is the same picture, whatever was drawn in between, and that of a new painter's second frame.
    assert np.array_equal(painter.paint(path[:11]), frames[1])
    assert painter._plot is not None and painter._plot._figure.get_suptitle() == "8 of 12 numbers"
