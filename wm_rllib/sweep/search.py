"""The section `search` of a sweep's YAML: which trials are tried, and which of them go on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from wm_rllib.settings.settings import SettingError, check_value, to_nested
from wm_rllib.settings.table import Setting
from wm_rllib.settings.types import number, one_of, text, whole

SECTION = "search"
TIME_ATTR = "num_env_steps_sampled_lifetime"
"""What schedulers and stop.total_timesteps count: real env steps."""
ASHA, PBT, NONE = "asha", "pbt", "none"
RANDOM, OPTUNA = "random", "optuna"

_METRICS = tuple(f"evaluation/episode_return_{what}" for what in ("mean", "min", "max"))

# Path below `search`, type, default; a default of None is what the last column says.
_ROWS: tuple[tuple[str, Any, Any, str], ...] = (
    ("scheduler", one_of(ASHA, PBT, NONE), ASHA, "Which trials go on."),
    ("searcher", one_of(RANDOM, OPTUNA), RANDOM, "Where new trials' values come from."),
    ("metric", one_of(*_METRICS), _METRICS[0], "What trials are compared by."),
    ("mode", one_of("max", "min"), "max", "Whether more of it is better."),
    ("num_samples", whole(1), 8, "Trials, of each point of a grid; with pbt the population."),
    ("max_concurrent_trials", whole(1, optional=True), None, "Trials at a time; null: as many as the CPUs allow."),
    ("max_failures", whole(0), 1, "How often a trial that fails goes on from its last checkpoint."),
    ("asha.grace_period", whole(1, optional=True), None, "Real steps no trial is stopped before; null: one interval."),
    ("asha.reduction_factor", number(above=1), 3, "Of so many trials at a rung one goes on."),
    ("asha.brackets", whole(1), 1, "Brackets, each with a later first rung."),
    ("pbt.perturbation_interval", whole(1, optional=True), None, "Real steps between exploits; null: one interval."),
    ("pbt.quantile_fraction", number(0, 0.5), 0.25, "Share of the population that takes over from the best as many."),
    ("pbt.resample_probability", number(0, 1), 0.25, "Chance that a value is drawn anew rather than changed."),
    ("wandb.project", text(), None, "Log to this project of Weights & Biases."),
    ("mlflow.experiment_name", text(), None, "Log to this experiment of MLflow."),
    ("mlflow.tracking_uri", text(), None, "Where MLflow's server or folder is."),
)
TABLE: dict[str, Setting] = {path: Setting(f"{SECTION}.{path}", None, kind, doc) for path, kind, _, doc in _ROWS}
DEFAULTS: dict[str, Any] = {path: default for path, _, default, _ in _ROWS}
_SECTIONS = frozenset(path.partition(".")[0] for path in TABLE if "." in path)


def parse_search(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the section by the path below it, defaults included.

    Args:
        given: The section's values by path, see `flat_search`.

    Raises:
        SettingError: For an unknown key or a value that is not allowed.
    """
    return DEFAULTS | {path: check_value(TABLE[path], value) for path, value in given.items()}


def flat_search(section: Any) -> dict[str, Any]:
    """Return the values of the section `search` by the path below it, not checked yet.

    Raises:
        SettingError: For an unknown key.
    """
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise SettingError(
            f"{SECTION} is {section!r}, but must be a section with keys. Fix: see tune_configs/asha.yaml."
        )
    return dict(_leaves(section, ""))


def _leaves(section: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in TABLE:
            yield path, value
        elif path in _SECTIONS and isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif path in _SECTIONS and value is None:
            continue
        elif path in _SECTIONS:
            keys = ", ".join(row.rpartition(".")[2] for row in TABLE if row.startswith(f"{path}."))
            raise SettingError(
                f"{SECTION}.{path} is {value!r}, but must be a section. Fix: give it keys of its own ({keys})."
            )
        else:
            raise SettingError(unknown_message(path))


def unknown_message(path: str) -> str:
    """Return what to say about a path below `search` that does not exist."""
    leaves = {row.rpartition(".")[2]: row for row in TABLE}
    begun = [row for row in TABLE if row.startswith(path)]
    near = (
        begun
        or difflib.get_close_matches(path, TABLE, n=1)
        or [leaves[leaf] for leaf in difflib.get_close_matches(path.rpartition(".")[2], leaves, n=1)]
    )
    hint = f"did you mean {SECTION}.{near[0]}?" if near else f"use one of {', '.join(TABLE)}."
    return f"unknown setting {SECTION}.{path}. Fix: {hint}"


def search_tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as the section stands in YAML; what is null by default is left out."""
    return to_nested({path: values[path] for path in TABLE if values[path] is not None})
