"""What the algorithm itself must remember: phase, counters and versions. All of it is in the checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from wm_rllib.learners.gate import Gate

MAX_REMEMBERED_PUBLICATIONS = 1000


class Phase(str, Enum):
    """The three phases, in order."""

    RANDOM = "random"
    PRETRAIN = "pretrain"
    MIXED = "mixed"


@dataclass
class TrainingState:
    """Plain values only.

    Attributes:
        phase: Which phase the next iteration belongs to.
        num_env_steps: Real env steps so far, random ones included, evaluation not.
        world_model_version: Grows by one with each fit.
        policy_version: Grows by one with each policy update.
        sequence: Number of the newest record at the parameter server; never goes back.
        num_ends: Episodes that have terminated so far.
        num_imagined_rows: Imagined rows in policy updates so far.
        published_at: Iteration in which each recent record was published, by sequence number.
        pending_updates: Fraction of a world-model gradient step that the next fit owes.
        num_evaluations: Evaluations so far; each plays episodes of its own.
        evaluated_at: Real env steps at the last periodic evaluation.
        mixed_iterations: Iterations of the mixed phase so far, the present one included.
        evaluated_at_iteration: The same at the last periodic evaluation.
        banked_rows: Real rows that are counted and in the replay, and whose PPO update is still to come.
        server_restarts: How often the parameter server was found in another process.
        transferred: Whether V and M of another run were taken over; a resumed run must not do so again.
        pretraining: Gradient steps that pretraining has done so far, by the fit's name.
        resumes: How often training went on from a checkpoint.
        gate: What the gate knows of M.
        counted: Restarts and faults up to a checkpoint, less those of the process that went on from it.
    """

    phase: Phase = Phase.RANDOM
    num_env_steps: int = 0
    num_ends: int = 0
    num_imagined_rows: int = 0
    world_model_version: int = 0
    policy_version: int = 0
    sequence: int = 0
    published_at: dict[int, int] = field(default_factory=dict)
    pending_updates: float = 0.0
    num_evaluations: int = 0
    evaluated_at: int = 0
    mixed_iterations: int = 0
    evaluated_at_iteration: int = 0
    banked_rows: int = 0
    server_restarts: int = 0
    transferred: bool = False
    pretraining: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    gate: Gate = field(default_factory=Gate)
    counted: dict[str, int] = field(default_factory=dict)

    def evaluation_is_due(self, steps: int | None, iterations: int | None) -> bool:
        """Whether an evaluation is due now.

        Args:
            steps: Real env steps between evaluations; None for none.
            iterations: Iterations of the mixed phase between evaluations; None for none.
        """
        if self.phase is not Phase.MIXED:
            return False
        return _has_passed(self.evaluated_at, self.num_env_steps, steps) or _has_passed(
            self.evaluated_at_iteration, self.mixed_iterations, iterations
        )

    def note_evaluation(self) -> None:
        """Records that a periodic evaluation takes place now."""
        self.evaluated_at, self.evaluated_at_iteration = self.num_env_steps, self.mixed_iterations

    def note_publication(self, iteration: int) -> None:
        """Records that `sequence` was published in `iteration`."""
        self.published_at[self.sequence] = iteration
        while len(self.published_at) > MAX_REMEMBERED_PUBLICATIONS:
            del self.published_at[min(self.published_at)]

    def staleness(self, sequence: int) -> int:
        """Iterations by which a record lags the newest one; records of one iteration are equally fresh."""
        newest = self.published_at.get(self.sequence, 0)
        oldest_known = min(self.published_at.values(), default=0)
        return newest - self.published_at.get(sequence, oldest_known)

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**dataclasses.asdict(self), "phase": self.phase.value}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a checkpoint's values; the sequence number only ever grows (contract 5)."""
        newest = max(self.sequence, state["sequence"])
        for name, value in state.items():
            setattr(self, name, value)
        self.phase, self.sequence = Phase(state["phase"]), newest
        self.published_at = dict(self.published_at)  # grows from here on, and the checkpoint's must not
        self.pretraining = dict(self.pretraining)
        gate = state["gate"]
        self.gate = Gate(list(gate["skill"]), gate["gap"], gate.get("gap_variance", 0.0))


def _has_passed(before: int, now: int, interval: int | None) -> bool:
    """Whether a multiple of the interval lies after `before` and up to `now`."""
    return interval is not None and now // interval > before // interval
