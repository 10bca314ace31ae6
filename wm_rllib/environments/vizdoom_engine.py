"""ViZDoom's engine, started where its files are in nobody's way."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym


class TimeUp(gym.Wrapper[Any, Any, Any, Any]):
    """ViZDoom's environment, whose episodes that run out of time are truncated and no more.

    Its own are both truncated and terminated then, and their last picture is black as after a death: M would learn that
    time kills, and C's bootstrap value would be that of a black screen. Here the last picture is the one before it.
    """

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        """The environment's own."""
        self._newest, info = self.env.reset(**how)
        return self._newest, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """The environment's own, but for the end by time."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated and truncated:
            return self._newest, reward, False, True, info
        self._newest = observation
        return observation, reward, terminated, truncated, info


def engine_settings(env_config: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a ViZDoom environment with which it leaves the working directory alone.

    The engine makes a folder `_vizdoom` where it is started (and fails where another one makes it at that moment), and
    starts with the settings that the last one left in `_vizdoom.ini`, on which a run would depend. It is started in a
    temporary folder instead, without settings.

    Args:
        env_config: What the user gives; it wins.
    """
    if os.name != "posix":
        return dict(env_config)
    absolute = {
        key: os.path.abspath(value)
        for key, value in env_config.items()
        if key.endswith("_path") and isinstance(value, str) and os.path.exists(value)
    }
    return {"vizdoom_path": _launcher(), "doom_config_path": os.devnull, **env_config, **absolute}


@functools.cache
def _launcher() -> str:
    """Return a program that starts the engine in a folder of its own, once for each process."""
    spec = importlib.util.find_spec("vizdoom")
    assert spec is not None and spec.origin is not None
    engine = Path(spec.origin).parent / "vizdoom"
    folder = Path(tempfile.mkdtemp(prefix="wm_rllib-vizdoom-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "_vizdoom").mkdir()
    launcher = folder / "vizdoom"
    # An engine does not notice that its environment's process was killed, nor end at SIGTERM: the system ends it.
    with_parent = "setpriv --pdeathsig KILL " if shutil.which("setpriv") else ""
    start = f'cd {shlex.quote(str(folder))} && exec {with_parent}{shlex.quote(str(engine))} "$@"'
    launcher.write_text(f"#!/bin/sh\n{start}\n")
    launcher.chmod(0o700)
    return str(launcher)
