"""Environments by name: a Gymnasium id, or the import path `package.module:EnvClass`. Nothing here imports Ray.

What an id stands for is made ready for V here (`environments/pixels.py`), wherever it is to be played.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym

from wm_rllib.environments.extras import extra_of
from wm_rllib.environments.pixels import AS_IT_IS, PixelError, PixelSettings, preprocess
from wm_rllib.environments.vizdoom_engine import TimeUp, engine_settings
from wm_rllib.settings.settings import SettingError

AnyEnv = gym.Env[Any, Any]


def _class_at(env_id: str) -> Callable[..., AnyEnv] | None:
    """Return the class at an import path, or None if the text is none or names no class."""
    module_name, colon, name = env_id.partition(":")
    if not colon:
        return None
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # of "./file.py" and of ""
        raise SettingError(
            f"environment {env_id!r}: cannot import {module_name} ({error}). "
            'Fix: write "package.module:EnvClass" with a module on the Python path.'
        ) from None
    found = getattr(module, name, None)
    return found if callable(found) else None


def _unknown(env_id: str, reason: str) -> SettingError:
    name = env_id.rpartition(":")[2]
    by_lower = {known.lower(): known for known in gym.registry}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    known = ", ".join(by_lower[match] for match in near)
    hint = f"did you mean {known}?" if near else 'give a Gymnasium id or "package.module:EnvClass".'
    return SettingError(f"environment {env_id!r} does not exist ({reason}). Fix: {hint}")


def find_env(env_id: str) -> Callable[..., AnyEnv]:
    """Return what makes the environment from its keyword arguments.

    Raises:
        SettingError: If there is no such environment (suggests near ones), or an extra that it needs is not installed.
    """
    extra = extra_of(env_id)
    if extra is not None:
        extra.require(env_id)
    env_class = _class_at(env_id)
    if env_class is not None:
        return env_class
    name = env_id.rpartition(":")[2]  # importing `package:EnvId-v0` has registered EnvId-v0
    try:
        spec = gym.spec(name)
    except gym.error.Error as error:
        raise _unknown(env_id, str(error).rstrip(".").split(".")[0]) from None
    if str(spec.entry_point).startswith("vizdoom."):
        return lambda **kwargs: TimeUp(gym.make(name, **engine_settings(kwargs)))
    return lambda **kwargs: gym.make(name, **kwargs)


def gymnasium_makes(env_id: str) -> bool:
    """Whether `gymnasium.make` does for this id what `make_env` does, in any process."""
    extra = extra_of(env_id)
    return env_id in gym.registry and (extra is None or extra.registers is None)


def make_env(env_id: str, env_config: Mapping[str, Any] | None = None, pixels: PixelSettings = AS_IT_IS) -> AnyEnv:
    """Return a new environment.

    Args:
        env_id: Gymnasium id, or import path of the class.
        env_config: Keyword arguments of the environment.
        pixels: How to make it ready for V.

    Raises:
        SettingError: If it does not exist, lacks a dependency, does not take these arguments, or has no images to which
            the pixel settings could be applied.
    """
    env = _make_raw(env_id, env_config)
    try:
        return preprocess(env, pixels)
    except PixelError as error:
        _close(env)
        raise SettingError(f"environment {env_id!r}: {error}") from None


def vector_maker(env_id: str, pixels: PixelSettings = AS_IT_IS) -> str | Callable[..., AnyEnv]:
    """Return what `wm_rllib.acting.evaluation.make_vector_env` takes for this environment."""
    if gymnasium_makes(env_id) and pixels.is_neutral:
        return env_id
    return partial(make_env, env_id, pixels=pixels)


def _make_raw(env_id: str, env_config: Mapping[str, Any] | None) -> AnyEnv:
    make, arguments = find_env(env_id), dict(env_config or {})
    try:
        return make(**arguments)
    except (gym.error.Error, ImportError) as error:  # a missing dependency, most often
        raise SettingError(f"environment {env_id!r} cannot be made: {error}") from None
    except (TypeError, ValueError, AssertionError) as error:
        if not arguments:  # a fault of the environment's own: its traceback says where
            raise
        raise SettingError(
            f"environment {env_id!r} does not take env.config {arguments}: {error}. Fix: correct env.config."
        ) from error


def env_spaces(
    env_id: str, env_config: Mapping[str, Any] | None = None, pixels: PixelSettings = AS_IT_IS
) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Return the observation space and the action space of an environment, made for that and closed again."""
    env = make_env(env_id, env_config, pixels)
    try:
        return env.observation_space, env.action_space
    except AttributeError as error:
        raise SettingError(f"environment {env_id!r} is no Gymnasium environment: {error}.") from None
    finally:
        _close(env)


def _close(env: Any) -> None:
    """Closes what should be an environment."""
    close = getattr(env, "close", None)
    if close is not None:
        close()
