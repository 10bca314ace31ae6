"""The gate: how much to imagine, and how far, from how well M predicts what it was not fitted to.

Pure numbers; `models/judging.py` measures, `training/gating.py` obeys. Bounds come from the config.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

EMA_RATE = 0.3
"""Weight of the newest judgement: a few iterations decide, not one."""
CLOSED_SKILL, OPEN_SKILL = 0.1, 0.5
"""Skill one step ahead at which nothing is imagined, and from which on the ratio is at its upper bound."""
FAR_SKILL = 0.3
"""The horizon is the number of steps over which skill stays above this."""
TOLERATED_GAP = 0.5
"""Dreamed less real return, in standard deviations of real returns, that costs nothing; twice that halves the odds."""
LARGEST_GAP = 30.0
"""Up to which one judgement's gap counts, in the same units: one absurd dream must not close the gate for long."""


@dataclass(frozen=True)
class Judgement:
    """What one iteration's fresh experience said of M.

    Attributes:
        skill: By steps ahead (1 .. H), the lower of observation and reward skill; None where it was not measured.
        gap: Dreamed less real discounted return from the same states; None without a comparable window.
        gap_error: Of which the gap is within 2 by chance in nearly all iterations.
        return_scale: Standard deviation of real returns, as the critic has it once it has one.
        trust: Figures for people, by their names under trust/; the gate does not go by them.
    """

    skill: list[float | None]
    gap: float | None
    gap_error: float | None
    return_scale: float
    trust: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Bounds:
    """What the gate may choose from."""

    min_ratio: float
    max_ratio: float
    min_horizon: int
    max_horizon: int


@dataclass
class Gate:
    """Running averages of the judgements; plain values only, for the checkpoint.

    Attributes:
        skill: By steps ahead; None where it was never measured.
        gap: In standard deviations of real returns; 0 before the first one.
        gap_variance: Of that mean, by the judgements' errors.
    """

    skill: list[float | None] = field(default_factory=list)
    gap: float = 0.0
    gap_variance: float = 0.0

    def judge(self, judgement: Judgement) -> None:
        """Takes in one iteration's judgement."""
        self.skill += [None] * (len(judgement.skill) - len(self.skill))
        for step, value in enumerate(judgement.skill):
            if value is None:
                continue
            # One absurd prediction far ahead must not close the gate for ever.
            value, before = max(value, -1.0), self.skill[step]
            self.skill[step] = value if before is None else before + EMA_RATE * (value - before)
        if judgement.gap is not None and judgement.gap_error is not None:
            gap, error = _in_returns(judgement.gap, judgement.gap_error, judgement.return_scale)
            self.gap += EMA_RATE * (gap - self.gap)
            self.gap_variance = (1.0 - EMA_RATE) ** 2 * self.gap_variance + (EMA_RATE * error) ** 2

    @property
    def gap_beyond_chance(self) -> float:
        """What of the running gap chance does not explain: a small one that stays counts, a large one for once less."""
        return math.copysign(max(0.0, abs(self.gap) - 2.0 * math.sqrt(self.gap_variance)), self.gap)

    def horizon(self, bounds: Bounds) -> int:
        """The longest dream whose every step is predicted well enough, within the bounds.

        An iteration's fresh stretches may be shorter than a dream: beyond them skill is taken to fall on as it fell.
        """
        steps = enumerate(self._extended(bounds.max_horizon))
        doubtful = (step for step, value in steps if value is not None and value < FAR_SKILL)
        return min(max(next(doubtful, bounds.max_horizon), bounds.min_horizon), bounds.max_horizon)

    def _extended(self, num_steps: int) -> list[float | None]:
        """Skill up to a step that may lie beyond what was measured, on the line through the farther half of that."""
        measured = [(step, value) for step, value in enumerate(self.skill) if value is not None]
        far = measured[len(measured) // 2 :]
        if len(far) < 2:
            return list(self.skill)
        slope, intercept = statistics.linear_regression(*zip(*far, strict=True))
        last = far[-1][0] + 1
        beyond = [intercept + slope * step if slope < 0 else None for step in range(last, num_steps)]
        return [*self.skill[:last], *beyond]

    def ratio(self, bounds: Bounds) -> float:
        """The imagined fraction, within the bounds.

        The odds of an imagined row scale with skill, and fall with the square of a gap beyond what is tolerated: only
        dreams that promise too much are punished, since a policy seeks out what is promised.
        """
        if not self.skill or self.skill[0] is None:
            return bounds.min_ratio  # not judged yet
        skill = (self.skill[0] - CLOSED_SKILL) / (OPEN_SKILL - CLOSED_SKILL)
        excess = max(0.0, self.gap_beyond_chance / TOLERATED_GAP)
        share = min(max(skill, 0.0), 1.0) / max(1.0, excess * excess / 2.0)
        odds = share * bounds.max_ratio / (1.0 - bounds.max_ratio)
        return max(bounds.min_ratio, odds / (1.0 + odds))


def _in_returns(gap: float, error: float, return_scale: float) -> tuple[float, float]:
    """Gap and error in standard deviations of returns; dreams that leave all numbers promise too much."""
    if not (math.isfinite(gap) and math.isfinite(error)):
        return LARGEST_GAP, 0.0
    gap, error = gap / return_scale, error / return_scale
    if abs(gap) <= LARGEST_GAP:
        return gap, error
    return math.copysign(LARGEST_GAP, gap), error * LARGEST_GAP / abs(gap)
