"""ViZDoom's episodes that run out of time: truncated, and their last picture is one of the game."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wm_rllib.environments.vizdoom_engine import TimeUp


class Doom(gym.Env[np.ndarray, int]):
    """Ends as ViZDoom's wrapper does: by death or by time, always terminated, and with a black picture."""

    observation_space = gym.spaces.Box(0, 255, (2, 2, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, *, truncates: bool):
        self._truncates = truncates

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._t = 0
        return self._picture(), {}

    def step(self, action: int) -> Any:
        self._t += 1
        ended = self._t == 3
        return np.zeros((2, 2, 3), np.uint8) if ended else self._picture(), 1.0, ended, ended and self._truncates, {}

    def _picture(self) -> np.ndarray:
        return np.full((2, 2, 3), 100 + self._t, np.uint8)


@pytest.mark.parametrize("truncates", [True, False])
def test_time_does_not_kill(truncates: bool):
    env = TimeUp(Doom(truncates=truncates))
    for _ in range(2):
        assert env.reset()[0][0, 0, 0] == 100
        assert [env.step(0)[2:4] for _ in range(2)] == [(False, False)] * 2
        picture, reward, terminated, truncated, _ = env.step(0)
        assert (terminated, truncated, reward) == (not truncates, truncates, 1.0)
        assert picture[0, 0, 0] == (102 if truncates else 0)
