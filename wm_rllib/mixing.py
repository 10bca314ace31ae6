"""The exact merge, in numbers: how many imagined rows go with how many real ones (contract 1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from numbers import Real
from typing import Literal

AUTO = "auto"
"""The ratio that the gate chooses in each iteration (`learners/gate.py`)."""
ROUNDS: Schedule = [[0, 18], [500, 18], [1500, 6]]
ROUNDS_BEFORE_AN_END = 6
"""Dream rounds of "auto". In the first iterations C has everything to learn, and where M knows how episodes end it is
worth much dreaming. Where it does not, C would settle for what costs least before a real step has met what counts."""

LARGEST_MIXED_RATIO = 0.999
"""Up to which a ratio that is not chosen by hand has real rows: n r / (1 - r) has no bound, and memory has one."""

Schedule = Sequence[Sequence[float]]
Ratio = float | Schedule | Literal["auto"]


def imagined_rows(num_real: int, ratio: float) -> int:
    """Imagined rows that make `ratio` the imagined fraction of the batch: round(n r / (1 - r)).

    Raises:
        ValueError: `ratio` is outside [0, 1); at 1 there are no real rows and the batch has a size of its own.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"ratio = {ratio} must be at least 0 and below 1.")
    return round(num_real * ratio / (1.0 - ratio))


def real_rows_for(num_imagined: int, ratio: float) -> int:
    """Real rows that fit `num_imagined` rows, when fewer of those came than were asked for: round(m (1 - r) / r).

    Raises:
        ValueError: `ratio` is outside (0, 1].
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"ratio = {ratio} must be above 0 and at most 1.")
    return round(num_imagined * (1.0 - ratio) / ratio)


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` as `parts` integers that differ by at most one, the larger first."""
    quotient, remainder = divmod(total, parts)
    return [quotient + (i < remainder) for i in range(parts)]


def split_within(total: int, limits: list[int]) -> list[int]:
    """`total` as parts of at most `limits`, as equal as these allow; all that there is if they add up to less."""
    parts, left = [0] * len(limits), min(total, sum(limits))
    while left:
        roomy = [i for i, limit in enumerate(limits) if parts[i] < limit]  # these have the same so far
        share = max(1, left // len(roomy))
        for i in roomy[:left]:
            taken = min(share, limits[i] - parts[i])
            parts[i] += taken
            left -= taken
    return parts


def split_lanes(rows: list[int], parts: int, horizon: int) -> list[list[int]]:
    """Rows for each learner as `parts` such lists, in whole dreams of `horizon` steps but for each learner's last one.

    Dreams are dealt out one by one, so that the parts differ by one dream at most; some may be left without. Evenly
    split rows would be dreams shorter than the horizon as soon as there are fewer dreams than parts.
    """
    shares = [[0] * len(rows) for _ in range(parts)]
    part = cycle(shares)
    for learner, count in enumerate(rows):
        for start in range(0, count, horizon):
            next(part)[learner] += min(horizon, count - start)
    return shares


def realised_ratio(num_real: int, num_imagined: int) -> float:
    """The imagined fraction of a merged batch; 0 for an empty one."""
    return num_imagined / (num_real + num_imagined) if num_imagined else 0.0


def ratio_at(ratio: Ratio, timestep: int) -> float:
    """The ratio at `timestep`; a schedule that has come above `LARGEST_MIXED_RATIO` on its way to 1 is there.

    Raises:
        ValueError: The ratio is "auto", which the gate decides.
    """
    if isinstance(ratio, str):
        raise ValueError(f"ratio = {ratio!r} is for the gate to decide.")
    value = value_at(ratio, timestep)
    if isinstance(ratio, Sequence) and value > LARGEST_MIXED_RATIO and max(point[1] for point in ratio) == 1.0:
        return 1.0
    return value


def value_at(value: float | Schedule, timestep: int) -> float:
    """A fixed value, or that of a schedule [[timestep, value], ...] at `timestep`.

    Between two points the value is interpolated linearly, and the last one holds from there on, as RLlib's schedules
    do. In float64: RLlib's own Scheduler goes through float32, which is rows off at ratios near 1.
    """
    if not isinstance(value, Sequence):
        return float(value)
    for (start, low), (end, high) in pairwise(value):
        if timestep < end:
            return low + (high - low) * max(0.0, (timestep - start) / (end - start))
    return float(value[-1][1])


def rounds_at(rounds: int | Schedule | str, timestep: int, *, seen_an_end: bool) -> int:
    """Dream rounds at `timestep`, rounded; "auto" dreams more once it has been seen how an episode ends."""
    if isinstance(rounds, str):
        rounds = ROUNDS if seen_an_end else ROUNDS_BEFORE_AN_END
    return round(value_at(rounds, timestep))


def may_dream(ratio: Ratio) -> bool:
    """Whether the ratio, or any point of its schedule, may ask for imagined rows."""
    if isinstance(ratio, str):
        return True
    return ratio > 0 if isinstance(ratio, (int, float, Real)) else any(value > 0 for _, value in ratio)
