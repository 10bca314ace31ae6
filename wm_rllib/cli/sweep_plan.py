"""What `sweep` is asked to do, all of it checked before anything starts or is written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm_rllib.runs import checkpoints
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.options import FIXED_BY_CHECKPOINT, SWEEP_SECTION, assignments, flag_values
from wm_rllib.runs.plan import (
    ONLINE,
    check_env,
    find_transfer,
    local_run_dir,
    local_source,
    new_run_dir,
    register_env,
    valid_config,
)
from wm_rllib.runs.resolving import resolve
from wm_rllib.runs.run_folder import BEST, LAST, TRIALS, RunFolder
from wm_rllib.settings.settings import SettingError, find_setting, flat_tree
from wm_rllib.settings.yaml_files import read_yaml
from wm_rllib.sweep.search import TABLE, flat_search, unknown_message
from wm_rllib.sweep.spec import TOTAL, SweepSpec, parse_sweep

PREFIX = f"{SWEEP_SECTION}."
TRANSFER = "world_model.transfer.from"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that can be started: everything that the user can get wrong has been checked.

    Attributes:
        folder: The sweep's folder, not opened yet.
        spec: The sweep.
        configs: A config for each point at which trials could be, validated.
        resumes: Whether the folder may hold a sweep to go on with.
    """

    folder: RunFolder
    spec: SweepSpec
    configs: list[Any]
    resumes: bool

    @property
    def trials(self) -> Path:
        """Where Tune keeps the trials."""
        return (self.folder.path / TRIALS).resolve()


def plan_sweep(args: argparse.Namespace) -> SweepPlan:
    """Return the sweep that the arguments ask for, all of it checked; makes and changes nothing.

    Raises:
        SettingError: For a setting or environment that does not exist or a value that is not allowed.
        CommandError: For everything else that the user can correct.
    """
    if args.resume and args.run_dir is None:
        raise CommandError("--resume auto needs the sweep folder to look in. Fix: add --run-dir DIR.")
    named = None if args.run_dir is None else local_run_dir(args.run_dir, "sweep")
    stored = Path(named) / checkpoints.SETTINGS_FILE if args.resume and named else None
    before = _read_spec(stored) if stored is not None and stored.exists() else None
    spec = _requested(args, args.config or (stored if before is not None else None))
    if before is not None:
        _refuse_changes(before, spec)
    if "env.id" not in spec.values:
        raise CommandError("no environment. Fix: --env ID, or env.id in the YAML file.")
    folder = RunFolder(named or new_run_dir(spec.values["env.id"], "sweep-"))
    if not args.resume:
        folder.refuse_if_used()
    _check_packages(spec)
    _check_pbt_knobs(spec)
    points = list(spec.points())
    spaces = _check_envs(points)
    register_env(spec.values["env.id"])
    configs = [valid_config(point, spaces, verbose=args.verbose, log_level=args.log_level) for point in points]
    for config in configs:
        if config.transfer_from is not None:
            find_transfer(config, spaces)
    _check_random_phase(spec, configs)
    if not all(config.online_collection for config in configs):
        raise CommandError(
            f"{ONLINE} is false, but a sweep counts real steps, which such trials do not take. Fix: true, or the "
            "command `temperatures`."
        )
    if spec.uses_pbt:
        _check_same_actors(spec, configs)
    return SweepPlan(folder, spec, configs, resumes=before is not None)


def _check_envs(points: Sequence[Mapping[str, Any]]) -> Any:
    """Check the environment with each V that a trial may have; returns the first one's spaces."""
    checked: dict[str, Any] = {}
    for point in points:
        relevant = {path: value for path, value in point.items() if path.startswith(("env.", "world_model.vae."))}
        if repr(relevant) not in checked:
            checked[repr(relevant)] = check_env(point)
    return next(iter(checked.values()))


