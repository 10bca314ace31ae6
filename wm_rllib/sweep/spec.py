"""A whole sweep: the settings that all trials share, the spaces of those that are searched, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wm_rllib.settings.settings import SettingError, accepts, check_value, to_nested
from wm_rllib.settings.table import BY_PATH, SETTINGS
from wm_rllib.sweep.search import ASHA, OPTUNA, PBT, RANDOM, SECTION, parse_search, search_tree
from wm_rllib.sweep.spaces import GRID, Space, parse_space

TOTAL, INTERVAL = "stop.total_timesteps", "evaluation.interval"


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep's YAML and flags ask for.

    Attributes:
        values: Values that all trials share, by dotted path.
        spaces: Search spaces, by dotted path.
        search: The section `search`, by the path below it, defaults included.
    """

    values: dict[str, Any]
    spaces: dict[str, Space]
    search: dict[str, Any]

    @property
    def total_steps(self) -> int:
        """Real steps after which a trial has ended."""
        return int(self.values[TOTAL])

    @property
    def interval(self) -> int:
        """Real steps between a trial's evaluations."""
        return int(self.values[INTERVAL])

    @property
    def grace_period(self) -> int:
        """Real steps before which ASHA stops no trial."""
        return int(self.search["asha.grace_period"] or min(self.interval, self.total_steps))

    @property
    def uses_pbt(self) -> bool:
        """Whether trials take over others' checkpoints."""
        return bool(self.search["scheduler"] == PBT)

    def tree(self) -> dict[str, Any]:
        """The sweep as a YAML tree, from which `parse_sweep` makes an equal one."""
        both = self.values | {path: space.yaml for path, space in self.spaces.items()}
        ordered = {setting.path: both[setting.path] for setting in SETTINGS if setting.path in both}
        return {**to_nested(ordered), SECTION: search_tree(self.search)}

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield values by path as trials could have them: each end or value of each space, others at first."""
        first = {path: space.arguments[0] for path, space in self.spaces.items()}
        yield self.values | first
        for path, space in self.spaces.items():
            for value in space.arguments[1:]:
                yield self.values | first | {path: value}


def parse_sweep(settings: Mapping[str, Any], search: Mapping[str, Any]) -> SweepSpec:
    """Return the sweep of unchecked values by path.

    Args:
        settings: Settings' values and search spaces.
        search: The section `search`, by the path below it.

    Raises:
        SettingError: Naming key, value, rule and fix.
    """
    values, spaces = {}, {}
    for path, value in settings.items():
        setting = BY_PATH[path]
        if isinstance(value, Mapping) and not accepts(setting, value):
            spaces[path] = parse_space(setting, value)
        else:
            values[path] = check_value(setting, value)
    spec = SweepSpec(values, spaces, parse_search(search))
    _check_measure(spec)
    _check_scheduler(spec)
    return spec


def _check_measure(spec: SweepSpec) -> None:
    """Raise unless every trial will be measured at its end."""
    if not spec.spaces:
        raise SettingError(
            "nothing is searched. Fix: give a setting a space, like ppo.learning_rate: {loguniform: ...}."
        )
    for path, meaning in ((TOTAL, "the real steps of a trial"), (INTERVAL, "the real steps between its evaluations")):
        if spec.values.get(path) is None:
            raise SettingError(f"{path} is null, but a sweep must know {meaning}. Fix: set {path}.")
    if spec.total_steps % spec.interval:
        nearest = max(1, round(spec.total_steps / spec.interval)) * spec.interval
        raise SettingError(
            f"{TOTAL} is {spec.total_steps}, but must be a multiple of {INTERVAL} ({spec.interval}), so that each "
            f"trial ends with an evaluation. Fix: {nearest}."
        )
    if spec.values.get("stop.iterations") is not None:
        raise SettingError(
            f"stop.iterations is {spec.values['stop.iterations']}, but a sweep's trials end by real steps, with an "
            f"evaluation. Fix: remove it; {TOTAL} ends them."
        )
    if spec.values.get("stop.return") is not None and spec.search["mode"] == "min":
        raise SettingError("stop.return must be null with search.mode min, which wants low returns. Fix: remove one.")
    if spec.search["mlflow.tracking_uri"] and not spec.search["mlflow.experiment_name"]:
        raise SettingError("search.mlflow.tracking_uri needs search.mlflow.experiment_name. Fix: set it.")


def _check_brackets(spec: SweepSpec) -> None:
    """Raise if a bracket would have no rung: its trials could never be stopped early."""
    brackets, factor = spec.search["asha.brackets"], spec.search["asha.reduction_factor"]
    grace = spec.grace_period
    most = int(math.log(spec.total_steps / grace, factor) + 1e-9) + 1
    if brackets > most:
        raise SettingError(
            f"search.asha.brackets is {brackets}, but from a grace period of {grace} to {TOTAL} ({spec.total_steps}) "
            f"there are rungs for {most} at a reduction factor of {factor:g}: trials of the others would never be "
            f"stopped early. Fix: {most} at most, or a shorter search.asha.grace_period."
        )


def _check_scheduler(spec: SweepSpec) -> None:
    search = spec.search
    grids = [path for path, space in spec.spaces.items() if space.kind == GRID]
    if grids and (spec.uses_pbt or search["searcher"] == OPTUNA):
        who = "search.scheduler pbt" if spec.uses_pbt else "search.searcher optuna"
        raise SettingError(f"{grids[0]} is a grid, but {who} must draw its values. Fix: choice instead of grid.")
    grace = search["asha.grace_period"]
    if search["scheduler"] == ASHA and grace is not None and grace > spec.total_steps:
        raise SettingError(
            f"search.asha.grace_period is {grace}, but must not exceed {TOTAL} ({spec.total_steps}). Fix: lower it."
        )
    if search["scheduler"] == ASHA:
        _check_brackets(spec)
    if spec.uses_pbt:
        _check_pbt(spec)


def _check_pbt(spec: SweepSpec) -> None:
    population, at_once = spec.search["num_samples"], spec.search["max_concurrent_trials"]
    if population < 2:
        raise SettingError(f"search.num_samples is {population}, but pbt must have at least 2 trials. Fix: 4.")
    if spec.search["searcher"] != RANDOM:
        raise SettingError(
            f"search.searcher is {spec.search['searcher']!r}, but must be {RANDOM!r} with pbt, which changes values "
            "itself. Fix: remove it, or another scheduler."
        )
    if at_once is not None and at_once < population:
        raise SettingError(
            f"search.max_concurrent_trials is {at_once}, but with pbt must be null or at least search.num_samples "
            f"({population}): all of the population take turns. Fix: remove it."
        )
