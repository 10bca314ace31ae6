"""One reset and one step of an environment, held against what Gymnasium's interface promises.

Gymnasium's own `PassiveEnvChecker` is around environments from `gymnasium.make` alone, and mostly warns.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from wm_rllib.environments.errors import EnvironmentContractError

SEED = 0


def probe(env: Any, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Resets an environment, takes a random step, and looks at what comes.

    Args:
        env: A single one, which is thrown away afterwards.
        observation_space: Of the environment; a Box.
        action_space: The same.

    Raises:
        EnvironmentContractError: Something is not as it should be.
        Exception: Whatever the environment raises itself.
    """
    result = _reset(env)
    if not isinstance(result, tuple) or len(result) != 2:
        raise _broken("reset() must return (observation, info)", _shape_of(result), "return observation, {}")
    _check_observation("reset()", result[0], observation_space)
    stepped = env.step(action_space.sample())
    if not isinstance(stepped, tuple) or len(stepped) != 5:
        raise _broken(
            "step() must return (observation, reward, terminated, truncated, info)",
            _shape_of(stepped),
            "Gymnasium's interface; environments of the old gym need a wrapper (shimmy)",
        )
    observation, reward = stepped[:2]
    _check_observation("step()", observation, observation_space)
    if np.ndim(reward) or not np.issubdtype(np.asarray(reward).dtype, np.number):
        raise _broken("step() must return a number as reward", _shape_of(reward), "return float(reward)")


def _reset(env: Any) -> Any:
    try:
        return env.reset(seed=SEED, options=None)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise _broken(
            "reset() must take seed and options", str(error), "def reset(self, *, seed=None, options=None)"
        ) from error


def _check_observation(where: str, observation: Any, space: gym.Space[Any]) -> None:
    try:
        found = np.asarray(observation)
    except ValueError as error:
        raise _broken(f"{where} must give an observation in {space}", str(error), "one array") from error
    if found.shape != space.shape:
        raise _broken(
            f"{where} must give observations of the shape of the space, {space.shape}",
            f"one of shape {found.shape}",
            "reshape the observation, or correct observation_space",
        )
    if space.dtype is not None and not np.can_cast(found.dtype, space.dtype, "same_kind"):
        raise _broken(
            f"{where} must give observations of the space's {space.dtype}",
            f"one of {found.dtype}",
            f"observation.astype({space.dtype}), or correct observation_space",
        )


def _shape_of(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"{type(value).__name__} of shape {np.shape(value)}" if isinstance(value, np.ndarray) else repr(value)[:80]


def _broken(rule: str, found: str, fix: str) -> EnvironmentContractError:
    return EnvironmentContractError(f"the environment's {rule}, and gave {found}. Fix: {fix}.")
