"""`imagination_ratio="auto"` in a single process: what the gate decides happens, and it survives checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from tiny import HORIZON, ROUNDS, TRAIN_BATCH, tiny_config

from wm_rllib import WorldModelPPOConfig
from wm_rllib.learners.gate import Gate, Judgement
from wm_rllib.learners.learner import WorldModelPPOLearner
from wm_rllib.metrics import progress_row

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

BOUNDS = [0.2, 0.8]
REPORTED = ("skill_next", "gate_skill", "gate_gap", "configured_horizon")


def auto_config(**overrides: Any) -> WorldModelPPOConfig:
    settings = {"imagination_ratio": "auto", "imagination_ratio_bounds": BOUNDS, "min_imagination_horizon": 2}
    return tiny_config(**{**settings, "pretrain_epochs": 40, "updates_per_step": 0.5, **overrides})


@pytest.fixture
def build() -> Iterator[Any]:
    """Builds algorithms, and stops them at the end of the test."""
    algorithms = []

    def build(**overrides: Any) -> Any:
        algorithms.append(auto_config(**overrides).build_algo())
        return algorithms[-1]

    yield build
    for algorithm in algorithms:
        algorithm.stop()


@pytest.fixture(scope="module")
def trained(local_ray: None) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """An algorithm and its first results."""
    algorithm = auto_config().build_algo()
    yield algorithm, [algorithm.train() for _ in range(6)]
    algorithm.stop()


def check_mixed(result: dict[str, Any]) -> float:
    """Everything that an iteration of the mixed phase says of the gate; returns the ratio."""
    row = progress_row(result)
    ratio = row["imagination/configured_ratio"]
    assert BOUNDS[0] <= ratio <= BOUNDS[1]
    real = TRAIN_BATCH
    imagined = round(real * ratio / (1 - ratio))
    assert result["imagination"]["rows_by_round"] == [[real, imagined]] * ROUNDS
    assert 2 <= row["imagination/configured_horizon"] <= HORIZON
    assert row["imagination/horizon"] <= row["imagination/configured_horizon"]
    assert all(math.isfinite(row[f"imagination/{name}"]) for name in REPORTED)
    assert {f"imagination/{name}" for name in ("judged_gap", "judged_gap_error", "skill_at_horizon", "cut")} <= set(row)
    assert row["seconds/judge"] > 0
    return ratio


def test_the_gate_decides_within_its_bounds(trained: Any):
    algorithm, results = trained
    assert [result["phase"] for result in results[:3]] == ["random", "pretrain", "mixed"]
    assert all(
        "configured_ratio" not in result["imagination"] or result["imagination"]["configured_ratio"] is None
        for result in results[:2]
    )
    ratios = [check_mixed(result) for result in results[2:]]
    assert ratios[-1] == algorithm._state.gate.ratio(algorithm.config.gate_bounds)
    # Cut dreams are those of `max_disagreement`, which is not set.
    assert all(result["imagination"]["cut"] == 0.0 for result in results[2:])


@pytest.mark.parametrize(("skill", "ratio", "horizon"), [(1.0, BOUNDS[1], HORIZON), (0.0, BOUNDS[0], 2)])
def test_what_the_gate_is_told_decides(
    build: Any, monkeypatch: pytest.MonkeyPatch, skill: float, ratio: float, horizon: int
):
    monkeypatch.setattr(
        WorldModelPPOLearner,
        "judge",
        lambda *_, **__: Judgement([skill] * HORIZON, gap=None, gap_error=None, return_scale=1.0),
    )
    algorithm = build(pretrain_epochs=4)
    for _ in range(3):
        result = algorithm.train()
    assert check_mixed(result) == pytest.approx(ratio)
    assert result["imagination"]["configured_horizon"] == horizon
    assert result["imagination"]["skill_next"] == result["imagination"]["skill_at_horizon"] == skill


def test_a_closed_gate_means_one_update_on_real_rows(build: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WorldModelPPOLearner, "judge", lambda *_, **__: Judgement([0.0], None, None, 1.0))
    algorithm = build(imagination_ratio_bounds=[0.0, 0.8], pretrain_epochs=4)
    for _ in range(3):
        result = algorithm.train()
    assert result["imagination"]["configured_ratio"] == 0.0
    assert result["imagination"]["rows_by_round"] == [[TRAIN_BATCH, 0]]


def test_m_is_judged_before_it_is_fitted_to_what_judges_it(build: Any, monkeypatch: pytest.MonkeyPatch):
    algorithm, calls = build(pretrain_epochs=4), []
    judge, update = WorldModelPPOLearner.judge, WorldModelPPOLearner.update

    def judged(self: Any, windows_ref: Any, seed: int | None) -> Any:
        calls.append("judge")
        assert ray.get(windows_ref)["mask"].shape[1] == algorithm.config.burn_in + HORIZON
        return judge(self, windows_ref, seed)

    def updated(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("update")
        return update(self, *args, **kwargs)

    monkeypatch.setattr(WorldModelPPOLearner, "judge", judged)
    monkeypatch.setattr(WorldModelPPOLearner, "update", updated)
    for _ in range(3):
        algorithm.train()
    assert calls == ["update", "judge", *["update"] * (1 + ROUNDS)]  # pretraining; then the fit and the rounds
    assert algorithm.learner_group._learner.world_model.training


def test_the_gate_is_in_the_checkpoint(trained: Any, build: Any, tmp_path: Any):
    algorithm, _ = trained
    saved = algorithm._state.gate
    assert saved.skill and saved != Gate()
    other = build()
    other.set_state(algorithm.get_state())
    assert other._state.gate == saved and other._state.gate is not saved
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    other._state.gate = Gate()
    other.restore_from_path(path)
    assert other._state.gate == saved


def test_lost_experience_is_not_judged(trained: Any, monkeypatch: pytest.MonkeyPatch):
    """The last test of the shared algorithm, which it trains."""
    algorithm, _ = trained
    gate = algorithm._state.to_dict()["gate"]
    monkeypatch.setattr(algorithm._replay.service._replay, "_newest", {})
    monkeypatch.setattr(algorithm._replay.service, "add", lambda refs: algorithm._replay.service.stats())
    result = algorithm.train()
    assert algorithm._state.to_dict()["gate"] == gate
    assert progress_row(result)["imagination/skill_next"] is None
    assert progress_row(result)["imagination/gate_skill"] == gate["skill"][0]


def test_cut_dreams_keep_every_row(build: Any):
    algorithm = build(imagination_ratio=0.75, max_disagreement=1e-6, ensemble_size=2)
    results = [algorithm.train() for _ in range(4)]
    for result in results[2:]:
        assert result["imagination"]["rows_by_round"] == [[TRAIN_BATCH, 3 * TRAIN_BATCH]] * ROUNDS
        assert 0.3 < result["imagination"]["cut"] < 1.0
        assert result["imagination"]["horizon"] < 1.5
        assert "skill_next" not in result["imagination"]  # the gate has no say
    assert all(math.isfinite(results[-1]["ppo"][name]) for name in ("policy_loss", "vf_loss"))
