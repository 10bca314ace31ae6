"""A lost learner ends a trial, and Tune's retry goes on from the checkpoint: no step twice, none lost."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig
from remote import learners, pid_of
from tiny import tiny_config

import wm_rllib

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

ITERATIONS, FATAL = 6, 4


def kill_a_learner_once(*, algorithm: Any, result: dict, flag: str, **_: Any) -> None:
    """Callback `on_train_result`: after iteration 4, once, ends the second of two learners."""
    if result["training_iteration"] == FATAL and not Path(flag).exists():
        Path(flag).touch()
        os.kill(pid_of(learners(algorithm)[1]), signal.SIGKILL)


@pytest.mark.parametrize("overlap", [False, True], ids=["sequential", "overlap"])
def test_a_trial_goes_on_after_a_lost_learner(tmp_path, overlap):
    wm_rllib.register()
    flag = tmp_path / "killed"
    config = tiny_config(
        num_learners=2,
        num_cpus_per_learner=0.25,
        num_env_runners=1,
        num_cpus_per_env_runner=0.25,
        num_dreamers=1,
        num_cpus_per_dreamer=0.25,
        num_cpus_for_replay=0.1,
        overlap=overlap,
    ).callbacks(on_train_result=functools.partial(kill_a_learner_once, flag=str(flag)))
    [result] = tune.Tuner(
        "WorldModelPPO",
        param_space=config,
        run_config=RunConfig(
            storage_path=str(tmp_path / "results"),
            stop={"training_iteration": ITERATIONS},
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1, num_to_keep=2),
            failure_config=FailureConfig(max_failures=1),
            verbose=0,
        ),
    ).fit()
    assert flag.exists() and result.error is None
    lines = [json.loads(line) for line in (Path(result.path) / "result.json").read_text().splitlines()]
    iterations = [line["training_iteration"] for line in lines]
    assert iterations == list(range(1, ITERATIONS + 1)), iterations
    steps = [line["num_env_steps_sampled_lifetime"] for line in lines]
    assert steps == sorted(steps) and steps[-1] > steps[FATAL - 1]
