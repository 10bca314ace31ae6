"""Flat metrics rows and the table that documents them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_rllib.metrics import ALWAYS, METRICS, is_documented, progress_row

RESULT = {
    "training_iteration": 3,
    "phase": "mixed",
    "num_env_steps_sampled_lifetime": np.int64(900),
    "time_this_iter_s": 1.5,
    "rows": {"real": 100, "imagined": 900},
    "imagination": {"ratio": 0.9, "return_gap": float("nan")},
    "vae": {"reconstruction_loss": torch.tensor(0.5)},
    "seconds": {"sample": np.float32(0.25), "fit": {"replay": 0.1}},
    "restarts": {"env_runners": 0, "dreamers": 1, "parameter_server": 0, "replay": 0},
    "config": {"lr": 1e-3},
    "learners": {"default_policy": {"curr_kl_coeff": 0.2}},
}


def test_row_is_flat_and_holds_only_documented_metrics():
    row = progress_row(RESULT)
    assert row["rows/imagined"] == 900
    assert row["vae/reconstruction_loss"] == 0.5
    assert row["seconds/sample"] == 0.25
    assert row["seconds/fit/replay"] == 0.1
    assert row["seconds/iteration"] == 1.5
    assert row["restarts/dreamers"] == 1
    assert all(is_documented(name) for name in row)
    assert list(row)[:3] == ["training_iteration", "phase", "num_env_steps_sampled_lifetime"]


def test_row_has_its_fixed_keys_even_when_the_result_is_empty():
    assert set(progress_row({})) == set(ALWAYS)
    assert all(value is None for value in progress_row({}).values())


def test_not_evaluated_is_null():
    assert progress_row(RESULT)["evaluation/episode_return_mean"] is None
    evaluated = progress_row({**RESULT, "evaluation": {"episode_return_mean": np.float64(475.5), "episodes": 20}})
    assert evaluated["evaluation/episode_return_mean"] == 475.5


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32("nan"), torch.tensor(float("-inf")), None, []]
)
def test_what_is_no_finite_number_is_null(value):
    row = progress_row({**RESULT, "mdn": {"nll": value}})
    assert row["mdn/nll"] is None
    json.dumps(row, allow_nan=False)


def test_arrays_of_several_numbers_are_null():
    assert progress_row({"mdn": {"nll": np.zeros(3)}})["mdn/nll"] is None
    assert progress_row({"mdn": {"nll": torch.zeros(3)}})["mdn/nll"] is None


def test_document_matches_the_table():
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert rows == [(name, metric.meaning, metric.unit) for name, metric in METRICS.items()]
