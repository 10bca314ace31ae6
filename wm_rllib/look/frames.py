"""Pictures of observations: by the environment's own renderer, by the observation itself, or as traces.

A Gymnasium environment draws its own state, so that a dreamed observation has to become that state first. `setters.py`
knows how for some environments. Whether what it knows fits the environment at hand, wrappers included, is tried: the
state of a real observation, put in its own place, must not change the picture. All others are drawn as traces of their
numbers over time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from wm_rllib.environments.names import AnyEnv, make_env
from wm_rllib.look.drawing import PathPlot
from wm_rllib.look.setters import setter_for
from wm_rllib.settings.settings import SettingError

logger = logging.getLogger(__name__)

Frame = np.ndarray
"""[height, width, 3] uint8."""

SAME_PICTURE = 1.0
"""Mean difference, of 255, that a state set to itself may make: edges are drawn a pixel further when it is rounded."""


class Painter(Protocol):
    """Draws the last of the observations [T + 1, *O] that led there."""

    def paint(self, path: np.ndarray) -> Frame:
        """One picture."""

    def close(self) -> None:
        """Gives back what the pictures needed."""


class StatePainter:
    """The environment's own pictures.

    Args:
        env: Renders rgb_array; it was reset.
        set_state: Puts the unwrapped environment where an observation says.
    """

    def __init__(self, env: AnyEnv, set_state: Callable[[Any, np.ndarray], None]):
        self._env, self._set_state = env, set_state

    def paint(self, path: np.ndarray) -> Frame:
        """See `Painter`."""
        self._set_state(self._env.unwrapped, path[-1])
        return np.asarray(self._env.render(), np.uint8)

    def close(self) -> None:
        """See `Painter`."""
        self._env.close()  # type: ignore[no-untyped-call]


class PixelPainter:
    """Observations that are pictures."""

    def paint(self, path: np.ndarray) -> Frame:
        """See `Painter`."""
        picture = np.clip(path[-1], 0, 255).astype(np.uint8)
        return np.repeat(picture, 3, -1) if picture.shape[-1] == 1 else picture

    def close(self) -> None:
        """See `Painter`."""


class TracePainter:
    """The numbers of an observation over time.

    Args:
        low: [O], the least that axes show.
        high: [O], the most.
        steps: What the time axis reaches to, at least.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, steps: int):
        self._low, self._high, self._steps = low, high, steps
        self._plot: PathPlot | None = None

    def paint(self, path: np.ndarray) -> Frame:
        """See `Painter`."""
        numbers = path.reshape(len(path), -1)
        if self._plot is None:
            self._plot = PathPlot(numbers.shape[1], self._low, self._high, self._steps)
        return self._plot.frame(numbers)

    def close(self) -> None:
        """See `Painter`."""


def make_state_painter(env_id: str, env_config: Mapping[str, Any]) -> StatePainter | None:
    """The environment's own renderer, or None if it has none that a dreamed observation can be put into."""
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(driver, "dummy")  # pictures in memory: no window, and no search for a sound card
    try:
        env = make_env(env_id, {**env_config, "render_mode": "rgb_array"})
    except SettingError:  # it does not take a render mode, or what it needs to draw is not installed
        return None
    try:
        observation, _ = env.reset(seed=0)
        set_state = setter_for(env.unwrapped)
        if set_state is not None and _fits(env, set_state, np.asarray(observation)):
            return StatePainter(env, set_state)
    except Exception as error:
        # A renderer may fail in many ways (no display, no font), and there are traces instead.
        logger.warning("%s cannot be drawn: %s", env_id, error)
    env.close()  # type: ignore[no-untyped-call]
    return None


def _fits(env: AnyEnv, set_state: Callable[[Any, np.ndarray], None], observation: np.ndarray) -> bool:
    """Whether setting the state that the environment is in leaves the picture as it is."""
    if observation.shape != env.unwrapped.observation_space.shape:
        return False
    before = np.asarray(env.render(), float)
    set_state(env.unwrapped, observation)
    return float(np.abs(np.asarray(env.render(), float) - before).mean()) < SAME_PICTURE


def make_painter(env_id: str, env_config: Mapping[str, Any], observations: np.ndarray, steps: int) -> Painter:
    """The best way to draw observations of this environment.

    Args:
        env_id: As in training.
        env_config: As in training.
        observations: What is to be drawn [N, *O], or much like it, for the axes of traces.
        steps: How long the traces may become.
    """
    if observations.ndim == 4 and observations.shape[-1] in (1, 3):
        return PixelPainter()
    painter = make_state_painter(env_id, env_config)
    if painter is not None:
        return painter
    flat = observations.reshape(len(observations), -1)
    return TracePainter(np.nanmin(flat, 0), np.nanmax(flat, 0), steps)
