"""Environments that need an optional extra of this package: whether it is installed, and what makes their ids known."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import gymnasium as gym

from wm_rllib.settings.settings import SettingError


@dataclass(frozen=True)
class Extra:
    """An optional extra.

    Attributes:
        name: What pip calls it.
        modules: What must be importable, and what a person calls it.
        entry_point: How the entry points of its environments begin, where Gymnasium knows their ids anyway.
        ids: How the ids of its environments begin, where only `registers` makes them known.
        registers: Module whose import does that.
    """

    name: str
    modules: dict[str, str]
    entry_point: str | None = None
    ids: str | None = None
    registers: str | None = None

    def has(self, env_id: str) -> bool:
        """Whether an environment is one of its own."""
        module, _, name = env_id.rpartition(":")
        if self.ids is not None and self.registers is not None:
            return name.startswith(self.ids) or module.partition(".")[0] == self.registers.partition(".")[0]
        return any(str(spec.entry_point).startswith(f"{self.entry_point}.") for spec in _specs(name))

    def require(self, env_id: str) -> None:
        """Makes its environments known to Gymnasium.

        Raises:
            SettingError: It is not installed; the message has the environment and the command.
        """
        for module, called in self.modules.items():
            if importlib.util.find_spec(module) is None:
                raise SettingError(
                    f"environment {env_id!r} needs {called}, which is not installed. "
                    f"Fix: pip install 'wm_rllib[{self.name}]'"
                )
        if self.registers is not None:
            importlib.import_module(self.registers)


EXTRAS = (
    Extra("box2d", {"Box2D": "Box2D", "pygame": "pygame"}, entry_point="gymnasium.envs.box2d"),
    Extra("mujoco", {"mujoco": "MuJoCo", "imageio": "imageio"}, entry_point="gymnasium.envs.mujoco"),
    Extra("atari", {"ale_py": "ale-py"}, ids="ALE/", registers="ale_py"),
    Extra(
        "vizdoom",
        {"vizdoom": "ViZDoom", "pygame": "pygame"},
        ids="Vizdoom",
        registers="vizdoom.gymnasium_wrapper",
    ),
)


def extra_of(env_id: str) -> Extra | None:
    """Return the extra that an environment needs, or None if it needs none."""
    return next((extra for extra in EXTRAS if extra.has(env_id)), None)


def _specs(name: str) -> list[gym.envs.registration.EnvSpec]:
    """Return what Gymnasium knows of a name, with its version or without."""
    return [spec for spec_id, spec in gym.registry.items() if name in (spec_id, spec_id.rpartition("-v")[0])]
