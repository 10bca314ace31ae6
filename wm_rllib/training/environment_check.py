"""The environment, looked at before any actor starts: one clear error in place of an actor's traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from wm_rllib.environments.creation import NO_MULTI_AGENT, ONE_BY_ONE
from wm_rllib.environments.errors import EnvironmentContractError
from wm_rllib.environments.pixels import PixelError
from wm_rllib.environments.probe import probe
from wm_rllib.models.conv_vae import is_image
from wm_rllib.spaces import is_half_bounded
from wm_rllib.training.replay_room import warn_of_little_room

logger = logging.getLogger(__name__)


def check_environment(config: Any, make_env: Callable[[EnvContext], Any]) -> Exception | None:
    """Makes the environment once, takes a step in it, and raises unless this algorithm can learn it.

    One that this process cannot make (a head node may lack its packages) is left to remote env runners.

    Args:
        config: A `WorldModelPPOConfig`.
        make_env: RLlib's creator of the environment.

    Returns:
        Why it could not be made here, if it could not: if remote env runners cannot either, that is the reason.

    Raises:
        ValueError: There is none, or it has several agents, or spaces that are not supported, or does not do as
            Gymnasium's interface says, or pixel settings do not fit it.
        Exception: Whatever making it raised, where the only env runner is in this process.
    """
    if config.env is None:
        raise ValueError('no environment is set. Fix: config.environment("CartPole-v1"), or one of your own.')
    try:
        env = make_env(EnvContext(config.env_config, worker_index=0))
    except PixelError:
        raise
    except Exception as error:
        if not config.num_env_runners and gym.VectorizeMode(config.gym_env_vectorize_mode) in ONE_BY_ONE:
            raise
        logger.info("the environment was not checked, since it cannot be made here: %s", error)
        return error
    try:
        if isinstance(env, MultiAgentEnv):
            raise ValueError(NO_MULTI_AGENT)
        spaces = (config.observation_space or env.observation_space, config.action_space or env.action_space)
        _check_spaces(config, spaces)
        warn_of_little_room(config, spaces[0])
        _warn_of_few_latents(config, spaces[0])
        if spaces == (env.observation_space, env.action_space):
            _probe(env, config.num_env_runners)
    finally:
        env.close()
    return None


def _warn_of_few_latents(config: Any, observation_space: gym.Space[Any]) -> None:
    """Where the default V has to squeeze a vector: what C does not see in z it cannot act on."""
    shape = observation_space.shape or ()
    latent_dim = config.latent_dim_for(observation_space)
    if len(shape) == 1 and config.vae_class is None and latent_dim < shape[0]:
        logger.warning(
            "observations have %d numbers, which V squeezes into latent_dim = %d. Fix, unless much of them is "
            "redundant: latent_dim %d (world_model.vae.latent_dim).",
            shape[0],
            latent_dim,
            shape[0],
        )


def _probe(env: Any, num_env_runners: int) -> None:
    try:
        probe(env, env.observation_space, env.action_space)
    except EnvironmentContractError:
        raise
    except Exception as error:  # the environment's own; remote env runners try again
        if not num_env_runners:
            raise
        logger.warning("the environment raised %s: %s", type(error).__name__, error)


def _check_spaces(config: Any, spaces: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
    if 0 in (spaces[0].shape or ()):
        raise ValueError(f"observations of shape {spaces[0].shape} hold nothing. Fix: the environment, or a wrapper.")
    if config.overlap and is_image(spaces[0].shape or ()) and config.vae_online_lr_fraction:
        raise ValueError(
            "overlap = True orders dreams ahead from latents of images, and vae_online_lr_fraction = "
            f"{config.vae_online_lr_fraction} has V change them before they are dreamed from. Fix: "
            "vae_online_lr_fraction 0, or overlap false."
        )
    if is_half_bounded(spaces[1]) and (config.normalize_actions or not config.clip_actions):
        raise ValueError(
            f"action space {spaces[1]} has some infinite bounds, and with normalize_actions = "
            f"{config.normalize_actions} and clip_actions = {config.clip_actions} RLlib keeps actions within none. "
            "Fix: .env_runners(normalize_actions=False, clip_actions=True), or finite bounds in a wrapper "
            "(gymnasium.wrappers.TransformAction)."
        )
    # Building the pipeline checks what its pieces make of the spaces.
    config.build_env_to_module_connector(spaces={INPUT_ENV_SINGLE_SPACES: spaces})
