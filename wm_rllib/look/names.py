"""What the numbers of an observation are called, where Gymnasium's documentation says so."""

from __future__ import annotations

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "CartPole": ("cart position", "cart velocity", "pole angle", "pole angular velocity"),
    "Pendulum": ("cos angle", "sin angle", "angular velocity"),
    "Acrobot": ("cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "velocity 1", "velocity 2"),
    "MountainCar": ("position", "velocity"),
    "MountainCarContinuous": ("position", "velocity"),
    "LunarLander": ("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg", "right leg"),
    "LunarLanderContinuous": (
        "x",
        "y",
        "x velocity",
        "y velocity",
        "angle",
        "angular velocity",
        "left leg",
        "right leg",
    ),
}
"""By Gymnasium id without its version."""

ACTIONS: dict[str, tuple[str, ...]] = {
    "CartPole": ("left", "right"),
    "Acrobot": ("torque -1", "none", "torque +1"),
    "MountainCar": ("left", "none", "right"),
    "LunarLander": ("none", "left engine", "main engine", "right engine"),
}


def dimension_names(env_id: str, size: int) -> list[str]:
    """Names of the `size` numbers of an observation; numbered where they are not known."""
    names = DIMENSIONS.get(_name(env_id), ())
    return list(names) if len(names) == size else [f"observation {index}" for index in range(size)]


def action_names(env_id: str, size: int) -> list[str]:
    """Names of the `size` actions of a discrete space; numbered where they are not known."""
    names = ACTIONS.get(_name(env_id), ())
    return list(names) if len(names) == size else [f"action {index}" for index in range(size)]


def _name(env_id: str) -> str:
    return env_id.rpartition("/")[2].rpartition("-v")[0]
