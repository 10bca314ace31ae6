"""The pixel pipeline in one command: run, resumption and evaluation, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from wm_rllib.benchmark.pixel_pipeline import MAX_GIGABYTES, Task, describe, main, reduced_tasks, run_task

ROOT = Path(__file__).parents[1]


@pytest.mark.integration
@pytest.mark.slow
def test_a_task_is_run_resumed_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    config = tmp_path / "dot.yaml"
    vae = {"latent_dim": 4, "channels": [8], "batch_size": 16, "pretrain_epochs": 4, "online_lr_fraction": 0}
    training = {"pretrain_epochs": 20, "updates_per_step": 0.05, "imagination_ratio": 0.5, "imagination_horizon": 5}
    tree = {
        "env": {"id": "image_env:DotEnv"},
        "world_model": {
            "vae": vae,
            "mdn_rnn": {"hidden_dim": 8, "ensemble_size": 0},
            "data_collection": {"random_collection_steps": 300},
            "training": training,
        },
        "ppo": {"train_batch_size_per_learner": 32},
        "checkpoint": {"frequency": 1},
        "evaluation": {"episodes": 2},
    }
    config.write_text(yaml.safe_dump(tree))
    bound = 0.0002
    found = run_task(Task(config, {MAX_GIGABYTES: bound}, "stop.iterations", (3, 4)), tmp_path / "run")
    assert found["iterations"] == [5, 6]  # random and pretraining, then the mixed ones
    for name in ("reconstruction_loss", "nll"):
        at_start, at_end = found[name]
        assert at_end < at_start
    assert found["replay_steps"] < found["real_steps"]  # the bound made some leave
    assert 0.5 * bound < found["replay_gigabytes"] < bound * 1.2  # latents come on top
    assert found["evaluation"]["episodes"] == 3 and found["peak_gigabytes"] > 0.1
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert {"sample", "fit_vae", "encode", "fit_mdn", "dream", "update"} <= found["stage_seconds"].keys()
    assert describe({"dot": found}).count("|") == 3 * 10


def test_a_command_that_fails_says_why(tmp_path: Path, processes_without_ray: None):
    with pytest.raises(RuntimeError, match=r"exited with 2:(.|\n)*no-such\.yaml"):
        run_task(Task(tmp_path / "no-such.yaml", {}, "stop.iterations", (1, 2)), tmp_path / "run")


def test_reduced_tasks_name_what_exists():
    tasks = reduced_tasks(ROOT / "tune_configs")
    assert [yaml.safe_load(task.config.read_text())["env"]["id"] for task in tasks.values()] == list(tasks)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--env", "Pong"], "must be one of CarRacing-v3"), (["--configs", "nowhere"], "Fix:")]
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
