"""What `train` is asked to do, all of it checked before anything starts or is written."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from wm_rllib.environments.names import env_spaces, gymnasium_makes, make_env
from wm_rllib.environments.pixels import AS_IT_IS, PixelSettings
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.filesystems import is_uri
from wm_rllib.runs.loop import StopRule
from wm_rllib.runs.options import LATENT_DIM, apply_to_config, changed_on_resume, requested_values, resolved_tree
from wm_rllib.runs.resolving import resolve
from wm_rllib.runs.run_folder import BEST, LAST, RunFolder

AUTO = "auto"
ONLINE = "world_model.data_collection.online"
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""`ray job submit` sets it for what it starts."""
CONFIRMATION_FACTOR = 5
"""The evaluation that confirms a solved run has this many times the usual episodes: 20 lucky ones end no run."""


@dataclass(frozen=True)
class RunPlan:
    """A run that can be started: everything that the user can get wrong has been checked.

    Attributes:
        folder: The run folder, not opened yet.
        values: Settings that differ from the defaults, by dotted path.
        config: The `WorldModelPPOConfig` of these values.
        tree: All settings as resolved.
        source: The checkpoint to resume from; None for a new run.
        start: The state that training goes on from.
        changed: What changes on resume, by dotted path: old and new value.
    """

    folder: RunFolder
    values: dict[str, Any]
    config: Any
    tree: dict[str, Any]
    source: Path | None
    start: CheckpointMeta
    changed: dict[str, tuple[Any, Any]]

    @property
    def takes_real_steps(self) -> bool:
        """Whether the mixed phase takes any."""
        return bool(self.values.get(ONLINE, True))

    @property
    def rule(self) -> StopRule:
        """When the run ends."""
        return StopRule(
            total_timesteps=self.values.get("stop.total_timesteps"),
            stop_return=self.values.get("stop.return"),
            evaluation_episodes=CONFIRMATION_FACTOR * self.config.evaluation_duration,
            iterations=self.values.get("stop.iterations"),
        )


def plan_run(args: argparse.Namespace) -> RunPlan:
    """Return the run that the arguments ask for, all of it checked; makes and changes nothing.

    Raises:
        SettingError: For a setting or environment that does not exist or a value that is not allowed.
        CommandError: For everything else that the user can correct.
    """
    requested = requested_values(args)
    named = None if args.run_dir is None else RunFolder.at(lasting(args.run_dir), pull=args.resume == AUTO)
    source = _find_source(args, named)
    meta = CheckpointMeta(0, 0, 0.0) if source is None else _resumable(source)
    before = _settings_before(args, named, source)
    if requested.get(LATENT_DIM) == "auto" and LATENT_DIM in before:
        requested[LATENT_DIM] = before[LATENT_DIM]
    changed = changed_on_resume(before, requested) if before else {}
    values = {**before, **requested}
    if "env.id" not in values:
        if args.resume == AUTO and named is not None:
            raise CommandError(
                f"{named} holds no run to go on with. Fix: another --run-dir, or --env ID to start one in it."
            )
        raise CommandError("no environment. Fix: --env ID, or env.id in the YAML file.")
    folder = named or RunFolder(_unnamed_run_dir(source, values["env.id"]))
    folder.refuse_sweep()
    if not _goes_on_in(folder, args, source):
        folder.refuse_if_used()
    spaces = check_env(values)
    if source is not None and "env.config" in changed:
        _check_spaces_stay(before, spaces)
    config = _make_config(values, args, spaces)
    _check_end(values, config)
    config.wm_run_name = str(folder).partition("?")[0].rstrip("/").rpartition("/")[2]  # the monitoring's name for it
    tree = resolved_tree(config, values)
    if source is None and config.transfer_from is not None:
        find_transfer(config, spaces)
    return RunPlan(folder, values, config, tree, source, meta, changed)


def _find_source(args: argparse.Namespace, named: RunFolder | None) -> Path | None:
    """Return the checkpoint to resume from, or None."""
    if args.resume is None:
        return None
    if args.resume != AUTO:
        source = resolve(args.resume, (LAST, BEST))
        if named is None and is_uri(args.resume) and source.parent.name == "checkpoints":
            raise CommandError(
                f"--resume is the URI of a run folder, {args.resume}. Fix: --run-dir {args.resume} --resume auto to go "
                "on in it, or --run-dir with another folder."
            )
        return source
    if named is None:
        raise CommandError("--resume auto needs the run folder to look in. Fix: add --run-dir DIR.")
    return named.newest_checkpoint()


