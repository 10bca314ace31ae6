"""Every run is judged where it is evaluated, and learns as if it had not been."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tiny import HORIZON, TRAIN_BATCH, tiny_config

from wm_rllib.metrics import Row, progress_row

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

JUDGED = ("imagination/skill_next", "imagination/judged_gap", "imagination/judged_gap_error")
TRUST = ("steps_ahead", "error_next", "termination_calibration", "ends_expected", "ends_seen")


def rows_of(num_mixed: int, **overrides: Any) -> list[Row]:
    """The mixed iterations of a run; with an interval of two batches every second of them has an evaluation."""
    algorithm = tiny_config(**overrides).evaluation(evaluation_duration=1).build_algo()
    try:
        rows = [progress_row(algorithm.train()) for _ in range(2 + num_mixed)]
    finally:
        algorithm.stop()
    return rows[2:]


def test_a_run_is_judged_where_it_is_evaluated_and_not_disturbed(monkeypatch: pytest.MonkeyPatch):
    settings = {"evaluation_interval_steps": 2 * TRAIN_BATCH, "imagination_ratio": 0.5}
    judged = rows_of(2, **settings)
    evaluated = [row["evaluation/episode_return_mean"] is not None for row in judged]
    assert sorted(evaluated) == [False, True]
    for row, due in zip(judged, evaluated, strict=True):
        assert ("trust/error_next" in row) == ("imagination/skill_next" in row) == ("seconds/judge" in row) == due
        assert "imagination/gate_skill" not in row
        if due:
            assert all(math.isfinite(row[name]) for name in (*JUDGED, *(f"trust/{name}" for name in TRUST)))
            assert 0 <= row["trust/steps_ahead"] <= HORIZON and row["trust/error_next"] > 0
            assert 0 <= row["trust/termination_calibration"] <= 1

    monkeypatch.setattr("wm_rllib.training.gating._judge", lambda stages: None)
    for row, other in zip(judged, rows_of(2, **settings), strict=True):
        learnt = {name for name in other if name.startswith(("vae/", "mdn/", "ppo/", "rows/", "evaluation/"))}
        assert len(learnt) > 10
        assert {name: row[name] for name in learnt} == {name: other[name] for name in learnt}
