"""The figures that a cluster's monitoring shows, as Ray metrics: Prometheus scrapes them as `ray_wm_rllib_...`.

docs/metrics.md says what each means; `cluster/grafana-dashboard.json` draws them. Ray drops them where it runs no
metrics agent, so that a run without monitoring pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from wm_rllib.metrics import METRICS, progress_row

EXPORTED = (
    "training_iteration",
    "num_env_steps_sampled_lifetime",
    "imagination/ratio",
    "imagination/return_gap",
    "imagination/horizon",
    "imagination/staleness",
    "imagination/updates_skipped",
    "vae/reconstruction_loss",
    "mdn/nll",
    "world_model/version",
    "env_runners/episode_return_mean",
    "evaluation/episode_return_mean",
    "restarts/env_runners",
    "restarts/dreamers",
    "restarts/parameter_server",
    "faults/env_runner_errors",
    "faults/env_runners_late",
    "faults/evaluation_errors",
    "faults/dreamer_errors",
    "faults/dreamers_late",
    "faults/nodes",
    "faults/nodes_lost",
    "faults/resumes",
    "seconds/iteration",
)
STAGE_SECONDS = "wm_rllib_stage_seconds"
"""One gauge for all of `seconds/<stage>`, with the stage as a label."""
RUN, STAGE = "run", "stage"
_NO_STAGES = ("iteration", "total")


def gauge_name(metric: str) -> str:
    """Return the gauge's name of a metric; Ray puts `ray_` in front."""
    return "wm_rllib_" + metric.replace("/", "_")


class Gauges:
    """The gauges of one algorithm."""

    def __init__(self, run: str) -> None:
        """Make them.

        Args:
            run: Label that tells runs on one cluster apart.
        """
        self._run = {RUN: run}
        self._gauges = {name: Gauge(gauge_name(name), METRICS[name].meaning, (RUN,)) for name in EXPORTED}
        self._stages = Gauge(STAGE_SECONDS, METRICS["seconds/*"].meaning, (RUN, STAGE))

    def show(self, result: Mapping[str, Any]) -> None:
        """Show one iteration's result; what it did not measure keeps its last value."""
        for name, value in progress_row(result).items():
            if not isinstance(value, int | float):
                continue
            group, _, stage = name.partition("/")
            if name in self._gauges:
                self._gauges[name].set(value, self._run)
            elif group == "seconds" and stage not in _NO_STAGES:
                self._stages.set(value, {**self._run, STAGE: stage})
