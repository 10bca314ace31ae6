"""The figures for a cluster's monitoring."""

from typing import ClassVar

import pytest

from wm_rllib.metrics import METRICS
from wm_rllib.training import gauges
from wm_rllib.training.gauges import EXPORTED, STAGE_SECONDS, Gauges, gauge_name


class FakeGauge:
    made: ClassVar[dict] = {}

    def __init__(self, name, description, tag_keys):
        self.values, self.tag_keys = [], tag_keys
        assert description
        FakeGauge.made[name] = self

    def set(self, value, tags):
        assert set(tags) == set(self.tag_keys)
        self.values.append((value, tags))


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(gauges, "Gauge", FakeGauge)
    monkeypatch.setattr(FakeGauge, "made", {})
    return FakeGauge


def test_what_was_measured_is_shown_and_nothing_else(made):
    shown = Gauges("cartpole")
    result = {
        "imagination": {"ratio": 0.9, "return_gap": float("nan")},
        "seconds": {"fit": 1.5, "iteration": 3.0, "total": 70.0},
        "phase": "mixed",
        "restarts": {"dreamers": 2},
    }
    shown.show(result)
    run = {"run": "cartpole"}
    assert made.made["wm_rllib_imagination_ratio"].values == [(0.9, run)]
    assert made.made["wm_rllib_imagination_return_gap"].values == []
    assert made.made["wm_rllib_restarts_dreamers"].values == [(2, run)]
    assert made.made["wm_rllib_seconds_iteration"].values == [(3.0, run)]
    assert made.made[STAGE_SECONDS].values == [(1.5, {**run, "stage": "fit"})]


def test_every_gauge_is_a_documented_metric_with_a_name_of_its_own():
    assert set(EXPORTED) <= METRICS.keys()
    assert len({gauge_name(name) for name in EXPORTED}) == len(EXPORTED)