def _requested(args: argparse.Namespace, source: str | Path | None) -> SweepSpec:
    if source is None:
        raise CommandError("no sweep. Fix: --config FILE.yaml, for instance tune_configs/asha.yaml.")
    settings, search = _split(read_yaml(source))
    for path, value in assignments(args.set):
        if path.startswith(PREFIX):
            path = path.removeprefix(PREFIX)
            if path not in TABLE:
                raise SettingError(unknown_message(path))
            search[path] = value
        else:
            settings[find_setting(path).path] = value
    if settings.get(TRANSFER) is not None:  # trials run in folders of their own
        local_source(str(settings[TRANSFER]), "sweep")
        settings[TRANSFER] = str(resolve(str(settings[TRANSFER]), (BEST, LAST)).resolve())
    return parse_sweep(settings | flag_values(args), search)


def _read_spec(path: Path) -> SweepSpec:
    tree = read_yaml(path)
    if isinstance(tree, Mapping) and SWEEP_SECTION not in tree:
        raise CommandError(
            f"{path.parent} is not of a sweep: its {path.name} has no section {SWEEP_SECTION}. Fix: another --run-dir."
        )
    return parse_sweep(*_split(tree))


def _split(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and the section `search`, each by path, not checked yet."""
    if not isinstance(tree, Mapping):
        return flat_tree(tree), {}
    rest = {key: value for key, value in tree.items() if key != SWEEP_SECTION}
    return flat_tree(rest), flat_search(tree.get(SWEEP_SECTION))


def _refuse_changes(before: SweepSpec, now: SweepSpec) -> None:
    """Raise if a sweep is to go on as another one: trials would not be comparable."""
    old, new = _flat(before), _flat(now)
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            raise CommandError(
                f"{path} cannot change in a sweep that goes on, from {old.get(path)!r} to {new.get(path)!r}. "
                "Fix: the same command as before, or another --run-dir."
            )


def _flat(spec: SweepSpec) -> dict[str, Any]:
    search = {f"{PREFIX}{path}": value for path, value in spec.search.items()}
    return {**spec.values, **{path: space.yaml for path, space in spec.spaces.items()}, **search}


def _check_packages(spec: SweepSpec) -> None:
    from wm_rllib.sweep.loggers import missing_package

    missing = missing_package(spec.search)
    if missing is not None:
        asked, package = missing
        fix = "pip install 'wm_rllib[sweep]'" if package == "optuna" else f"pip install {package}"
        raise CommandError(
            f"{asked} needs the package {package}, which is not installed. Fix: {fix}, or remove the key."
        )


def _check_pbt_knobs(spec: SweepSpec) -> None:
    fixed = sorted(FIXED_BY_CHECKPOINT & spec.spaces.keys()) if spec.uses_pbt else []
    if fixed:
        raise CommandError(
            f"{fixed[0]} cannot be searched with search.scheduler pbt: trials take over each other's checkpoints, and "
            "their networks have their shape from it. Fix: give it one value, or search.scheduler asha."
        )


def _check_random_phase(spec: SweepSpec, configs: list[Any]) -> None:
    """Raise if a trial would end before its first evaluation."""
    longest = max(config.random_collection_steps for config in configs)
    if longest >= spec.total_steps:
        raise CommandError(
            f"{TOTAL} is {spec.total_steps}, but must exceed world_model.data_collection.random_collection_steps "
            f"({longest}): nothing is evaluated before. Fix: raise the one or lower the other."
        )


def _check_same_actors(spec: SweepSpec, configs: list[Any]) -> None:
    """Raise if a trial could need other actors after an exploit than it has reserved."""
    from wm_rllib.sweep.trial import SweepTrial

    first = SweepTrial.default_resource_request(configs[0])
    for point, config in zip(spec.points(), configs, strict=True):
        if SweepTrial.default_resource_request(config) != first:
            changed = next(path for path, space in spec.spaces.items() if point[path] != space.arguments[0])
            space = spec.spaces[changed]
            raise CommandError(
                f"{changed} is {space.yaml!r}, but pbt must keep a trial's actors, and {point[changed]!r} needs others "
                f"than {space.arguments[0]!r}. Fix: give it one value, or leave that one out."
            )
