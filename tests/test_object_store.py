"""A full object store: Ray spills to disk and training goes on; with the disk full too, that error ends the run."""

from __future__ import annotations

import subprocess
import time

import numpy as np
import pytest
import ray
from remote import assert_exact, train_until
from tiny import ROUNDS, tiny_config

from wm_rllib.dreamers.pool import DreamerError
from wm_rllib.env_runners.collection import EnvRunnerError

pytestmark = [pytest.mark.slow, pytest.mark.integration]

STORE_BYTES = 80 * 1024 * 1024
RATIO = 0.98
FULL = (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError)


@pytest.fixture
def small_store():
    """Starts a Ray whose object store is nearly the smallest that Ray allows."""

    def start(**more):
        options = {"address": "local", "num_cpus": 2, "include_dashboard": False, "logging_level": "ERROR"}
        ray.init(**options, object_store_memory=STORE_BYTES, log_to_driver=False, **more)
        config = tiny_config(
            imagination_ratio=RATIO,
            num_env_runners=1,
            num_dreamers=2,
            num_cpus_per_dreamer=0.2,
            num_cpus_per_env_runner=0.2,
            num_cpus_for_replay=0.1,
            # A round's dreams alone are 8 MB.
            _train_batch_size_per_learner=512,
            mdn_hidden_dim=64,
        )
        algorithms.append(config.build_algo())
        return algorithms[-1]

    algorithms = []
    yield start
    for algorithm in algorithms:
        algorithm.stop()
    ray.shutdown()


def fill() -> list[ray.ObjectRef]:
    """More than fits, pinned by this process."""
    return [ray.put(np.zeros(10 * 1024 * 1024, np.uint8)) for _ in range(10)]


def test_a_full_object_store_spills_and_training_goes_on(small_store):
    algorithm = small_store()
    train_until(algorithm, lambda result: result["phase"] == "mixed")
    held, steps = fill(), algorithm._state.num_env_steps
    for _ in range(4):
        result = algorithm.train()
        steps = assert_exact(result, RATIO, ROUNDS, steps)
    assert result["faults"]["dreamer_errors"] == result["faults"]["env_runner_errors"] == 0
    assert sum(ray.get(ref)[0] for ref in held) == 0  # nothing of it was lost


@pytest.fixture
def small_disk(tmp_path):
    """A disk that is full soon."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_with_the_disk_full_too_that_error_ends_the_run(small_disk, small_store):
    """It is raised, so that a checkpoint can be resumed where there is room; and with room again training goes on."""
    algorithm = small_store(object_spilling_directory=str(small_disk))
    train_until(algorithm, lambda result: result["phase"] == "mixed")
    held = []
    with pytest.raises(FULL):
        while True:
            held.append(ray.put(np.zeros(1024 * 1024, np.uint8)))
    with pytest.raises((DreamerError, EnvRunnerError, *FULL), match=r"OutOfDisk|ObjectStoreFull|out of disk"):
        for _ in range(20):
            algorithm.train()
    del held
    steps = algorithm._state.num_env_steps
    time.sleep(5.0)  # Ray frees what nobody holds by the hundred, or once a second
    for _ in range(3):
        steps = assert_exact(algorithm.train(), RATIO, ROUNDS, steps)
