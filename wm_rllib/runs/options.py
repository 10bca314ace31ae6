"""From flags, `--set` and YAML to the settings of a run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wm_rllib.environments.pixels import PATHS as PIXEL_PATHS
from wm_rllib.runs.errors import CommandError
from wm_rllib.settings.settings import check_value, find_setting, parse_tree, to_tree
from wm_rllib.settings.table import BY_PATH, SETTINGS
from wm_rllib.settings.yaml_files import parse_yaml, read_yaml

# Flags that are short forms of settings, by the argument's name.
FLAGS: dict[str, str] = {
    "env": "env.id",
    "total_timesteps": "stop.total_timesteps",
    "stop_return": "stop.return",
    "num_envs": "env_runners.num_envs_per_env_runner",
    "device": "device",
    "seed": "seed",
    "checkpoint_frequency": "checkpoint.frequency",
}

LATENT_DIM = "world_model.vae.latent_dim"

# A checkpoint's networks have their shape from these, and its replay its data, so that they are fixed with it.
FIXED_BY_CHECKPOINT = frozenset(
    {
        "env.id",
        *PIXEL_PATHS,
        "world_model.vae.class",
        LATENT_DIM,
        "world_model.vae.hidden_dims",
        "world_model.vae.channels",
        "world_model.mdn_rnn.class",
        "world_model.mdn_rnn.hidden_dim",
        "world_model.mdn_rnn.head_hidden_dims",
        "world_model.mdn_rnn.num_mixtures",
        "world_model.mdn_rnn.mixture",
        "world_model.mdn_rnn.residual",
        "world_model.mdn_rnn.ensemble_size",
        "world_model.mdn_rnn.ends_from",
        "world_model.transfer.from",
        "world_model.transfer.parts",
        "world_model.training.controller_inputs",
        "ppo.hidden_dims",
    }
)


SWEEP_SECTION = "search"


def requested_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the user asked for, by dotted path: the YAML file, then `--set`, then flags, the later winning.

    Raises:
        SettingError: For a setting that does not exist or a value that is not allowed.
        CommandError: For a `--set` without a value, or a file that is a sweep's.
    """
    tree = read_yaml(args.config) if args.config else None
    if isinstance(tree, Mapping) and SWEEP_SECTION in tree:
        raise CommandError(
            f"{args.config} has the section {SWEEP_SECTION}, so it is for `sweep`. Fix: another --config."
        )
    values = parse_tree(tree)
    for path, value in assignments(args.set):
        setting = find_setting(path)
        values[path] = check_value(setting, value)
    return values | flag_values(args)


def assignments(items: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield path and value, not checked yet, of each `--set`.

    Raises:
        CommandError: For one without a value.
    """
    for item in items:
        path, equals, text = item.partition("=")
        if not equals:
            raise CommandError(f"--set {item} has no value. Fix: --set key.path=value.")
        yield path.strip(), parse_yaml(text, f"--set {path.strip()}")


def flag_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the flags that are short forms of settings, by dotted path.

    Raises:
        SettingError: For a value that is not allowed.
    """
    values = {}
    for name, path in FLAGS.items():
        text = getattr(args, name, None)
        if text is not None:
            flag = f"--{name.replace('_', '-')}"
            values[path] = check_value(BY_PATH[path], parse_yaml(text, flag), name=flag)
    return values


def changed_on_resume(before: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what a resumed run changes, by dotted path: the checkpoint's value and the requested one.

    Raises:
        CommandError: If a change does not fit the checkpoint.
    """
    changed = {
        path: (before.get(path), value)
        for path, value in requested.items()
        if path not in before or before[path] != value
    }
    for path in sorted(FIXED_BY_CHECKPOINT & changed.keys()):
        old, new = changed[path]
        raise CommandError(
            f"{path} cannot change on resume, from {old!r} to {new!r}: the checkpoint was made with it. "
            "Fix: remove the change, or start a new run."
        )
    return changed


def apply_to_config(config: Any, values: Mapping[str, Any]) -> None:
    """Set the values on a `WorldModelPPOConfig`; settings of the run alone are left out."""
    for path, value in values.items():
        attr = BY_PATH[path].attr
        if attr is not None:
            setattr(config, attr, value)


def resolved_tree(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting with its value, defaults included, as a YAML tree."""
    resolved = {}
    for setting in SETTINGS:
        value = values.get(setting.path) if setting.attr is None else getattr(config, setting.attr)
        resolved[setting.path] = check_value(setting, value)
    return to_tree(resolved)
