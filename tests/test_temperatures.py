"""`temperatures`: mistakes, arithmetic of the choice and the table, and the command from beginning to end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from wm_rllib.acting.baselines import Baselines
from wm_rllib.acting.evaluation import EvaluationResult
from wm_rllib.cli.main import build_parser, main
from wm_rllib.cli.temperature_plan import plan_temperatures
from wm_rllib.cli.temperature_scores import (
    Comparison,
    TemperatureScore,
    baselines_from,
    read_result,
    score_from,
    to_json,
    write_json,
)
from wm_rllib.cli.temperatures import _choosing_seed, _fresh_seed
from wm_rllib.dreamers.evaluation import DreamScore

ITERATIONS, EPISODES = 3, 5
SETTINGS = {
    "env": {"id": "CartPole-v1"},
    "seed": 3,
    "device": "cpu",
    "world_model": {
        "vae": {"latent_dim": 3, "hidden_dims": [16]},
        "mdn_rnn": {"hidden_dim": 8, "head_hidden_dims": [16], "num_mixtures": 2},
        "training": {
            "pretrain_epochs": 4,
            "sequence_length": 8,
            "sequence_batch_size": 4,
            "imagination_ratio": 1.0,
            "dream_batch_size": 83,
            "imagination_horizon": 5,
            "num_dream_rounds": 2,
            "burn_in": 4,
        },
        "data_collection": {"random_collection_steps": 60},
    },
    "ppo": {"minibatch_size": 64, "num_epochs": 2, "hidden_dims": [16]},
    "evaluation": {"max_dream_steps": 20},
    "checkpoint": {"frequency": 2},
    "stop": {"iterations": ITERATIONS},
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(SETTINGS))


def arguments(*argv, temperatures=("0.5", "1.15")):
    return ["temperatures", "--config", "tiny.yaml", "--run-dir", "temps", "--temperatures", *temperatures, *argv]


# --- mistakes --------------------------------------------------------------------------------------------------------


def error_of(capsys, argv):
    """Returns the message of a command that must end with one error and nothing else."""
    before = sorted(os.walk("."))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith("wm_rllib: error: ") and "Fix: " in err, err
    assert "Traceback" not in out + err
    assert sorted(os.walk(".")) == before
    if "ray" in sys.modules:
        assert not sys.modules["ray"].is_initialized()
    return err


@pytest.mark.parametrize("wrong", ["0", "-1", "hot", "true", ".inf", "[1]"])
def test_wrong_temperatures(capsys, wrong):
    assert "--temperatures is" in error_of(capsys, arguments(temperatures=("1.0", wrong)))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--set", "world_model.training.imagination_ratio=0.9"], "imagination_ratio = 0.9"),
        (["--set", "world_model.data_collection.online=true"], "dream alone"),
        (["--set", "stop.iterations=null"], "stop.iterations is not set"),
        (["--set", "stop.return=475"], "stop.return is 475"),
        (["--set", "seed=null"], "seed is null"),
        (["--set", "evaluation.interval=10"], "evaluation_interval_steps = 10"),
        (["--episodes", "0"], "--episodes is 0"),
        (["--env", "CartPol-v1"], "did you mean CartPole-v1"),
        (["--run-dir", "s3://bucket/x"], "local folder"),
        (["--run-dir", "tiny.yaml"], "is a file"),
        (["--set", "world_model.transfer.from=nowhere"], "nowhere does not exist"),
        (["--set", "world_model.transfer.from=s3://bucket/run"], "`temperatures` needs a local folder"),
    ],
    ids=str,
)
def test_mistakes(capsys, argv, expected):
    assert expected in error_of(capsys, arguments(*argv))


def test_twice_the_same(capsys):
    assert "has 1 twice" in error_of(capsys, arguments(temperatures=("1.0", "0.5", "1")))


@pytest.mark.parametrize("missing", ["--temperatures", "--run-dir"])
def test_what_is_required(capsys, missing):
    argv = {"--temperatures": ["--run-dir", "temps"], "--run-dir": ["--temperatures", "1.0"]}[missing]
    assert missing in error_of(capsys, ["temperatures", "--config", "tiny.yaml", *argv])


def test_a_folder_of_something_else(capsys):
    Path("temps").mkdir()
    Path("temps/progress.jsonl").write_text("{}\n")
    assert "holds progress.jsonl" in error_of(capsys, arguments())


def test_a_folder_of_other_settings(capsys):
    plan = plan_temperatures(build_parser().parse_args(arguments()))
    plan.claim()
    plan_temperatures(build_parser().parse_args(arguments(temperatures=("2.0",))))
    argv = arguments("--set", "world_model.mdn_rnn.temperature=1.2")  # each run has its own
    plan_temperatures(build_parser().parse_args(argv))
    argv = arguments("--set", "dreamers.dreamer_timeout_s=600", "--set", "checkpoint.frequency=3")
    plan_temperatures(build_parser().parse_args(argv))
    assert "ppo.gamma 0.99, not 0.9" in error_of(capsys, arguments("--set", "ppo.gamma=0.9"))
    assert "--episodes 100, not 7" in error_of(capsys, arguments("--episodes", "7"))


def test_a_total_of_real_steps_does_not_matter():
    plan = plan_temperatures(build_parser().parse_args(arguments("--set", "stop.total_timesteps=20000")))
    assert plan.pretraining().rule.total_timesteps is None


# --- arithmetic ------------------------------------------------------------------------------------------------------


def make_score(temperature, real, dreamed=(1.0, 3.0)):
    lengths = [1] * len(real)
    dream = DreamScore(list(dreamed), [4, 5], 1)
    return TemperatureScore(temperature, 3, 9, 61.26, 1.5, dream, EvaluationResult(list(real), lengths))


BASELINES = Baselines(*(EvaluationResult([value, value + 2.0], [1, 1]) for value in (10.0, 20.0, 30.0)), np.int64(1))


def test_the_table():
    scores = [make_score(0.5, (1.0, 2.0)), make_score(1.15, (5.0, 7.0))]
    comparison = Comparison("What it is.", 20, scores, scores[1], EvaluationResult([4.0, 5.0], [1, 1]), BASELINES)
    lines = comparison.table().splitlines()
    assert lines[0] == "What it is."
    assert "| 0.5 | 2.0 +- 1.0 | 1 of 2 | 1.5 +- 0.5 | - | 61.3 |" in lines
    assert "| **1.15** (chosen) | 2.0 +- 1.0 | 1 of 2 | 6.0 +- 1.0 | 4.5 +- 0.5 | 61.3 |" in lines
    assert "| random | 11.0 +- 1.0 |" in lines
    assert "| sticky random (0.9) | 21.0 +- 1.0 |" in lines
    assert "| best constant action (1) | 31.0 +- 1.0 |" in lines
    assert "dreams at the limit of 20 steps" in lines[2]
    content = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert content["chosen"] == {"temperature": 1.15, "fresh": {"returns": [4.0, 5.0], "lengths": [1, 1]}}
    assert content["temperatures"][0]["real"]["returns"] == [1.0, 2.0]


def test_what_is_written_is_what_is_read(tmp_path):
    score = make_score(0.5, (1.0, 2.0))
    write_json(tmp_path / "score.json", to_json(score))
    assert read_result(tmp_path / "score.json", score_from) == score
    action = np.array([0.25, 1.0], np.float32)
    write_json(
        tmp_path / "baselines.json", to_json(Baselines(BASELINES.random, BASELINES.random, BASELINES.random, action))
    )
    assert read_result(tmp_path / "baselines.json", baselines_from).constant_action == [0.25, 1.0]
    assert read_result(tmp_path / "none.json", score_from) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": 1}'])
def test_a_broken_result_is_one_clear_error(tmp_path, content):
    from wm_rllib.runs.errors import CommandError

    (tmp_path / "score.json").write_text(content)
    with pytest.raises(CommandError, match=r"score\.json cannot be read\. Fix: "):
        read_result(tmp_path / "score.json", score_from)


@pytest.mark.parametrize("episodes", [1, 20, 30, 100])
def test_fresh_episodes_are_others(episodes):
    plan = plan_temperatures(build_parser().parse_args(arguments("--episodes", str(episodes))))
    lanes = min(episodes, 20)
    played = range(-(-episodes // lanes) * lanes)  # whole rounds
    choosing, fresh = ({first + index for index in played} for first in (_choosing_seed(plan), _fresh_seed(plan)))
    assert not choosing & fresh


# --- from beginning to end -------------------------------------------------------------------------------------------


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "progress.jsonl").read_text().splitlines()]


@pytest.mark.integration
def test_the_command(capsys, monkeypatch):
    from wm_rllib.cli import temperatures as command

    argv = arguments("--episodes", str(EPISODES), "--no-tensorboard")
    # The second temperature's scores fail once, as if the process had been killed there.
    measure, measured = command._measure, []

    def fail_once(plan, temperature):
        measured.append(temperature)
        if measured == [0.5, 1.15]:
            raise RuntimeError("killed")
        return measure(plan, temperature)

    monkeypatch.setattr(command, "_measure", fail_once)
    assert main(argv) == 1
    assert not Path("temps/temperatures.md").exists()
    first = json.loads(Path("temps/t-0.5/score.json").read_text())
    before = rows_of("temps/t-1.15")
    # It goes on with that one, and another temperature joins them.
    assert main(arguments("--episodes", str(EPISODES), "--no-tensorboard", temperatures=("1.15", "2.0"))) == 0
    assert measured == [0.5, 1.15, 1.15, 2.0]
    assert rows_of("temps/t-1.15") == before  # it had been trained, and only the scores were missing
    # Nothing is missing any more: no Ray is started.
    monkeypatch.setattr(command, "ray_session", lambda *_, **__: 1 / 0)
    capsys.readouterr()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("skipped, it is done: temperature ") == 2 and "collecting" not in out
    assert len(measured) == 4

    for name in ("pretrained", "t-0.5", "t-1.15"):
        assert {row["num_env_steps_sampled_lifetime"] for row in rows_of(f"temps/{name}")} == {
            63
        }  # four envs step together
    assert [row["phase"] for row in rows_of("temps/pretrained")] == ["random", "pretrain"]
    assert [row["mixed_iterations"] for row in rows_of("temps/t-0.5")] == [1, 2, 3]
    assert [row["world_model/version"] for row in rows_of("temps/t-0.5") + before] == [
        rows_of("temps/pretrained")[-1]["world_model/version"]
    ] * 2 * ITERATIONS

    content = json.loads(Path("temps/temperatures.json").read_text())
    assert [score["temperature"] for score in content["temperatures"]] == [0.5, 1.15, 2.0]
    assert content["temperatures"][0] == first and first["iterations"] == ITERATIONS
    for score in content["temperatures"]:
        assert len(score["real"]["returns"]) == len(score["dream"]["returns"]) == EPISODES
        assert max(score["dream"]["lengths"]) <= 20
    best = max(content["temperatures"], key=lambda score: np.mean(score["real"]["returns"]))
    assert content["chosen"]["temperature"] == best["temperature"]
    assert len(content["chosen"]["fresh"]["returns"]) == EPISODES
    assert len(content["baselines"]["random"]["returns"]) == EPISODES
    table = Path("temps/temperatures.md").read_text()
    assert table in out and "(chosen)" in table and "sticky random" in table

    # Every checkpoint is one that the other commands take.
    from wm_rllib import load_policy

    for temperature in (0.5, 1.15):
        folder = f"temps/t-{temperature}"
        assert load_policy(f"{folder}/checkpoints/last").world_model.config.mdn_rnn.temperature == temperature
        assert main(["evaluate", folder, "--episodes", "2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"] == 2


@pytest.mark.slow
@pytest.mark.integration
def test_killed_in_the_middle_of_training(capsys, monkeypatch):
    from wm_rllib import WorldModelPPO

    argv = arguments("--episodes", "2", "--no-tensorboard", temperatures=("1.0",))
    whole = arguments("--episodes", "2", "--no-tensorboard", "--run-dir", "whole", temperatures=("1.0",))
    train = WorldModelPPO.train

    def train_until_killed(algorithm):
        if algorithm.iteration == 4:  # checkpoints are of every second one
            raise RuntimeError("killed")
        return train(algorithm)

    monkeypatch.setattr(WorldModelPPO, "train", train_until_killed)
    assert main(argv) == 1
    monkeypatch.setattr(WorldModelPPO, "train", train)
    assert main(argv) == 0
    assert main(whole) == 0
    scores = [json.loads(Path(f"{root}/t-1/score.json").read_text()) for root in ("temps", "whole")]
    for score in scores:
        del score["training_seconds"], score["scoring_seconds"]
    assert scores[0] == scores[1]
    assert [row["mixed_iterations"] for row in rows_of("temps/t-1")] == [1, 2, 3]
