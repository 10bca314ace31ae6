"""The gate: how much is imagined, and how far, from what judgements say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from wm_rllib.learners.gate import (
    CLOSED_SKILL,
    EMA_RATE,
    FAR_SKILL,
    LARGEST_GAP,
    OPEN_SKILL,
    TOLERATED_GAP,
    Bounds,
    Gate,
    Judgement,
)
from wm_rllib.training.state import TrainingState

BOUNDS = Bounds(min_ratio=0.0, max_ratio=0.9, min_horizon=2, max_horizon=6)


def judged(*skill: float | None, gap: float | None = None, error: float | None = None, scale: float = 1.0) -> Judgement:
    return Judgement(list(skill), gap, error, scale)


def gate_after(*judgements: Judgement) -> Gate:
    gate = Gate()
    for judgement in judgements:
        gate.judge(judgement)
    return gate


@pytest.mark.parametrize("bounds", [BOUNDS, Bounds(0.2, 0.5, 3, 9)])
@pytest.mark.parametrize(
    "gate", [Gate(), gate_after(judged()), gate_after(judged(None, 0.9))], ids=["new", "empty", "None"]
)
def test_unjudged_it_is_closed_and_looks_far(gate: Gate, bounds: Bounds):
    assert gate.ratio(bounds) == bounds.min_ratio
    assert gate.horizon(bounds) == bounds.max_horizon


@pytest.mark.parametrize("skill", [CLOSED_SKILL, 0.0, -5.0])
def test_it_is_closed_at_low_skill(skill: float):
    assert gate_after(judged(skill)).ratio(BOUNDS) == 0.0
    assert gate_after(judged(skill)).ratio(dataclasses.replace(BOUNDS, min_ratio=0.3)) == 0.3


@pytest.mark.parametrize("skill", [OPEN_SKILL, 0.7, 1.0])
def test_it_is_open_at_high_skill(skill: float):
    assert gate_after(judged(skill)).ratio(BOUNDS) == pytest.approx(0.9)


def test_the_odds_scale_with_skill_between_them():
    halfway = gate_after(judged((CLOSED_SKILL + OPEN_SKILL) / 2))
    assert halfway.ratio(BOUNDS) == pytest.approx(4.5 / 5.5)  # half of 9 to 1
    ratios = [gate_after(judged(skill / 100)).ratio(BOUNDS) for skill in range(10, 51)]
    assert ratios == sorted(ratios) and len(set(ratios)) == len(ratios)


@pytest.mark.parametrize(
    ("skill", "horizon"),
    [
        ((0.9, 0.8, 0.7, 0.5, 0.2, 0.1), 4),
        ((0.9, 0.8, 0.7, FAR_SKILL, 0.29, 0.9), 4),
        ((0.9, 0.2, 0.9, 0.9), 2),
        ((0.1, 0.1), 2),
        ((0.9,) * 6, 6),
        ((0.9,) * 10, 6),
        ((0.9, 0.9, 0.9), 6),
        ((0.9, None, 0.9, 0.1), 3),
    ],
)
def test_the_horizon_is_where_skill_falls(skill: tuple[float | None, ...], horizon: int):
    assert gate_after(judged(*skill)).horizon(BOUNDS) == horizon


def test_beyond_what_was_measured_skill_falls_on_as_it_fell():
    far = dataclasses.replace(BOUNDS, max_horizon=50)
    falling = [0.95 - 0.02 * step for step in range(16)]  # 0.3 would be met at step 32.5
    assert gate_after(judged(*falling)).horizon(far) == 33
    assert gate_after(judged(*falling, *[None] * 34)).horizon(far) == 33
    assert gate_after(judged(*(0.95 - 0.002 * step for step in range(16)))).horizon(far) == 50
    assert gate_after(judged(*(0.5 + 0.01 * step for step in range(16)))).horizon(far) == 50
    # Only the farther half counts: M may lose most of its skill at once and keep the rest.
    assert gate_after(judged(0.99, 0.8, 0.6, *[0.5] * 5)).horizon(far) == 50


def test_skill_is_a_running_mean_of_what_was_measured():
    gate = gate_after(judged(0.5, None), judged(1.0, 0.4, 0.2), judged(None, 0.0))
    assert gate.skill[0] == pytest.approx(0.5 + EMA_RATE * 0.5)
    assert gate.skill[1] == pytest.approx(0.4 - EMA_RATE * 0.4)
    assert gate.skill[2] == 0.2


def test_one_absurd_prediction_does_not_close_it_for_ever():
    gate = gate_after(judged(0.9), judged(-1e9))
    assert gate.skill[0] == pytest.approx(0.9 + EMA_RATE * (-1.0 - 0.9))
    for _ in range(5):
        gate.judge(judged(0.9))
    assert gate.ratio(BOUNDS) == pytest.approx(0.9)


def test_a_gap_counts_beyond_chance_in_units_of_the_returns():
    def beyond_chance(*judgements: Judgement) -> float:
        return gate_after(*judgements).gap_beyond_chance

    assert beyond_chance(judged(0.9, gap=30.0, error=5.0, scale=10.0)) == pytest.approx(EMA_RATE * 2.0)
    assert beyond_chance(judged(0.9, gap=-30.0, error=5.0, scale=10.0)) == pytest.approx(-EMA_RATE * 2.0)
    assert beyond_chance(judged(0.9, gap=9.0, error=5.0)) == 0.0
    once = judged(0.9, gap=30.0, error=5.0, scale=10.0)
    assert beyond_chance(once, judged(0.9)) == beyond_chance(once)  # None changes nothing
    assert beyond_chance(once, judged(0.9, gap=1.0, error=5.0)) == 0.0


def test_a_gap_within_chance_counts_once_it_has_lasted():
    small = judged(0.9, gap=1.0, error=0.8)
    assert gate_after(small).gap_beyond_chance == 0.0
    lasting = gate_after(*[small] * 50)
    assert lasting.gap == pytest.approx(1.0, abs=1e-6)
    # The variance of a running mean of independent errors: rate / (2 - rate) of theirs.
    assert lasting.gap_variance == pytest.approx(0.8**2 * EMA_RATE / (2.0 - EMA_RATE), rel=1e-6)
    assert lasting.gap_beyond_chance == pytest.approx(1.0 - 1.6 * math.sqrt(EMA_RATE / (2.0 - EMA_RATE)), rel=1e-4)


def test_noise_without_a_gap_hardly_ever_counts():
    rng = np.random.default_rng(0)
    counted = 0
    for _ in range(400):
        gate = gate_after(*[judged(0.9, gap=float(gap), error=1.0) for gap in rng.normal(size=20)])
        counted += gate.gap_beyond_chance != 0.0
    assert counted <= 0.08 * 400  # 5 % are beyond 2 errors by chance


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_absurd_gap_is_forgotten_soon(sign: float):
    gate = gate_after(judged(0.9, gap=sign * 1e6, error=1.0))
    assert gate.gap == pytest.approx(sign * EMA_RATE * LARGEST_GAP)
    for _ in range(10):
        gate.judge(judged(0.9, gap=0.0, error=1.0))
    assert abs(gate.gap) < TOLERATED_GAP


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_dreams_that_leave_all_numbers_close_it(gap: float):
    assert gate_after(judged(0.9, gap=gap, error=1.0)).gap == pytest.approx(EMA_RATE * LARGEST_GAP)
    assert gate_after(judged(0.9, gap=1.0, error=math.nan)).gap == pytest.approx(EMA_RATE * LARGEST_GAP)


@pytest.mark.parametrize(
    ("gap", "odds"),
    [(0.0, 9.0), (TOLERATED_GAP, 9.0), (2 * TOLERATED_GAP, 4.5), (4 * TOLERATED_GAP, 9.0 / 8), (-9.0, 9.0)],
)
def test_only_dreams_that_promise_too_much_are_punished(gap: float, odds: float):
    assert Gate([0.9], gap).ratio(BOUNDS) == pytest.approx(odds / (1 + odds))
    assert Gate([0.9], gap).ratio(dataclasses.replace(BOUNDS, min_ratio=0.7)) == pytest.approx(
        max(0.7, odds / (1 + odds))
    )


def test_it_survives_a_checkpoint_and_leaves_it_alone():
    state = TrainingState(gate=gate_after(judged(0.4, None, 0.2, gap=3.0, error=0.5)))
    saved = state.to_dict()
    restored = TrainingState()
    restored.restore(saved)
    assert restored.gate == state.gate == Gate([0.4, None, 0.2], pytest.approx(EMA_RATE * 3.0), (EMA_RATE * 0.5) ** 2)
    restored.gate.judge(judged(0.9, 0.9, 0.9, 0.9, gap=50.0, error=0.0))
    assert saved["gate"] == dataclasses.asdict(state.gate)
    del saved["gate"]["gap_variance"]  # of a checkpoint from before there was one
    restored.restore(saved)
    assert restored.gate.gap_variance == 0.0
    assert state.gate.skill == [0.4, None, 0.2]
