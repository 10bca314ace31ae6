"""Fixtures of all tests: one process, one thread, and a local Ray only where a test module asks for it."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray starts: a token in the home folder must not matter
os.environ.setdefault("RAY_DISABLE_USAGE_STATS", "1")
# Actors and other processes find the helpers in this folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # the sums of several threads may differ in their last bits


def pytest_configure(config: pytest.Config) -> None:
    """Each env runner registers RLlib's environment name anew, and Gymnasium warns of it."""
    config.addinivalue_line("filterwarnings", "ignore:.*Overriding environment rllib-single-agent-env-v0")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers, alone or with others, and leaves torch as it found it."""
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled(), "this test leaves gradients off for all that follow"


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind() -> Iterator[None]:
    """An algorithm that is built without `local_ray` starts Ray by itself: the next module must not find it."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this module's own on this machine, with two logical CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


class Reference:
    """Stands for a Ray reference to a copy of a value; it equals itself alone."""

    def __init__(self, value: Any):
        self.value = copy.deepcopy(value)


def _get(refs: Any, **_: Any) -> Any:
    if isinstance(refs, list):
        return [_get(ref) for ref in refs]
    return refs.value if isinstance(refs, Reference) else refs


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store in this process in place of Ray's; what is no reference is its own value."""
    monkeypatch.setattr("ray.put", Reference)
    monkeypatch.setattr("ray.get", _get)
