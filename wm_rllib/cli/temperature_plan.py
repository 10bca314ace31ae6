"""What `temperatures` is asked to do, all of it checked before anything starts or is written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm_rllib.runs import checkpoints
from wm_rllib.runs.agents import flag_value
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.options import requested_values, resolved_tree
from wm_rllib.runs.plan import (
    ONLINE,
    RunPlan,
    check_env,
    find_transfer,
    local_run_dir,
    local_source,
    register_env,
    valid_config,
)
from wm_rllib.runs.run_folder import LAST, RunFolder
from wm_rllib.settings.settings import parse_tree
from wm_rllib.settings.yaml_files import read_yaml, write_yaml

TEMPERATURE = "world_model.mdn_rnn.temperature"
HARMLESS = frozenset(
    {
        "checkpoint.frequency",
        "cluster.timeout_s",
        "dreamers.dreamer_timeout_s",
        "env_runners.sample_timeout_s",
        "evaluation.timeout_s",
    }
)
"""Settings that change no score, and may change when a study goes on: who ran into a limit raises it."""
STUDY_FILE = "study.yaml"
PRETRAINED, FOLDER_PREFIX = "pretrained", "t-"
DEFAULT_EPISODES = 100


@dataclass(frozen=True)
class TemperaturePlan:
    """Controllers to train at several temperatures, in the dream of one world model.

    Attributes:
        root: The folder of it all.
        temperatures: In the order in which they were asked for.
        num_episodes: Of each score.
        values: Settings that differ from the defaults, by dotted path.
        config: The `WorldModelPPOConfig` of these values.
        action_space: The environment's.
        base: The run folder of collection and pretraining; open while the command works, it locks the root.
    """

    root: Path
    temperatures: list[float]
    num_episodes: int
    values: dict[str, Any]
    config: Any
    action_space: Any
    base: RunFolder

    def folder_of(self, temperature: float) -> Path:
        """The run folder of a temperature."""
        return self.root / folder_name(temperature)

    def checkpoint_of(self, temperature: float) -> Path:
        """The checkpoint of a temperature's controller."""
        return self.folder_of(temperature) / "checkpoints" / LAST

    def pretraining(self) -> RunPlan:
        """The run that collects and pretrains, as far as it has come."""
        return self._run(self.base, self.base.newest_checkpoint(), self.config, {"stop.iterations": 0})

    def training(self, temperature: float) -> RunPlan:
        """The run of a temperature, as far as it has come; it begins where pretraining has ended."""
        folder = RunFolder(self.folder_of(temperature))
        config = self.config.copy(copy_frozen=False)
        config.temperature = temperature
        source = folder.newest_checkpoint() or self.base.newest_checkpoint()
        return self._run(folder, source, config, {TEMPERATURE: temperature})

    def has_trained(self, run: RunPlan) -> bool:
        """Whether a temperature's run has come to its end."""
        return run.start.finished and run.start.training_iteration > self.pretraining().start.training_iteration

    def _run(self, folder: RunFolder, source: Path | None, config: Any, own: Mapping[str, Any]) -> RunPlan:
        values = {**self.values, "stop.total_timesteps": None, **own}
        meta = None if source is None else checkpoints.read_meta(source)
        config.wm_run_name = f"{self.root.name}-{folder.path.name}"
        tree = resolved_tree(config, {**values, "stop.iterations": self.values["stop.iterations"]})
        return RunPlan(folder, values, config, tree, source, meta or CheckpointMeta(0, 0, 0.0), {})

    def claim(self) -> None:
        """Makes the folder this study's.

        Raises:
            CommandError: If it cannot be written, or has become another study's in the meantime.
        """
        study = _study(self.config, self.values, self.num_episodes)
        _check_folder(self.root, study)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_yaml(self.root / STUDY_FILE, study)
        except OSError as error:
            raise CommandError(f"run folder {self.root} cannot be written: {error.strerror}.") from None


def folder_name(temperature: float) -> str:
    """Name of a temperature's run folder."""
    return f"{FOLDER_PREFIX}{temperature:g}"


