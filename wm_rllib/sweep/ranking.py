"""The trials of a sweep, best first: a table for the console, a CSV file, and the best one's checkpoint."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm_rllib.sweep.progress import format_value
from wm_rllib.sweep.search import TIME_ATTR


@dataclass(frozen=True)
class RankedTrial:
    """A trial at its best evaluation.

    Attributes:
        trial_id: Tune's name for it.
        score: Best evaluation; None if it had none.
        steps: Real steps at that evaluation.
        total_steps: Real steps in all.
        iterations: Training iterations at that evaluation.
        seconds: Seconds of training at that evaluation.
        status: finished, stopped (by the scheduler or at stop.return) or failed.
        config: The trial's config at that evaluation; PBT changes it on the way.
        checkpoint: Tune's checkpoint of that evaluation.
        others: Its other checkpoints but for the last.
        newest: Path of the last.
    """

    trial_id: str
    score: float | None
    steps: int
    total_steps: int
    iterations: int
    seconds: float
    status: str
    config: dict[str, Any]
    checkpoint: Any
    others: list[Any]
    newest: str | None = None


def rank(results: Any, metric: str, mode: str, total_steps: int) -> list[RankedTrial]:
    """Return the trials of Tune's results, best first; of equals the one with fewer real steps; without a score last.

    A trial that failed keeps what it had reached. The order is the same each time: Tune's own changes when a sweep
    goes on.
    """
    sign = 1.0 if mode == "max" else -1.0
    trials = [_ranked(result, metric.split("/"), sign, total_steps) for result in results]
    return sorted(
        trials,
        key=lambda trial: (math.inf if trial.score is None else -sign * trial.score, trial.steps, trial.trial_id),
    )


def _ranked(result: Any, metric: Sequence[str], sign: float, total_steps: int) -> RankedTrial:
    scored = [
        (score, checkpoint, metrics)
        for checkpoint, metrics in result.best_checkpoints
        if (score := _lookup(metrics, metric)) is not None
    ]
    last = result.metrics or {}
    steps = int(last.get(TIME_ATTR, 0))
    status = "failed" if result.error else "finished" if steps >= total_steps else "stopped"
    trial_id = Path(result.path).name
    if not scored:
        return RankedTrial(trial_id, None, 0, steps, 0, 0.0, status, dict(result.config or {}), None, [])
    score, checkpoint, at_best = max(scored, key=lambda entry: (sign * entry[0], -entry[2][TIME_ATTR]))
    newest = None if result.checkpoint is None else result.checkpoint.path
    others = [other for _, other, _ in scored if other.path not in (checkpoint.path, newest)]
    return RankedTrial(
        trial_id=trial_id,
        score=score,
        steps=int(at_best[TIME_ATTR]),
        total_steps=steps,
        iterations=int(at_best["training_iteration"]),
        seconds=float(at_best["time_total_s"]),
        status=status,
        config=dict(at_best["config"]),
        checkpoint=checkpoint,
        others=others,
        newest=newest,
    )


def _lookup(tree: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return float(tree) if isinstance(tree, int | float) and math.isfinite(tree) else None


def _rows(trials: Sequence[RankedTrial], knobs: Mapping[str, str], metric: str) -> list[list[Any]]:
    header = ["trial", metric, "at_steps", "real_steps", "status", *knobs.values()]
    return [header] + [
        [trial.trial_id, trial.score, trial.steps, trial.total_steps, trial.status]
        + [trial.config.get(attr) for attr in knobs]
        for trial in trials
    ]


def table(trials: Sequence[RankedTrial], knobs: Mapping[str, str], metric: str) -> list[str]:
    """Return the lines of the table.

    Args:
        trials: In order.
        knobs: Paths of the searched settings, by their attribute.
        metric: Name of the score.
    """
    rows = _rows(trials, _unique(knobs), metric.rpartition("/")[2])
    texts = [["-" if value is None else format_value(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def _unique(knobs: Mapping[str, str]) -> dict[str, str]:
    """Return short column names: the last part of each path, with the section before it where two are the same."""
    leaves = [path.rpartition(".")[2] for path in knobs.values()]
    short = {}
    for attr, path in knobs.items():
        *_, section, leaf = ["", *path.split(".")]
        short[attr] = leaf if leaves.count(leaf) == 1 else f"{section}_{leaf}"
    return short


def write_csv(path: Path, trials: Sequence[RankedTrial], knobs: Mapping[str, str], metric: str) -> None:
    """Write the table to a CSV file, with full paths and precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_rows(trials, knobs, metric))


def prune(trials: Sequence[RankedTrial]) -> None:
    """Remove checkpoints that are neither a trial's best nor its last; schedulers may need them until a sweep's end.

    After an exploit the last one of a trial lies in the folder of the trial that it took over from.
    """
    from pyarrow.fs import FileType

    kept = {trial.newest for trial in trials} | {trial.checkpoint.path for trial in trials if trial.checkpoint}
    for trial in trials:
        for checkpoint in trial.others:
            if checkpoint.path in kept:
                continue
            if checkpoint.filesystem.get_file_info(checkpoint.path).type is not FileType.NotFound:
                checkpoint.filesystem.delete_dir(checkpoint.path)
