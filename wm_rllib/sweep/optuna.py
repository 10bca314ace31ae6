"""Optuna's searcher for trials that are not evaluated in each iteration."""

from __future__ import annotations

from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch


class PatientOptuna(OptunaSearch):
    """OptunaSearch that takes results without the metric for what they are: not measured."""

    def __init__(self, *args: Any, **kwargs: Any):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(*args, **kwargs)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports an evaluation."""
        if self.metric in result:
            super().on_trial_result(trial_id, result)