def _settings_before(args: argparse.Namespace, named: RunFolder | None, source: Path | None) -> dict[str, Any]:
    """Return the settings to go on with: the checkpoint's, or those of a run that ended before its first checkpoint."""
    if source is not None:
        return checkpoints.read_settings(source)
    begun = args.resume == AUTO and named is not None and named.config.exists()
    return checkpoints.read_settings(named.path) if begun and named else {}


def _resumable(source: Path) -> CheckpointMeta:
    meta = checkpoints.read_meta(source)
    if meta is None:
        raise CommandError(
            f"{source} cannot be resumed: it has no {checkpoints.META_FILE}, which only `train` writes. "
            "Fix: give a folder like runs/NAME/checkpoints/last, or restore it as it was made (Ray Tune)."
        )
    return meta


def _unnamed_run_dir(source: Path | None, env_id: str) -> str:
    """Return the run folder where none is named: the checkpoint's own, else a new one."""
    if source is not None and source.parent.name == "checkpoints":
        return str(source.parent.parent)
    return new_run_dir(env_id)


def new_run_dir(env_id: str, prefix: str = "") -> str:
    """Return a folder in runs/, named after the environment and the time."""
    name = re.sub(r"[^\w.-]+", "-", env_id)
    return lasting(f"runs/{prefix}{name}-{datetime.now():%Y%m%d-%H%M%S}")


def lasting(run_dir: str) -> str:
    """Return the run folder's place, unless it goes with a Ray job.

    Raises:
        CommandError: If this is a Ray job and the path is relative.
    """
    if _RAY_JOB in os.environ and not is_uri(run_dir) and not os.path.isabs(run_dir):
        raise CommandError(
            f"run folder {run_dir} is relative, but a Ray job works in a copy of the working directory, which goes "
            "with it. Fix: --run-dir with an absolute path on storage that all nodes share, or s3://bucket/path."
        )
    return run_dir


def local_run_dir(run_dir: str, command: str) -> str:
    """Return the folder of a command that cannot do with a URI.

    Raises:
        CommandError: If it is one, or goes with a Ray job.
    """
    if is_uri(run_dir):
        raise CommandError(f"--run-dir is {run_dir}, but `{command}` needs a local folder. Fix: a path.")
    return lasting(run_dir)


def _check_spaces_stay(before: Mapping[str, Any], spaces: tuple[Any, Any]) -> None:
    """Make sure that other arguments of the environment do not ask for other networks than the checkpoint's."""
    had = check_env(before)
    for name, old, new in zip(("observation", "action"), had, spaces, strict=True):
        if old != new:
            raise CommandError(
                f"env.config changes the {name} space from {old} to {new}, but the checkpoint's networks are made for "
                "the first. Fix: leave env.config as it was, or start a new run."
            )


def _goes_on_in(folder: RunFolder, args: argparse.Namespace, source: Path | None) -> bool:
    """Return whether the run goes on in a folder that holds it already, rather than starting in a new one."""
    if args.resume == AUTO:
        return True
    return source is not None and source.parent.resolve() == folder.checkpoints.resolve()


def local_source(checkpoint: str, command: str) -> None:
    """Refuse a URI as what V and M are taken from, where several runs take it and may go on later.

    Raises:
        CommandError: If it is one.
    """
    if is_uri(checkpoint):
        raise CommandError(
            f"world_model.transfer.from is {checkpoint}, but `{command}` needs a local folder: its runs would each "
            "fetch it anew. Fix: copy it to this machine, or to storage that all nodes share."
        )


def find_transfer(config: Any, spaces: tuple[Any, Any]) -> None:
    """Find the checkpoint that a new run starts with, and make sure that it fits.

    Raises:
        CommandError: If there is none, or it does not fit.
    """
    from wm_rllib.models.parts import CONTROLLER
    from wm_rllib.training.transfer import transferred_policy, transferred_weights

    found = resolve(config.transfer_from, (BEST, LAST))
    own = config.world_model_config(*spaces)
    try:
        transferred_weights(found, config.transferred_parts, own)
        if CONTROLLER in config.transferred_parts:
            transferred_policy(found, own, config.policy_hidden_dims)
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from None
    config.transfer_from = str(found.resolve())


