"""Weights & Biases and MLflow, through Ray's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from wm_rllib.sweep.search import OPTUNA


def missing_package(search: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what the section asks for and the package that it lacks, or None."""
    wanted = {
        "search.searcher: optuna": (search["searcher"] == OPTUNA, "optuna"),
        "search.wandb": (search["wandb.project"], "wandb"),
        "search.mlflow": (search["mlflow.experiment_name"], "mlflow"),
    }
    return next(((what, name) for what, (asked, name) in wanted.items() if asked and find_spec(name) is None), None)


def make_loggers(search: Mapping[str, Any], group: str) -> list[Any]:
    """The callbacks that the section asks for.

    Args:
        search: The section.
        group: What the runs of this sweep have in common at Weights & Biases.
    """
    loggers: list[Any] = []
    if search["wandb.project"]:
        from ray.air.integrations.wandb import WandbLoggerCallback

        loggers.append(WandbLoggerCallback(project=search["wandb.project"], group=group))
    if search["mlflow.experiment_name"]:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        uri, name = search["mlflow.tracking_uri"], search["mlflow.experiment_name"]
        loggers.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name=name))
    return loggers
