"""A checkpoint's agent and its environment, for the commands that play with it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_rllib.environments.names import AnyEnv, env_spaces, find_env, make_env, vector_maker
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.resolving import resolve
from wm_rllib.runs.run_folder import BEST, LAST
from wm_rllib.settings.settings import check_value
from wm_rllib.settings.table import BY_PATH, Setting
from wm_rllib.settings.yaml_files import parse_yaml

if TYPE_CHECKING:
    from wm_rllib.acting.policy import WorldModelPolicy


ATTEMPTS = 3
"""To read a checkpoint that a run replaces meanwhile."""


@dataclass(frozen=True)
class Agent:
    """A checkpoint, its agent, the environment that it is to play in, and what the checkpoint says about itself."""

    checkpoint: Path
    policy: WorldModelPolicy
    env_id: str
    env_config: dict[str, Any]
    meta: CheckpointMeta | None = None

    @property
    def vector_env(self) -> Any:
        """The environment as `wm_rllib.acting.evaluation.evaluate_policy` takes it."""
        return vector_maker(self.env_id, self.policy.pixels)

    def make_env(self) -> AnyEnv:
        """One environment."""
        return make_env(self.env_id, self.env_config, self.policy.pixels)


def flag_value(text: str | None, setting: Setting | str, flag: str) -> Any:
    """The checked value of a flag that means a setting (a row of a table, or its path); None where it is not given."""
    row = BY_PATH[setting] if isinstance(setting, str) else setting
    return None if text is None else check_value(row, parse_yaml(text, flag), name=flag)


def load_agent(args: argparse.Namespace) -> Agent:
    """Loads what `args.checkpoint` and `args.env` name.

    Raises:
        CommandError: If there is no such checkpoint, or its agent does not fit the environment.
    """
    checkpoint = resolve(args.checkpoint, (BEST, LAST))
    of_a_run = checkpoints.read_meta(checkpoint)
    values = checkpoints.read_settings(checkpoint) if of_a_run else checkpoints.read_environment(checkpoint)
    env_id, env_config = _environment(args, checkpoint, values)
    find_env(env_id)
    checkpoint, meta, policy = _load_whole(args.checkpoint, checkpoint)
    observation_space, action_space = env_spaces(env_id, env_config, policy.pixels)
    shape = policy.world_model.config.vae.observation_shape
    if (shape, policy.action_space) != (observation_space.shape, action_space):
        raise CommandError(
            f"environment {env_id!r} has observations of shape {observation_space.shape} and actions {action_space}, "
            f"but the agent was trained on {shape} and {policy.action_space}. Fix: another --env or checkpoint."
        )
    return Agent(checkpoint, policy, env_id, env_config, meta)


def _load_whole(place: str | Path, checkpoint: Path) -> tuple[Path, CheckpointMeta | None, WorldModelPolicy]:
    """The policy of a checkpoint, none of it from the next one that a run which is going on puts in its place."""
    from wm_rllib.acting.policy import load_policy

    for _ in range(ATTEMPTS):
        before = checkpoints.read_meta(checkpoint)
        try:
            policy = load_policy(checkpoint)
        except (OSError, EOFError, ValueError) as error:
            if checkpoints.read_meta(checkpoint) == before:
                raise CommandError(str(error)) from None
        else:
            if checkpoints.read_meta(checkpoint) == before:
                return checkpoint, before, policy
        checkpoint = resolve(place, (BEST, LAST))
    raise CommandError(f"{checkpoint} was replaced while it was read, again and again. Fix: try once more.")


def _environment(args: argparse.Namespace, checkpoint: Path, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The environment's id and arguments: as the flag says, else as in training."""
    trained_in = values.get("env.id")
    env_id = args.env or trained_in
    if env_id is None:
        raise CommandError(f"{checkpoint} does not say which environment it was trained in. Fix: --env ID.")
    return env_id, values.get("env.config", {}) if env_id == trained_in else {}
