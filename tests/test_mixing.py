"""The exact merge, in numbers: properties that hold for every batch size, ratio and schedule."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ray.rllib.utils.schedules.piecewise_schedule import PiecewiseSchedule

from wm_rllib.mixing import (
    LARGEST_MIXED_RATIO,
    imagined_rows,
    may_dream,
    ratio_at,
    real_rows_for,
    realised_ratio,
    rounds_at,
    split_evenly,
    split_lanes,
    split_within,
    value_at,
)

RATIOS = [0.0, 0.25, 0.5, 0.9, 0.99, 0.999]
ratios = st.one_of(st.sampled_from(RATIOS), st.floats(0.0, 0.999))
positive_ratios = ratios.filter(lambda ratio: ratio > 1e-6)
sizes = st.integers(0, 100_000)


@st.composite
def schedules(draw: st.DrawFn) -> list[list[float]]:
    """Schedules as RLlib takes them: they start at 0, and time grows from point to point."""
    gaps = draw(st.lists(st.integers(1, 50_000), min_size=1, max_size=5))
    times = [0]
    for gap in gaps:
        times.append(times[-1] + gap)
    return [[time, draw(st.floats(0.0, 1.0))] for time in times]


@pytest.mark.parametrize(("ratio", "expected"), [*zip(RATIOS, [0, 42, 125, 1125, 12_375, 124_875], strict=True)])
def test_rows_for_the_default_batch(ratio: float, expected: int):
    assert imagined_rows(125, ratio) == expected


@given(sizes, ratios)
@example(125, 0.99)
@example(1, 0.5)
def test_imagined_rows_are_right_to_half_a_row(num_real: int, ratio: float):
    exact = Fraction(num_real) * Fraction(ratio) / (1 - Fraction(ratio))
    assert abs(imagined_rows(num_real, ratio) - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


@given(st.integers(1, 100_000), ratios)
def test_realised_ratio_is_right_to_half_a_row(num_real: int, ratio: float):
    imagined = imagined_rows(num_real, ratio)
    # Half a row more or less of m changes m / (n + m) by at most 0.5 / (n + m - 0.5).
    tolerance = 0.5 / (num_real + imagined - 0.5)
    assert abs(realised_ratio(num_real, imagined) - ratio) <= tolerance + 1e-9


@given(sizes, sizes, ratios)
def test_more_real_rows_never_mean_fewer_imagined_ones(one: int, other: int, ratio: float):
    small, large = sorted((one, other))
    assert imagined_rows(small, ratio) <= imagined_rows(large, ratio)


@given(sizes, ratios, ratios)
def test_a_higher_ratio_never_means_fewer_imagined_rows(num_real: int, one: float, other: float):
    low, high = sorted((one, other))
    assert imagined_rows(num_real, low) <= imagined_rows(num_real, high)


@given(sizes)
def test_ratio_zero_means_no_imagined_rows(num_real: int):
    assert imagined_rows(num_real, 0.0) == 0


@pytest.mark.parametrize("ratio", [-0.01, 1.0, 1.5, float("nan")])
def test_imagined_rows_refuses_what_is_no_fraction(ratio: float):
    with pytest.raises(ValueError, match="ratio"):
        imagined_rows(10, ratio)


@pytest.mark.parametrize("ratio", [-0.01, 0.0, 1.5, float("nan")])
def test_real_rows_for_refuses_what_is_no_fraction(ratio: float):
    with pytest.raises(ValueError, match="ratio"):
        real_rows_for(10, ratio)


@given(sizes, st.floats(0.5, 0.999))
def test_real_rows_for_is_the_inverse(num_real: int, ratio: float):
    # From 0.5 on there is at least one imagined row to each real one, so that rounding loses nothing.
    assert real_rows_for(imagined_rows(num_real, ratio), ratio) == num_real


@given(sizes, positive_ratios)
def test_real_rows_for_keeps_the_ratio_to_half_a_row(num_imagined: int, ratio: float):
    exact = Fraction(num_imagined) * (1 - Fraction(ratio)) / Fraction(ratio)
    error = abs(real_rows_for(num_imagined, ratio) - exact)
    assert error <= Fraction(1, 2) + abs(exact) / 10**12


@given(sizes, positive_ratios, st.floats(0.0, 1.0))
def test_losing_dreams_never_asks_for_more_real_rows(num_real: int, ratio: float, kept: float):
    ordered = imagined_rows(num_real, ratio)
    came = int(kept * ordered)
    if came < ordered:
        assert real_rows_for(came, ratio) <= num_real


def test_ratio_one_keeps_no_real_row():
    assert real_rows_for(1000, 1.0) == 0


@given(st.integers(0, 10**7), st.integers(1, 64))
def test_split_evenly_sums_and_is_even(total: int, parts: int):
    shares = split_evenly(total, parts)
    assert len(shares) == parts
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=3), st.integers(1, 64), st.integers(1, 200))
def test_split_lanes_sums_and_shortens_one_dream_of_a_learner_at_most(rows: list[int], parts: int, horizon: int):
    shares = split_lanes(rows, parts, horizon)
    assert len(shares) == parts
    assert [sum(column) for column in zip(*shares, strict=True)] == rows
    for column in zip(*shares, strict=True):
        assert sum(share % horizon != 0 for share in column) <= 1
    lanes = [sum(-(-share // horizon) for share in one) for one in shares]
    assert max(lanes) - min(lanes) <= 1


def test_few_rows_are_not_short_dreams():
    assert split_lanes([64], 4, 50) == [[50], [14], [0], [0]]
    assert split_lanes([200], 3, 50) == [[100], [50], [50]]
    assert split_lanes([60, 120], 3, 50) == [[50, 50], [10, 20], [0, 50]]


@given(schedules(), st.integers(0, 300_000))
@example([[0, 0.0], [1000, 0.99]], 500)
@example([[0, 0.9], [10, 0.9], [20, 0.0]], 20)
def test_value_at_equals_rllibs_schedule(schedule: list[list[float]], timestep: int):
    reference = PiecewiseSchedule([tuple(point) for point in schedule], outside_value=schedule[-1][1])
    assert value_at(schedule, timestep) == pytest.approx(reference._value(timestep), abs=1e-12)


def test_a_schedule_on_its_way_to_one_is_there_before_rows_have_no_bound():
    schedule = [[0, 0.5], [1_000_000, 1.0]]
    assert ratio_at(schedule, 500_000) == 0.75
    rows = [imagined_rows(128, ratio) for step in range(0, 1_000_001, 1000) if (ratio := ratio_at(schedule, step)) < 1]
    assert max(rows) <= imagined_rows(128, LARGEST_MIXED_RATIO)
    assert ratio_at(schedule, 999_000) == ratio_at(schedule, 1_000_000) == 1.0
    assert ratio_at(0.9999, 0) == ratio_at([[0, 0.9999], [10, 0.9999]], 5) == 0.9999  # chosen by hand


@given(schedules(), st.integers(0, 300_000))
def test_ratio_at_stays_between_the_points(schedule: list[list[float]], timestep: int):
    values = [value for _, value in schedule]
    assert min(values) - 1e-12 <= ratio_at(schedule, timestep) <= max(values) + 1e-12


@pytest.mark.parametrize("ratio", [*RATIOS, 1.0, 1, 0])
def test_a_fixed_ratio_holds_always(ratio: float):
    assert ratio_at(ratio, 0) == ratio_at(ratio, 10**9) == ratio


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ("auto", True),
        (0.0, False),
        (0, False),
        (0.01, True),
        (1, True),
        ([[0, 0.0], [9, 0.0]], False),
        ([[0, 0.0], [9, 0.1]], True),
    ],
)
def test_may_dream(ratio: float | list[list[float]], expected: bool):
    assert may_dream(ratio) is expected


def test_auto_has_no_ratio_of_its_own():
    with pytest.raises(ValueError, match="for the gate"):
        ratio_at("auto", 0)


@pytest.mark.parametrize(("real", "imagined", "expected"), [(0, 0, 0.0), (5, 0, 0.0), (0, 5, 1.0), (1, 3, 0.75)])
def test_realised_ratio(real: int, imagined: int, expected: float):
    assert realised_ratio(real, imagined) == expected


def test_rounds_of_a_schedule_are_whole():
    schedule = [[0, 6], [100, 6], [200, 1]]
    for seen in (False, True):
        rounds = [rounds_at(schedule, step, seen_an_end=seen) for step in (0, 100, 120, 150, 199, 200, 10_000)]
        assert rounds == [6, 6, 5, 4, 1, 1, 1]
        assert rounds_at(3, 500, seen_an_end=seen) == 3


def test_rounds_by_themselves_are_more_once_it_is_known_how_episodes_end():
    steps = (0, 500, 1000, 1500, 10_000)
    assert [rounds_at("auto", step, seen_an_end=False) for step in steps] == [6] * 5
    assert [rounds_at("auto", step, seen_an_end=True) for step in steps] == [18, 18, 12, 6, 6]


def test_numbers_of_numpy_are_numbers():
    assert value_at(np.int64(3), 100) == 3.0
    assert rounds_at(np.int64(3), 100, seen_an_end=True) == 3
    assert may_dream(np.float32(0.9)) and not may_dream(np.float32(0.0))
    assert may_dream("auto") and may_dream([[0, 0.0], [10, 0.5]]) and not may_dream([[0, 0.0], [10, 0.0]])


@given(st.integers(0, 1000), st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_parts_within_limits_add_up_and_are_as_equal_as_those_allow(total: int, limits: list[int]):
    parts = split_within(total, limits)
    assert sum(parts) == min(total, sum(limits))
    assert all(0 <= part <= limit for part, limit in zip(parts, limits, strict=True))
    roomy = [part for part, limit in zip(parts, limits, strict=True) if part < limit]
    assert not roomy or max(parts) - min(roomy) <= 1


@example([70, 65], 0.9, 5)  # five of 1215 dreams were lost
@example([40, 24], 0.9, 9)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=4), st.floats(0.1, 0.99), st.integers(0, 300))
def test_what_is_kept_of_unequal_shards_is_at_the_ratio(real: list[int], ratio: float, lost: int):
    came = imagined_rows(sum(real), ratio) - lost
    if came <= 0:
        return
    kept = sum(split_within(real_rows_for(came, ratio), real))
    assert kept == min(real_rows_for(came, ratio), sum(real))
