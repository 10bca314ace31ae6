"""Pretraining by instalments: every gradient step once, whatever comes between two of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from snapshots import assert_equal
from test_images import RANDOM_STEPS, config_of

from wm_rllib import WorldModelPPO
from wm_rllib.metrics import progress_row
from wm_rllib.runs.console import Console
from wm_rllib.training import fit_calls

BATCH_BYTES = 2 * 32 * 16 * 16 * 3
"""Of frames in one of V's gradient steps."""
VAE_UPDATES = 3 * RANDOM_STEPS // 32 + 1


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten gradient steps of V a call."""
    monkeypatch.setattr(fit_calls, "CALL_BYTES", 10 * BATCH_BYTES)


def updates_of(result: dict[str, Any]) -> int:
    seconds = sum(result["seconds"].get(stage, 0.0) for stage in ("fit_vae", "fit_mdn"))
    return round((result["steps_per_second"]["fit_updates"] or 0.0) * seconds)


def weights(algorithm: Any) -> dict[str, Any]:
    return algorithm.learner_group.get_state()["learner"]["rl_module"]


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray", "short_calls")
def test_iterations_share_it_and_a_checkpoint_between_two_goes_on_with_it(tmp_path: Path):
    algorithm = config_of().build_algo()
    try:
        assert algorithm.train()["phase"] == "random"
        first = algorithm.train()
        path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        rest = [algorithm.train()]
        while rest[-1]["pretraining"]["done"] < 1.0:
            rest.append(algorithm.train())
        whole = weights(algorithm)
        mixed = algorithm.train()
    finally:
        algorithm.stop()
    results = [first, *rest]
    assert len(results) > 2 and {result["phase"] for result in results} == {"pretrain"}
    assert updates_of(first) == fit_calls.PRETRAINING_CALLS * 10
    shares = [result["pretraining"]["done"] for result in results]
    assert shares == sorted(shares) and shares[0] > 0.0
    assert first["vae"]["reconstruction_loss_at_start"] > 0.0 and first["mdn"]["nll"] is None
    assert results[-1]["mdn"]["nll"] is not None and results[-1]["vae"]["reconstruction_loss"] is None
    assert [result["mdn"]["nll_at_start"] is not None for result in results].count(True) == 1
    assert mixed["phase"] == "mixed" and mixed["pretraining"] == {} and mixed["rows"]["imagined"] > 0

    resumed = WorldModelPPO.from_checkpoint(path)
    try:
        again = [resumed.train() for _ in rest]
        assert [result["pretraining"]["done"] for result in again] == shares[1:]
        assert sum(map(updates_of, again)) == sum(map(updates_of, rest))
        assert_equal(weights(resumed), whole)
    finally:
        resumed.stop()
    assert sum(map(updates_of, results)) > VAE_UPDATES


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray", "short_calls")
def test_a_signal_ends_the_iteration_after_the_present_call(monkeypatch: pytest.MonkeyPatch):
    algorithm = config_of().build_algo()
    try:
        algorithm.train()
        original = fit_calls.fit_world_model

        def fit(*args: Any, **how: Any) -> Any:
            algorithm.cut_short()
            return original(*args, **how)

        monkeypatch.setattr(fit_calls, "fit_world_model", fit)
        cut = algorithm.train()
        assert updates_of(cut) == 10 and 0.0 < cut["pretraining"]["done"] < 1.0
        monkeypatch.undo()
        phases = [algorithm.train()["phase"] for _ in range(2)]
    finally:
        algorithm.stop()
    assert phases == ["pretrain", "mixed"]  # with calls of their usual size


def test_the_console_says_how_far_it_is():
    stream = io.StringIO()
    console = Console(stream, None)
    for done in (0.34, 1.0, None):
        console.show(progress_row({"training_iteration": 5, "phase": "pretrain", "pretraining": {"done": done}}))
    lines = stream.getvalue().splitlines()
    assert "iteration 5 (34% pretrained)  " in lines[0]
    assert "pretrained" not in lines[1] + lines[2]
