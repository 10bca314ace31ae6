"""The run loop: iterations, rows, checkpoints, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from wm_rllib.metrics import Row, progress_row
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.console import Console
from wm_rllib.runs.run_folder import BEST, LAST, RunFolder
from wm_rllib.runs.signals import StopSignals
from wm_rllib.runs.writers import RowWriter


class Evaluation(Protocol):
    """What the loop reads of an evaluation."""

    @property
    def mean(self) -> float:
        """Mean return."""


class TrainableAlgorithm(Protocol):
    """What the loop needs of `WorldModelPPO`."""

    def train(self) -> dict[str, Any]:
        """Run one iteration, and return its result."""

    def evaluate_return(self, num_episodes: int) -> Evaluation:
        """Evaluate greedily on fresh episodes."""

    def cut_short(self) -> None:
        """Have the iteration end as soon as it can; called by a signal handler."""

    def save_to_path(self, path: str) -> object:
        """Write a checkpoint."""


class End(Enum):
    """Why a run ended."""

    RETURN = "return"
    STEPS = "steps"
    ITERATIONS = "iterations"
    SIGNAL = "signal"


@dataclass(frozen=True)
class StopRule:
    """When a run ends by itself.

    Attributes:
        total_timesteps: At this many real steps; None for never.
        stop_return: When an evaluation's mean and that of a second one are at least this; None for never.
        evaluation_episodes: Episodes of the second evaluation.
        iterations: After this many iterations of the mixed phase; 0: when pretraining has ended; None for never.
    """

    total_timesteps: int | None
    stop_return: float | None
    evaluation_episodes: int
    iterations: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        end: Why.
        checkpoint: The checkpoint to use: checkpoints/best where there is one.
        meta: The state at the end.
        returns: The evaluation mean that reached the stop return, and the one that confirmed it.
    """

    end: End
    checkpoint: Path
    meta: CheckpointMeta
    returns: tuple[float, float] | None = None


class TrainingLoop:
    """Trains until the rule or a signal says stop, and keeps the run folder up to date."""

    def __init__(
        self,
        algorithm: TrainableAlgorithm,
        folder: RunFolder,
        writer: RowWriter,
        console: Console,
        *,
        rule: StopRule,
        checkpoint_frequency: int,
        start: CheckpointMeta,
        settings: Mapping[str, Any],
    ) -> None:
        """Prepare a loop.

        Args:
            algorithm: Trains.
            folder: Gets the checkpoints.
            writer: Gets the rows.
            console: Shows them.
            rule: When to stop.
            checkpoint_frequency: Iterations between checkpoints.
            start: The state that training goes on from.
            settings: The resolved settings as a YAML tree, for the checkpoints.
        """
        self._algorithm = algorithm
        self._folder = folder
        self._writer = writer
        self._console = console
        self._rule = rule
        self._frequency = checkpoint_frequency
        self._meta = start
        self._settings = settings
        self._seconds_before = start.seconds
        self._started = time.monotonic()

    def run(self, signals: StopSignals) -> Outcome:
        """Train to the end.

        Each iteration writes its row before its checkpoint: killed in between, the row is cut away on resume,
        where the other order would leave a gap.
        """
        end: End | None = None
        row: Row = {}
        with signals.held(self._algorithm.cut_short):
            while end is None:
                row = self._iterate()
                end = self._end(row, signals)
                self._writer.write(row)
                self._console.show(row)
                self._save(row, end)
        best = checkpoints.find(self._folder.checkpoints, BEST)
        last = self._folder.checkpoints / LAST
        returns = _returns(row) if end is End.RETURN else None
        return Outcome(end, last if best is None else best, self._meta, returns)

    def _iterate(self) -> Row:
        row = progress_row(self._algorithm.train())
        row["seconds/total"] = self._seconds_before + time.monotonic() - self._started
        return row

    def _end(self, row: Row, signals: StopSignals) -> End | None:
        """Return whether and why the run ends here; adds the confirming evaluation to the row."""
        goal, total = self._rule.stop_return, self._rule.total_timesteps
        mean = _number(row, "evaluation/episode_return_mean")
        # After a signal seconds are left to write the checkpoint: the run that goes on from it confirms its next one.
        if signals.received is None and goal is not None and mean is not None and mean >= goal:
            confirmation = float(self._algorithm.evaluate_return(self._rule.evaluation_episodes).mean)
            row["evaluation/confirmation_return_mean"] = confirmation
            if confirmation >= goal:
                return End.RETURN
        if signals.received is not None:
            return End.SIGNAL  # of an iteration that was cut short, what it owes is still to come
        if total is not None and (_number(row, "num_env_steps_sampled_lifetime") or 0) >= total:
            return End.STEPS
        iterations = _number(row, "mixed_iterations")
        if self._rule.iterations is not None and iterations is not None and iterations >= self._rule.iterations:
            return End.ITERATIONS
        return None

    def _save(self, row: Row, end: End | None) -> None:
        """Write the checkpoints that are due."""
        mean, before = _number(row, "evaluation/episode_return_mean"), self._meta.best_return
        better = mean is not None and (before is None or mean > before or end is End.RETURN)
        iteration = int(_number(row, "training_iteration") or 0)
        self._meta = CheckpointMeta(
            training_iteration=iteration,
            num_env_steps=int(_number(row, "num_env_steps_sampled_lifetime") or 0),
            seconds=_number(row, "seconds/total") or 0.0,
            best_return=mean if better else before,
            finished=end not in (None, End.SIGNAL),
        )
        due = [LAST] if end is not None or iteration % self._frequency == 0 else []
        due += [BEST] if better else []
        folder, written = self._folder.checkpoints, None
        for name in due:
            if written is None:
                written = checkpoints.write(folder, name, self._meta, self._settings, self._save_algorithm)
            else:
                checkpoints.copy(written, folder, name)
        if due:
            self._folder.share()

    def _save_algorithm(self, path: Path) -> None:
        self._algorithm.save_to_path(str(path.resolve()))


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return value if isinstance(value, int | float) else None


def _returns(row: Row) -> tuple[float, float]:
    first, second = (_number(row, f"evaluation/{name}_return_mean") for name in ("episode", "confirmation"))
    assert first is not None and second is not None
    return first, second
