"""A run's history as its folder has it, whatever state the run is in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wm_rllib.metrics import Row, Scalar
from wm_rllib.runs.checkpoints import find, read_meta, read_settings
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.filesystems import is_uri
from wm_rllib.runs.run_folder import BEST, LAST, TRIALS, RunFolder
from wm_rllib.settings.settings import SettingError, parse_tree
from wm_rllib.settings.yaml_files import read_yaml

STEPS, ITERATIONS = "num_env_steps_sampled_lifetime", "training_iteration"
ONLINE = "world_model.data_collection.online"
WHOLES = ("seconds/iteration", "seconds/total")


class RunHistory:
    """Rows of progress.jsonl, and the settings.

    Args:
        path: The run folder.
        rows: Its iterations, in order.
        settings: Resolved settings by dotted path; empty if they are missing.
    """

    def __init__(self, path: Path, rows: Sequence[Row], settings: Mapping[str, Any]):
        self.path, self.rows, self.settings = path, rows, settings

    @property
    def env_id(self) -> str:
        """Name of the environment."""
        return str(self.settings.get("env.id", "unknown environment"))

    @property
    def stop_return(self) -> float | None:
        """Evaluation return that ends the run."""
        return self.settings.get("stop.return")

    @property
    def axis(self) -> str:
        """What figures are drawn over: real steps or, where these stand still in the mixed phase, iterations."""
        return "real steps" if self.settings.get(ONLINE, True) else "iterations"

    @property
    def steps(self) -> list[float]:
        """Where on that axis each iteration ended."""
        name = STEPS if self.axis == "real steps" else ITERATIONS
        return [float(row.get(name) or 0.0) for row in self.rows]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Places on the axis and values of a metric, where it was measured."""
        pairs = [(step, number(row.get(name))) for step, row in zip(self.steps, self.rows, strict=True)]
        found = [(step, value) for step, value in pairs if value is not None]
        return [step for step, _ in found], [value for _, value in found]

    def values(self, name: str, at: Sequence[float]) -> list[float]:
        """Values of a metric at those places on the axis; 0 where it is missing."""
        known = dict(zip(*self.series(name), strict=True))
        return [known.get(step, 0.0) for step in at]

    def filled(self, name: str) -> list[float]:
        """Values of a metric in every iteration; 0 where it is missing."""
        return [number(row.get(name)) or 0.0 for row in self.rows]

    def last(self, name: str) -> Scalar:
        """The newest value of a metric."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    @property
    def phases(self) -> list[tuple[str, float, float]]:
        """Each phase in order: its name, and where on the axis it began and ended."""
        found: list[tuple[str, float, float]] = []
        before = 0.0
        for row, steps in zip(self.rows, self.steps, strict=True):
            name = str(row.get("phase") or "unknown")
            if found and found[-1][0] == name:
                found[-1] = (name, found[-1][1], steps)
            else:
                found.append((name, before, steps))
            before = steps
        return found

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds of every stage in all, the longest first."""
        names = {name for row in self.rows for name in row if name.startswith("seconds/") and name not in WHOLES}
        totals = {name.removeprefix("seconds/"): sum(self.filled(name)) for name in names}
        return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))

    @property
    def counters(self) -> dict[str, Scalar]:
        """Restarts, faults and what was lost, as of the newest iteration; lost rows and updates summed."""
        names = sorted({name for row in self.rows for name in row if name.startswith(("restarts/", "faults/"))})
        counts: dict[str, Scalar] = {name: self.last(name) for name in names}
        for name in ("imagination/lost_rows", "imagination/dropped_rows", "imagination/updates_skipped"):
            counts[name] = sum(self.filled(name))
        return counts

    @property
    def state(self) -> str:
        """What is known of whether the run has ended."""
        last = find(self.path / "checkpoints", LAST)
        meta = read_meta(last) if last else None
        newest = self.last("training_iteration")
        if meta is not None and meta.finished and meta.training_iteration == newest:
            return "ended"
        return "not ended: running, or stopped before its end"


def number(value: Scalar) -> float | None:
    """A metric's value as a number, if it is one."""
    return float(value) if isinstance(value, int | float) else None


def read_run(place: str) -> RunHistory:
    """Reads a run folder; a line that is still being written is left out.

    Raises:
        CommandError: If this is no run folder.
    """
    if is_uri(place):
        raise CommandError(f"{place} is a URI, but a report needs a local folder. Fix: copy the run folder here first.")
    folder = RunFolder(place)
    if not folder.path.is_dir():
        raise CommandError(f"run folder {place} does not exist. Fix: give a folder that `train` wrote, like runs/NAME.")
    if not folder.progress.is_file():
        raise CommandError(f"{place} is no run folder: it has no progress.jsonl. Fix: {_hint(folder.path)}.")
    return RunHistory(folder.path, _read_rows(folder.progress), _settings(folder))


def _hint(path: Path) -> str:
    if path.parent.name == "checkpoints" and (path.parent.parent / "progress.jsonl").is_file():
        return f"{path} is a checkpoint; give its run folder, {path.parent.parent}"
    if (path / TRIALS).is_dir():
        return f"{path} is a sweep's; train from its checkpoints/best, or give the folder of a run of `train`"
    return "give a folder that `train` wrote, like runs/NAME"


def _read_rows(progress: Path) -> list[Row]:
    rows: list[Row] = []
    for line in progress.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            raise CommandError(
                f"{progress} has a line that is no JSON: {line[:60]!r}. Fix: remove it; was the file edited?"
            ) from None
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _settings(folder: RunFolder) -> dict[str, Any]:
    """The run's settings; those of a checkpoint where config.yaml is missing; none if neither can be read."""
    try:
        if folder.config.is_file():
            return parse_tree(read_yaml(folder.config))
        checkpoint = find(folder.checkpoints, BEST) or find(folder.checkpoints, LAST)
        return read_settings(checkpoint) if checkpoint else {}
    except SettingError:  # of another version; the report can do without
        return {}
