"""Fixtures of all tests: one process, one thread, and a local Ray only where a test module asks for it."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray starts: a token in the home folder must not matter
os.environ.setdefault("RAY_DISABLE_USAGE_STATS", "1")

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # the sums of several threads may differ in their last bits


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, alone or with others."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this module's own on this machine, with two logical CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
