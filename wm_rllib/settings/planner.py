"""What a user may set of a planner, with ranges, in Python as on the command line. Nothing here imports Ray."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from wm_rllib.models.search import SearchConfig
from wm_rllib.settings.settings import SettingError, check_value
from wm_rllib.settings.table import Setting
from wm_rllib.settings.types import boolean, number, one_of, whole

PLANNER_SETTINGS = {
    setting.path: setting
    for setting in (
        Setting("planner", None, one_of("random", "cem", "mppi"), "How candidates are chosen."),
        Setting("horizon", None, whole(1), "Actions of a plan."),
        Setting("num_samples", None, whole(1), "Candidates of an iteration."),
        Setting("num_iterations", None, whole(1), "Iterations of a decision."),
        Setting("num_particles", None, whole(1), "Runs of each candidate through M."),
        Setting("temperature", None, number(0), "Temperature of M's mixture; 0: its most probable mean."),
        Setting("critic", None, boolean(), "Whether the critic says what comes after the horizon."),
        Setting("elite_fraction", None, number(0, 1), "Of the candidates that CEM goes on from."),
        Setting("mppi_temperature", None, number(above=0), "In standard deviations of the candidates' returns."),
    )
}


def search_config(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> SearchConfig:
    """The checked settings of a planner; what is not given has its default.

    Args:
        values: By the names of `SearchConfig`.
        names: What the user calls a setting, where that is not its name.

    Raises:
        SettingError: For an unknown name or a value that is not allowed.
    """
    for name in values:
        if name not in PLANNER_SETTINGS:
            near = difflib.get_close_matches(name, PLANNER_SETTINGS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(PLANNER_SETTINGS)}."
            raise SettingError(f"a planner has no setting {name}. Fix: {hint}")
    called = {name: (names or {}).get(name, name) for name in values}
    checked = {name: check_value(PLANNER_SETTINGS[name], value, called[name]) for name, value in values.items()}
    return SearchConfig(**checked)
