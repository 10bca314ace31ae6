"""How to put an environment where an observation says, so that its renderer draws what was dreamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

StateSetter = Callable[[Any, np.ndarray], None]
"""Takes the unwrapped environment and an observation [*O]."""


def _set_state(env: Any, observation: np.ndarray) -> None:
    """CartPole, MountainCar: the observation is the state."""
    env.state = np.asarray(observation, np.float64)


def _set_pendulum(env: Any, observation: np.ndarray) -> None:
    cosine, sine, velocity = observation
    env.state = np.array([np.arctan2(sine, cosine), velocity], np.float64)
    env.last_u = None  # the arrow of the torque, which an observation does not say


def _set_acrobot(env: Any, observation: np.ndarray) -> None:
    cosine1, sine1, cosine2, sine2, *velocities = observation
    env.state = np.array([np.arctan2(sine1, cosine1), np.arctan2(sine2, cosine2), *velocities], np.float64)


def _set_lunar_lander(env: Any, observation: np.ndarray) -> None:
    """Moves the lander, legs along with it; flames are not part of an observation."""
    from gymnasium.envs.box2d.lunar_lander import LEG_DOWN, SCALE, VIEWPORT_H, VIEWPORT_W

    lander, (x, y), angle = env.lander, observation[:2].astype(float), float(observation[4])
    half_width, half_height = VIEWPORT_W / SCALE / 2, VIEWPORT_H / SCALE / 2
    goal = np.array([x * half_width + half_width, y * half_height + env.helipad_y + LEG_DOWN / SCALE])
    turn = angle - lander.angle
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    before = np.array(lander.position)
    for leg in env.legs:
        leg.position = tuple((goal + rotation @ (np.array(leg.position) - before)).tolist())
        leg.angle += turn
    lander.position, lander.angle = tuple(goal.tolist()), angle


SETTERS: dict[str, StateSetter] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleEnv": _set_state,
    "gymnasium.envs.classic_control.mountain_car:MountainCarEnv": _set_state,
    "gymnasium.envs.classic_control.continuous_mountain_car:Continuous_MountainCarEnv": _set_state,
    "gymnasium.envs.classic_control.pendulum:PendulumEnv": _set_pendulum,
    "gymnasium.envs.classic_control.acrobot:AcrobotEnv": _set_acrobot,
    "gymnasium.envs.box2d.lunar_lander:LunarLander": _set_lunar_lander,
}
"""By class, its subclasses included. Add your own: SETTERS["package.module:EnvClass"] = function."""


def setter_for(env: Any) -> StateSetter | None:
    """The function for an unwrapped environment, or None."""
    names = (f"{kind.__module__}:{kind.__qualname__}" for kind in type(env).__mro__)
    return next((SETTERS[name] for name in names if name in SETTERS), None)