def check_env(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the spaces of the environment of the values, having made sure that it exists and is supported.

    Raises:
        SettingError: If it does not exist.
        CommandError: If its spaces are not supported.
    """
    from wm_rllib.models.conv_vae import frame_sizes, is_image
    from wm_rllib.spaces import check_spaces

    default_v, channels = values.get("world_model.vae.class") is None, values.get("world_model.vae.channels")
    spaces = env_spaces(values["env.id"], values.get("env.config"), PixelSettings.from_values(values))
    try:
        check_spaces(*spaces, default_v=default_v)
        shape = spaces[0].shape or ()
        if default_v and is_image(shape):
            frame_sizes(shape, len(_default_channels() if channels is None else channels))
    except ValueError as error:
        raise CommandError(f"environment {values['env.id']!r}: {error}") from None
    return spaces


def _default_channels() -> list[int]:
    from wm_rllib.config import WorldModelPPOConfig

    return WorldModelPPOConfig().vae_channels


def _check_end(values: Mapping[str, Any], config: Any) -> None:
    """Make sure that what is to end the run can.

    Raises:
        CommandError: A return is to end it, but is never measured, or it has no real steps in its mixed phase and
            nothing else to end it.
    """
    goal = values.get("stop.return")
    is_evaluated = config.evaluation_interval_iterations is not None
    if config.online_collection and goal is not None and not (is_evaluated or config.evaluation_interval_steps):
        raise CommandError(
            f"stop.return is {goal:g}, but nothing is evaluated, so that it would never be reached. "
            "Fix: evaluation.interval, the real steps between evaluations, e.g. 500."
        )
    if config.online_collection or values.get("stop.iterations") is not None:
        return
    total, random_steps = values.get("stop.total_timesteps"), config.random_collection_steps
    fix = "Fix: stop.iterations, which counts iterations of the mixed phase."
    if total is not None and total > random_steps:
        raise CommandError(
            f"stop.total_timesteps is {total}, but can never be reached: with {ONLINE} false there are no real steps "
            f"after world_model.data_collection.random_collection_steps ({random_steps}). {fix}"
        )
    if total is None and (goal is None or not is_evaluated):
        raise CommandError(
            f"with {ONLINE} false the run would never end: neither stop.iterations nor stop.return with "
            f"evaluation.interval_iterations is set. {fix}"
        )


def _make_config(values: Mapping[str, Any], args: argparse.Namespace, spaces: tuple[Any, Any]) -> Any:
    """Return the `WorldModelPPOConfig` of the values, validated."""
    register_env(values["env.id"])
    return valid_config(values, spaces, verbose=args.verbose, log_level=args.log_level)


def valid_config(values: Mapping[str, Any], spaces: tuple[Any, Any], *, verbose: bool, log_level: str | None) -> Any:
    """Return the `WorldModelPPOConfig` of the values, validated; a registered environment is taken for granted.

    How many latents "auto" stands for is settled here: files say the number, whatever later code would choose.

    Raises:
        CommandError: For settings that do not fit each other.
    """
    from wm_rllib.config import WorldModelPPOConfig

    config = WorldModelPPOConfig()
    apply_to_config(config, values)
    if log_level is not None:
        config.wm_log_level = log_level
    if not verbose:
        config.log_level = "ERROR"
    try:
        config.copy(copy_frozen=False).validate()
    except ValueError as error:
        raise CommandError(str(error).strip()) from None
    config.latent_dim = config.latent_dim_for(spaces[0])
    return config


def register_env(env_id: str, pixels: PixelSettings = AS_IT_IS) -> None:
    """Tell Ray how to make an environment that Gymnasium alone would not make like this.

    Args:
        env_id: The environment.
        pixels: For algorithms of others: a `WorldModelPPOConfig` has pixel settings of its own.
    """
    if pixels.is_neutral and gymnasium_makes(env_id):
        return
    from ray.tune.registry import register_env

    register_env(env_id, partial(make_env, env_id, pixels=pixels))
