"""The soak's arithmetic; the soak itself is `python -m wm_rllib benchmark soak`."""

import pytest

from wm_rllib.benchmark.soak import growth, table


def test_growth_is_the_slope_of_what_counts():
    samples = [{"minute": m / 2, "flat": 100.0, "grows": 50 + 3 * max(0.0, m / 2 - 4)} for m in range(20)]
    assert growth(samples, 4.0) == pytest.approx({"flat": 0.0, "grows": 3.0})
    assert growth(samples, 0.0)["grows"] < 3.0


def test_table_says_from_when_to_when():
    samples = [{"minute": float(m), "driver": 100.0 + 2 * m} for m in range(10)]
    result = {
        "minutes": 9,
        "iterations": 7,
        "real_steps": 900,
        "replay_full_at_minute": 0.5,
        "growth_mb_a_minute": growth(samples, 3.0),
        "samples": samples,
    }
    head, line = table(result)
    assert "from minute 3.0 to 9.0" in head and "full at minute 0.5" in head
    assert line.split() == ["driver", "106.0", "MB", "->", "118.0", "MB", "+2.000", "MB", "a", "minute"]
