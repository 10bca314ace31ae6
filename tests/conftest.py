"""Fixtures of all tests: one process, one thread, and one local Ray for the test modules that ask for it."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray starts: a token in the home folder must not matter
os.environ.setdefault("RAY_DISABLE_USAGE_STATS", "1")
os.environ.pop("RAY_ADDRESS", None)  # nor a cluster that somebody works on
# Ray's processes would run at niceness 15, and wait for the other half of the tests on a machine with two cores.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray would start two workers ahead, which a command that trains in its own process never uses.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
# Actors and other processes find the helpers in this folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))

import copy
import functools
import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine may take its time
hypothesis.settings.load_profile("tests")
torch.set_num_threads(1)  # the sums of several threads may differ in their last bits

LOCAL_RAY = "local_ray"  # the resource by which that fixture's Ray is known
# Of the modules with a Ray those that start most actors: about half of their time.
WITH_ACTORS = {f"test_{name}.py" for name in "dream_only faults images learners_agree overlap remote tune".split()}
LONG = ("test_cli.py", "test_benchmark.py", "test_temperatures.py")
IDLE_WITHIN_S = 3.0
WITH_RAY = pytest.StashKey[set[Path]]()


def pytest_configure(config: pytest.Config) -> None:
    """Each env runner registers RLlib's environment name anew, and Gymnasium warns of it."""
    config.addinivalue_line("filterwarnings", "ignore:.*Overriding environment rllib-single-agent-env-v0")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers, alone or with others, and leaves torch as it found it."""
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled(), "this test leaves gradients off for all that follow"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Modules that use `local_ray` come first and side by side, so that one Ray serves them all."""
    with_ray = config.stash[WITH_RAY] = {i.path for i in items if "local_ray" in getattr(i, "fixturenames", ())}

    def order(item: pytest.Item) -> tuple[bool, ...]:
        name = item.path.name
        return item.path not in with_ray, name not in WITH_ACTORS, name not in LONG  # what is short fills the gaps

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """What was imported stays: collections of garbage, which some code under test asks for, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`: half of those modules in each process, the others, each whole, in whichever is free."""
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def scope(module: str) -> str:
        path = config.rootpath / module
        if path.name in WITH_ACTORS:
            return "actors"
        return LOCAL_RAY if LOCAL_RAY in path.read_text() else module

    class OneRayEach(LoadScopeScheduling):  # type: ignore[misc]  # xdist may not be installed
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid.partition("::")[0])

    return OneRayEach(config, log)


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module finds no Ray but that of `local_ray`, if it asks for it, and nothing that still runs there."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and request.path not in request.config.stash[WITH_RAY]:
        ray.shutdown()
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and not (_is_local(ray) and _is_idle(ray)):
        ray.shutdown()


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray on this machine with two logical CPUs; a module that leaves actors behind ends it for the next."""
    import ray

    from wm_rllib.cli.ray_session import init_ray

    if not ray.is_initialized():
        resources = {LOCAL_RAY: 1.0}
        options = {"num_cpus": 2, "resources": resources, "include_dashboard": False}
        init_ray(address="local", **options, logging_level="ERROR", log_to_driver=False)


def _is_local(ray: ModuleType) -> bool:
    return LOCAL_RAY in ray.cluster_resources()


def _is_idle(ray: ModuleType) -> bool:
    """Whether all that ran there has ended; actors without a handle end in a moment."""
    gc.collect()
    deadline = time.monotonic() + IDLE_WITHIN_S
    while time.monotonic() < deadline:
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.1)
    return False


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


@pytest.fixture
def processes_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test starts cannot import Ray, nor what of this package needs it: that takes seconds."""
    folder = os.path.join(os.path.dirname(__file__), "without_ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([folder, os.environ["PYTHONPATH"]]))
