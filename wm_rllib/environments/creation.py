"""What RLlib makes environments from: those of the config, ready for V, in env runners and evaluation runners alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import ENV_CREATOR, _global_registry

from wm_rllib.environments.names import gymnasium_makes, make_env
from wm_rllib.environments.pixels import PixelSettings, preprocess
from wm_rllib.environments.replayable import ReplayableEnv

EnvCreator = Callable[[Any], Any]

ONE_BY_ONE = (gym.VectorizeMode.SYNC, gym.VectorizeMode.ASYNC)
"""How vectors are made whose environments are also made alone; others need not be able to."""

NO_MULTI_AGENT = "multi-agent environments are not supported: WorldModelPPO has one policy and one world model."


def env_creator(env: Any, config: Any) -> EnvCreator:
    """Return a function from an env config to one environment.

    Args:
        env: What `config.environment` was given.
        config: A `WorldModelPPOConfig`.
    """
    make = partial(make_env, env) if _is_id(env) else Algorithm._get_env_id_and_creator(env, config)[1]
    settings = config.pixel_settings
    return make if env is None or settings.is_neutral else partial(_make_preprocessed, make, settings)


def env_for_runners(env: Any, config: Any) -> Any:
    """Return what RLlib's env runner is to take for `env`: the same, unless it could not make that itself."""
    if env is None or (config.pixel_settings.is_neutral and not (_is_id(env) and not gymnasium_makes(env))):
        return env
    return env_creator(env, config)


def replayable_env(env: Any, config: Any) -> EnvCreator | None:
    """The same, of environments that remember how they came to where they are."""
    return None if env is None else partial(_make_replayable, env_creator(env, config))


def _is_id(env: Any) -> bool:
    """Whether `make_env` is to find it: neither registered with Ray nor RLlib's form of a path, "package.EnvClass"."""
    return isinstance(env, str) and not _global_registry.contains(ENV_CREATOR, env) and (":" in env or "." not in env)


def _make_preprocessed(make: EnvCreator, settings: PixelSettings, env_config: Any) -> Any:
    return preprocess(make(env_config), settings)


def _make_replayable(make: EnvCreator, env_config: Any) -> ReplayableEnv:
    return ReplayableEnv(make(env_config))
