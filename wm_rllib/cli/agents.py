"""From a checkpoint that a user names to the agent in it, and the environment it was trained in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_rllib.cli import checkpoints
from wm_rllib.cli.errors import CommandError
from wm_rllib.environments import env_spaces

if TYPE_CHECKING:
    from wm_rllib.policy import WorldModelPolicy


@dataclass(frozen=True)
class Agent:
    """A loaded checkpoint.

    Attributes:
        checkpoint: Its folder.
        policy: V, M and C.
        env_id: The environment: as the user says, else as in training.
        env_config: Its arguments.
        settings: The run's resolved settings by dotted path; empty for a checkpoint that Ray Tune wrote.
    """

    checkpoint: Path
    policy: WorldModelPolicy
    env_id: str
    env_config: dict[str, Any]
    settings: dict[str, Any]


def load_agent(checkpoint: Path, env: str | None = None) -> Agent:
    """Loads a checkpoint.

    Args:
        checkpoint: Its folder.
        env: The environment, if it is not the one that the agent was trained in.

    Raises:
        CommandError: If it cannot be loaded, or does not fit the environment.
    """
    settings = checkpoints.read_settings(checkpoint) if checkpoints.read_meta(checkpoint) else {}
    trained_in = settings.get("env.id")
    env_id = env or trained_in
    if env_id is None:
        raise CommandError(f"{checkpoint} does not say which environment it was trained in. Fix: --env ID.")
    env_config = settings.get("env.config", {}) if env_id == trained_in else {}
    observation_space, action_space = env_spaces(env_id, env_config)

    from wm_rllib.policy import load_policy

    try:
        policy = load_policy(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from None
    shape = policy.world_model.config.vae.observation_shape
    if (shape, policy.action_space) != (observation_space.shape, action_space):
        raise CommandError(
            f"environment {env_id!r} has observations of shape {observation_space.shape} and actions {action_space}, "
            f"but the agent was trained on {shape} and {policy.action_space}. Fix: another --env or checkpoint."
        )
    return Agent(checkpoint, policy, env_id, env_config, settings)
