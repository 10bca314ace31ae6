"""From raw results to figures: steps and seconds to the threshold, returns at budgets, medians and quartiles.

A run that ends unsolved has not taken "as many steps as it ran" but more. It counts as more than any solved run; where
a median or quartile falls on such runs, only a lower bound is known, and only that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from wm_rllib.benchmark.measuring import Point, crosses, is_confirmed
from wm_rllib.benchmark.store import Result


@dataclass(frozen=True)
class Bound:
    """A number, or what a number is known to exceed.

    Attributes:
        value: The number, or its lower bound.
        is_exact: Whether it is the number itself.
    """

    value: float
    is_exact: bool = True


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of several seeds."""

    median: Bound
    low: Bound
    high: Bound


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile by linear interpolation, as numpy's default; infinities are allowed.

    Args:
        values: At least one number, in any order.
        share: From 0 to 1.
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    weight = position - below
    if weight == 0.0:
        return ordered[below]
    low, high = ordered[below], ordered[below + 1]
    return high if math.isinf(high) else low + weight * (high - low)


def bounded_quantile(values: Sequence[Bound], share: float) -> Bound:
    """Return a quantile where inexact values count as more than all exact ones."""
    pessimistic = quantile([bound.value if bound.is_exact else math.inf for bound in values], share)
    if math.isfinite(pessimistic):
        return Bound(pessimistic)
    return Bound(quantile([bound.value for bound in values], share), is_exact=False)


def spread(values: Sequence[Bound]) -> Spread:
    """Return median and quartiles."""
    return Spread(*(bounded_quantile(values, share) for share in (0.5, 0.25, 0.75)))


def first(result: Result, *, confirmed: bool) -> Point | None:
    """Return the first evaluation at the threshold, or the first one that fresh episodes confirmed; None if none is."""
    test = is_confirmed if confirmed else crosses
    return next((point for point in result.curve if test(point, result.job.measure)), None)


def _at_threshold(result: Result, figure: Callable[[Point], float], *, confirmed: bool) -> Bound:
    found = first(result, confirmed=confirmed)
    if found is not None:
        return Bound(figure(found))
    return Bound(figure(result.curve[-1]) if result.curve else 0.0, is_exact=False)


def steps_to_threshold(result: Result, *, confirmed: bool) -> Bound:
    """Return the real steps to the threshold; the steps of the last evaluation as a lower bound if unsolved."""
    return _at_threshold(result, lambda point: float(point.steps), confirmed=confirmed)


def seconds_to_threshold(result: Result, *, confirmed: bool) -> Bound:
    """Return the seconds of training to the threshold; those of the last evaluation as a lower bound if unsolved."""
    return _at_threshold(result, lambda point: point.train_seconds, confirmed=confirmed)


def return_at(result: Result, budget: int) -> float | None:
    """Return the mean return of the last evaluation within a budget of real steps.

    None if there is none, or if the run ended before the budget: what it would have become is not known.
    """
    if not result.curve or result.curve[-1].steps < budget:
        return None
    within = [point for point in result.curve if point.steps <= budget]
    return within[-1].mean if within else None


@dataclass(frozen=True)
class Group:
    """All seeds of one contender in one environment, in the order of the seeds."""

    env_id: str
    contender: str
    results: tuple[Result, ...]

    def steps(self, *, confirmed: bool) -> list[Bound]:
        """Steps to the threshold, a seed each."""
        return [steps_to_threshold(result, confirmed=confirmed) for result in self.results]

    def seconds(self, *, confirmed: bool) -> list[Bound]:
        """Seconds to the threshold, a seed each."""
        return [seconds_to_threshold(result, confirmed=confirmed) for result in self.results]

    def returns_at(self, budget: int) -> list[float]:
        """Returns at a budget, of the seeds that have one."""
        return [value for result in self.results if (value := return_at(result, budget)) is not None]

    @property
    def has_threshold(self) -> bool:
        """Whether there is a return that counts as solved."""
        return all(result.job.measure.threshold is not None for result in self.results)


def group_results(results: Iterable[Result]) -> dict[str, list[Group]]:
    """Return the groups of each environment: those that solve it first, first."""
    members: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        members.setdefault((result.job.env_id, result.job.contender), []).append(result)
    environments: dict[str, list[Group]] = {}
    for (env_id, contender), found in sorted(members.items()):
        ordered = tuple(sorted(found, key=lambda result: result.job.seed))
        environments.setdefault(env_id, []).append(Group(env_id, contender, ordered))
    return {env_id: sorted(groups, key=_rank) for env_id, groups in environments.items()}


def _rank(group: Group) -> tuple[bool, float, str]:
    median = bounded_quantile(group.steps(confirmed=True), 0.5)
    return not median.is_exact, median.value, group.contender
