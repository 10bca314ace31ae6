"""What a sweep shows while it runs: trials that start, evaluations, and what works after an exploit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.utils.util import flatten_dict

from wm_rllib.learners.learning_rates import LEARNING_RATES
from wm_rllib.sweep.search import TIME_ATTR


def format_value(value: Any) -> str:
    """Return a sampled value as tables and lines show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class SweepProgress(Callback):
    """Prints plain lines; Tune keeps it in the sweep's folder, so that it holds plain values alone."""

    def __init__(self, knobs: Mapping[str, str], metric: str, total_steps: int):
        """Prepare.

        Args:
            knobs: Paths of the searched settings, by their attribute.
            metric: What is shown of an evaluation.
            total_steps: Real steps of a trial.
        """
        self._knobs = dict(knobs)
        self._metric = metric
        self._total_steps = total_steps
        self._values: dict[str, dict[str, Any]] = {}
        self._changed: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Says what a trial tries; again when it has been changed or goes on."""
        values = {attr: trial.config[attr] for attr in self._knobs}
        before = self._values.get(trial.trial_id)
        if before is not None and before != values:
            self._changed.add(trial.trial_id)
            changes = [
                f"{path} {format_value(before[attr])} -> {format_value(values[attr])}"
                for attr, path in self._knobs.items()
                if values[attr] != before[attr]
            ]
            self._say(trial, f"changed: {', '.join(changes)}")
        else:
            shown = ", ".join(f"{path} {format_value(values[attr])}" for attr, path in self._knobs.items())
            self._say(trial, f"{'goes on' if trial.has_checkpoint() else 'starts'}: {shown}")
        self._values[trial.trial_id] = values

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Shows an evaluation, and after an exploit the rates that the optimisers work with."""
        rates = result["learning_rates"]
        if trial.trial_id in self._changed and None not in rates.values():
            self._changed.remove(trial.trial_id)
            shown = ", ".join(f"{name} {format_value(rates[name])}" for name in LEARNING_RATES)
            self._say(trial, f"effective learning rates: {shown}")
        score = flatten_dict(result).get(self._metric)
        if score is not None:
            self._say(trial, f"steps {result[TIME_ATTR]:,}/{self._total_steps:,}  {self._metric} {score:.1f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Says that a trial has ended."""
        steps = (trial.last_result or {}).get(TIME_ATTR, 0)
        self._say(trial, f"ended after {steps:,} real steps")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Says that a trial has failed."""
        self._say(trial, f"failed: {trial.error_file}")

    def get_state(self) -> dict[str, Any]:
        """What trials have, so that a sweep that goes on can tell a change."""
        return {"values": self._values, "changed": sorted(self._changed)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores `get_state`."""
        self._values, self._changed = state["values"], set(state["changed"])

    def _say(self, trial: Any, message: str) -> None:
        print(f"trial {trial.trial_id}  {message}", flush=True)
