"""`evaluate`: greedy episodes with a checkpoint's agent, in this process alone."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from wm_rllib.cli import checkpoints
from wm_rllib.cli.errors import CommandError
from wm_rllib.cli.run_folder import BEST, LAST
from wm_rllib.environments import env_spaces, make_env
from wm_rllib.settings import BY_PATH, check_value
from wm_rllib.yaml_files import parse_yaml

DEFAULT_EPISODES = 20


def run(args: argparse.Namespace) -> int:
    """Evaluate as the arguments say; returns the exit code."""
    episodes = _flag(args.episodes, "evaluation.episodes", "--episodes") or DEFAULT_EPISODES
    seed = _flag(args.seed, "seed", "--seed")
    checkpoint = checkpoints.resolve(args.checkpoint, (BEST, LAST))
    env_id, env_config = _environment(args, checkpoint)
    observation_space, action_space = env_spaces(env_id, env_config)

    from wm_rllib.evaluation import evaluate_policy
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
    env = partial(make_env, env_id) if ":" in env_id else env_id
    result = evaluate_policy(policy, env, episodes, seed, env_config)
    _report(result, checkpoint, as_json=args.json)
    return 0


def _flag(text: str | None, path: str, flag: str) -> Any:
    return None if text is None else check_value(BY_PATH[path], parse_yaml(text, flag), name=flag)


def _environment(args: argparse.Namespace, checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """Return the environment's id and arguments: as the flag says, else as in training."""
    values = checkpoints.read_settings(checkpoint) if checkpoints.read_meta(checkpoint) else {}
    trained_in = values.get("env.id")
    env_id = args.env or trained_in
    if env_id is None:
        raise CommandError(f"{checkpoint} does not say which environment it was trained in. Fix: --env ID.")
    return env_id, values.get("env.config", {}) if env_id == trained_in else {}


def _report(result: Any, checkpoint: Path, *, as_json: bool) -> None:
    episodes = len(result.returns)
    if as_json:
        content = {"episode_return_mean": result.mean, "episode_return_std": result.std, "episodes": episodes}
        print(json.dumps(content))
    else:
        print(f"{checkpoint}: return {result.mean:.2f} +- {result.std:.2f} (std) over {episodes} greedy episodes")