def plan_temperatures(args: argparse.Namespace) -> TemperaturePlan:
    """Return what the arguments ask for, all of it checked; makes and changes nothing.

    Raises:
        SettingError: For a setting or environment that does not exist or a value that is not allowed.
        CommandError: For everything else that the user can correct.
    """
    temperatures = _temperatures(args.temperatures)
    num_episodes = flag_value(args.episodes, "evaluation.episodes", "--episodes") or DEFAULT_EPISODES
    values = requested_values(args)
    _check_values(values)
    values[ONLINE] = False
    spaces = check_env(values)
    register_env(values["env.id"])
    config = valid_config(values, spaces, verbose=args.verbose, log_level=args.log_level)
    if config.seed is None:
        raise CommandError("seed is null, but temperatures are compared on the same episodes. Fix: --seed 0.")
    if config.transfer_from is not None:
        local_source(str(config.transfer_from), "temperatures")
        find_transfer(config, spaces)
    root = Path(local_run_dir(args.run_dir, "temperatures"))
    _check_folder(root, _study(config, values, num_episodes))
    base = RunFolder(root / PRETRAINED)
    return TemperaturePlan(root, temperatures, num_episodes, values, config, spaces[1], base)


def _temperatures(texts: Sequence[str]) -> list[float]:
    temperatures = [float(flag_value(text, TEMPERATURE, "--temperatures")) for text in texts]
    names = [folder_name(temperature) for temperature in temperatures]
    for name, temperature in zip(names, temperatures, strict=True):
        if names.count(name) > 1:
            raise CommandError(f"--temperatures has {temperature:g} twice. Fix: name each once.")
    return temperatures


def _check_values(values: Mapping[str, Any]) -> None:
    if "env.id" not in values:
        raise CommandError("no environment. Fix: --env ID, or env.id in the YAML file.")
    if values.get(ONLINE):
        raise CommandError(f"{ONLINE} is true, but `temperatures` trains in the dream alone. Fix: remove it.")
    if values.get("stop.iterations") is None:
        raise CommandError(
            "stop.iterations is not set, and says how long each controller trains in the dream. Fix: --set "
            "stop.iterations=N."
        )
    if values.get("stop.return") is not None:
        raise CommandError(
            f"stop.return is {values['stop.return']}, but `temperatures` trains each controller for stop.iterations, "
            "whatever it is worth in reality. Fix: --set stop.return=null."
        )


def _study(config: Any, values: Mapping[str, Any], num_episodes: int) -> dict[str, Any]:
    """What all temperatures of a folder have in common."""
    settings = parse_tree(resolved_tree(config, values))
    return {"episodes": num_episodes, "settings": {path: settings[path] for path in settings if path != TEMPERATURE}}


def _check_folder(root: Path, study: Mapping[str, Any]) -> None:
    """Make sure that the folder is new, or holds this very study.

    Raises:
        CommandError: If it does not.
    """
    if not root.exists():
        return
    if not root.is_dir():
        raise CommandError(f"run folder {root} is a file. Fix: another --run-dir.")
    if not (root / STUDY_FILE).is_file():
        base = RunFolder(root / PRETRAINED)  # made, and locked, before the study is written
        others = sorted(path.name for path in root.iterdir() if path != base.path or base.holds())
        if others:
            raise CommandError(
                f"run folder {root} holds {others[0]}, but no {STUDY_FILE}: it is not one of `temperatures`. "
                "Fix: another --run-dir."
            )
        return
    before, now = _flat(read_yaml(root / STUDY_FILE)), _flat(study)
    for path in sorted(before.keys() | now.keys()):
        if before.get(path) != now.get(path):
            raise CommandError(
                f"run folder {root} was made with {path} {before.get(path)!r}, not {now.get(path)!r}: its temperatures "
                "would not be comparable. Fix: the same settings as before, or another --run-dir."
            )


def _flat(study: Any) -> dict[str, Any]:
    """What would change the scores."""
    content = study if isinstance(study, Mapping) else {}
    settings = {path: value for path, value in (content.get("settings") or {}).items() if path not in HARMLESS}
    return {"--episodes": content.get("episodes"), **settings}
