"""The environment, looked at before any actor starts: one clear error in place of an actor's traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from wm_rllib.models.conv_vae import is_image
from wm_rllib.pixels import PixelError

logger = logging.getLogger(__name__)

ONE_BY_ONE = (gym.VectorizeMode.SYNC, gym.VectorizeMode.ASYNC)
"""How vectors are made whose environments are also made alone; others need not be able to."""

NO_MULTI_AGENT = "multi-agent environments are not supported: WorldModelPPO has one policy and one world model."


def check_environment(config: Any, make_env: Callable[[EnvContext], Any]) -> None:
    """Makes the environment once, and raises unless this algorithm can learn it.

    One that this process cannot make (a head node may lack its packages) is left to remote env runners.

    Args:
        config: A `WorldModelPPOConfig`.
        make_env: RLlib's creator of the environment.

    Raises:
        ValueError: It has several agents, or spaces that are not supported, or pixel settings do not fit it.
        Exception: Whatever making it raised, where the only env runner is in this process.
    """
    try:
        env = make_env(EnvContext(config.env_config, worker_index=0))
    except PixelError:
        raise
    except Exception as error:
        if not config.num_env_runners and gym.VectorizeMode(config.gym_env_vectorize_mode) in ONE_BY_ONE:
            raise
        logger.info("the environment was not checked, since it cannot be made here: %s", error)
        return
    try:
        if isinstance(env, MultiAgentEnv):
            raise ValueError(NO_MULTI_AGENT)
        spaces = (config.observation_space or env.observation_space, config.action_space or env.action_space)
    finally:
        env.close()
    if config.overlap and is_image(spaces[0].shape or ()) and config.vae_online_lr_fraction:
        raise ValueError(
            "overlap = True orders dreams ahead from latents of images, and vae_online_lr_fraction = "
            f"{config.vae_online_lr_fraction} has V change them before they are dreamed from. Fix: "
            "vae_online_lr_fraction 0, or overlap false."
        )
    # Building the pipeline checks what its pieces make of the spaces.
    config.build_env_to_module_connector(spaces={INPUT_ENV_SINGLE_SPACES: spaces})
