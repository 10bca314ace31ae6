"""Where the rows go: progress.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from wm_rllib.metrics import Row


class RowWriter:
    """Writes each iteration's row to progress.jsonl and, unless it is turned off, to TensorBoard."""

    def __init__(
        self,
        progress: Path,
        tensorboard: Path | None,
        purge_step: int = 0,
        axis: str = "num_env_steps_sampled_lifetime",
    ) -> None:
        """Open both.

        Args:
            progress: The JSONL file; lines are appended.
            tensorboard: Folder of the event files; None for none.
            purge_step: TensorBoard hides what earlier event files in the folder hold from this step of its axis on.
            axis: The metric that TensorBoard draws over.
        """
        self._axis = axis
        self._progress = progress.open("a", encoding="utf-8")
        self._events = None if tensorboard is None else SummaryWriter(logdir=str(tensorboard), purge_step=purge_step)

    def write(self, row: Row) -> None:
        """Write one row; it is on its way to the disk when this returns."""
        self._progress.write(json.dumps(row, allow_nan=False) + "\n")
        self._progress.flush()
        if self._events is None:
            return
        step = row[self._axis] or 0
        for name, value in row.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Close both."""
        self._progress.close()
        if self._events is not None:
            self._events.close()
