"""CarRacing-v3 draws nothing that nobody sees: seven times as many actions a second at a frame skip of 4.

Gymnasium draws an observation in every frame, with all of the track, near or not; a frame takes 5 ms, of which the
physics is 0.06. Where an action is repeated over frames only the last one is seen. The pixels are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

Polygon = Sequence[tuple[float, float]]
LEAVE_OBSERVATIONS_ALONE = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
OBSERVATION = "state_pixels"
"""The mode in which CarRacing draws its observations."""


def seen_frames(env: gym.Env[Any, Any]) -> SeenFrames | None:
    """What draws the observations, if this is Gymnasium's CarRacing and no wrapper around it changes them."""
    while isinstance(env, LEAVE_OBSERVATIONS_ALONE):
        env = env.env
    is_car_racing = (type(env).__module__, type(env).__name__) == ("gymnasium.envs.box2d.car_racing", "CarRacing")
    return SeenFrames(env) if is_car_racing else None


class SeenFrames:
    """Takes over how a CarRacing draws.

    Args:
        env: The environment itself, without wrappers.
    """

    def __init__(self, env: Any):
        from gymnasium.envs.box2d import car_racing

        self._env, self._sizes = env, car_racing
        self._draw = env._render
        self._is_skipping, self._shown_return = False, 0.0
        self._road: list[tuple[Polygon, Any]] = []
        self._near_road = Near([])
        field, side = car_racing.PLAYFIELD, car_racing.GRASS_DIM
        self._field = [(field, field), (field, -field), (-field, -field), (-field, field)]
        corners = [(side * x, side * y) for x in range(-20, 20, 2) for y in range(-20, 20, 2)]
        self._grass = [[(x + side, y), (x, y), (x, y + side), (x + side, y + side)] for x, y in corners]
        self._near_grass = Near(self._grass)
        env._render, env._render_road = self._draw_unless_skipped, self._draw_road

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within it observations are not drawn: a step returns the last one that was."""
        self._is_skipping = True
        try:
            yield
        finally:
            self._is_skipping = False

    def observation(self) -> np.ndarray:
        """The observation [96, 96, 3] uint8 that the last step would have returned."""
        env, return_now = self._env, self._env.reward
        env.reward = self._shown_return
        env.state = self._draw(OBSERVATION)
        env.reward = return_now
        return env.state

    def _draw_unless_skipped(self, mode: str) -> Any:
        if not (self._is_skipping and mode == OBSERVATION):
            return self._draw(mode)
        self._shown_return = self._env.reward  # the picture has it as it was before this frame's cost
        return self._env.state

    def _draw_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        """As the environment's own `_render_road`, without what it would find to be out of sight."""
        env, view = self._env, (zoom, translation, angle)
        if self._road is not env.road_poly:  # another track
            self._road = env.road_poly
            self._near_road = Near([polygon for polygon, _ in self._road])
        margin, screen = self._sizes.MAX_SHAPE_DIM, (self._sizes.WINDOW_W, self._sizes.WINDOW_H)
        env._draw_colored_polygon(env.surf, self._field, env.bg_color, *view, clip=False)
        for index in self._near_grass.indices(*view, margin, screen):
            env._draw_colored_polygon(env.surf, self._grass[index], env.grass_color, *view)
        for index in self._near_road.indices(*view, margin, screen):
            polygon, color = self._road[index]
            env._draw_colored_polygon(env.surf, polygon, [int(part) for part in color], *view)


class Near:
    """Which of some polygons may be within sight.

    Args:
        polygons: Corners in the world's units.
    """

    def __init__(self, polygons: Sequence[Polygon]):
        centers = [np.mean(polygon, axis=0) for polygon in polygons]
        self._x, self._y = np.array(centers).reshape(-1, 2).T
        pairs = zip(polygons, centers, strict=True)
        self._radius = max((math.dist(corner, center) for polygon, center in pairs for corner in polygon), default=0.0)

    def indices(
        self, zoom: float, translation: tuple[float, float], angle: float, margin: float, screen: tuple[int, int]
    ) -> np.ndarray:
        """Those that have a corner within `margin` pixels of the screen, and perhaps some others, in their order."""
        margin += self._radius * zoom + 1
        cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
        x = self._x * cos - self._y * sin + translation[0]
        y = self._x * sin + self._y * cos + translation[1]
        inside = (-margin <= x) & (x <= screen[0] + margin) & (-margin <= y) & (y <= screen[1] + margin)
        return np.flatnonzero(inside)
