"""An environment that breaks its promises is one clear message, before anything starts."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tiny import tiny_config

from wm_rllib import WorldModelPPOConfig
from wm_rllib.environments.errors import EnvironmentContractError
from wm_rllib.environments.probe import probe
from wm_rllib.training.environment_check import check_environment


class Sound(gym.Env[Any, Any]):
    """As it should be."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: Any = None):
        self.given: Any = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.given, {}

    def step(self, action: Any) -> Any:
        return self.given, 1.0, False, False, {}


class OldReset(Sound):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.given


class NoSeed(Sound):
    def reset(self) -> Any:  # type: ignore[override]
        return self.given, {}


class OldStep(Sound):
    def step(self, action: Any) -> Any:
        return self.given, 1.0, False, {}


class OtherShape(Sound):
    def __init__(self, config: Any = None):
        self.given = np.zeros(4, np.float32)


class OtherShapeLater(Sound):
    def step(self, action: Any) -> Any:
        return np.zeros((1, 3)), 1.0, False, False, {}


class Fractions(Sound):
    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def __init__(self, config: Any = None):
        self.given = np.zeros((64, 64, 3), np.float32)


class NoReward(Sound):
    def step(self, action: Any) -> Any:
        return self.given, None, False, False, {}


class ManyRewards(Sound):
    def step(self, action: Any) -> Any:
        return self.given, np.ones(2), False, False, {}


class Raises(Sound):
    def step(self, action: Any) -> Any:
        raise KeyError("the valve is stuck")


class RaisesLater(Sound):
    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps > 5:
            raise KeyError("the valve is stuck")
        return super().step(action)


class Unmade(Sound):
    def __init__(self, config: Any = None):
        raise OSError("no licence")


BROKEN: dict[type[Sound], tuple[str, ...]] = {
    OldReset: ("reset() must return (observation, info)", "ndarray of shape (3,)", "Fix: return observation, {}"),
    NoSeed: ("reset() must take seed and options", "'seed'"),
    OldStep: ("step() must return (observation, reward, terminated, truncated, info)", "a tuple of 4"),
    OtherShape: ("reset() must give observations of the shape of the space, (3,)", "one of shape (4,)"),
    OtherShapeLater: ("step() must give observations of the shape of the space, (3,)", "one of shape (1, 3)"),
    Fractions: ("reset() must give observations of the space's uint8", "one of float32"),
    NoReward: ("step() must return a number as reward", "None"),
    ManyRewards: ("step() must return a number as reward", "ndarray of shape (2,)"),
}


@pytest.mark.parametrize("env", BROKEN, ids=lambda env: env.__name__)
@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_a_broken_promise_is_one_clear_error(env: type[Sound], num_env_runners: int, monkeypatch: pytest.MonkeyPatch):
    def start(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr("ray.init", start)
    with pytest.raises(EnvironmentContractError, match="Fix: ") as caught:
        tiny_config(env, num_env_runners=num_env_runners).build_algo()
    assert all(words in str(caught.value) for words in BROKEN[env])


@pytest.mark.parametrize("given", [np.zeros(3), [0.0, 0.5, 1.0], (0, 1, 0), np.array([True, False, True])], ids=str)
def test_what_can_be_read_as_the_space_says_is_taken(given: Any):
    env = Sound()
    env.given = given
    probe(env, env.observation_space, env.action_space)


def test_errors_of_the_environment_itself_are_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(KeyError, match="the valve is stuck"):
        tiny_config(Raises).build_algo()


def test_no_environment_is_one_clear_error():
    with pytest.raises(ValueError, match=r"no environment is set. Fix: config.environment"):
        WorldModelPPOConfig().build_algo()


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_what_a_step_raised_later_is_told():
    algorithm = tiny_config(RaisesLater).build_algo()
    with pytest.raises(RuntimeError, match=r"the environment's step\(\) raised KeyError: 'the valve is stuck'"):
        algorithm.train()
    algorithm.stop()


class RaggedInfos(Sound):
    """No two instances have infos of one shape."""

    made = itertools.count(1)

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.contacts = np.zeros(next(self.made))

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"contacts": self.contacts}


class HandleInInfos(Sound):
    """And episodes of 7 steps, so that some are under way in a checkpoint."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        return *super().step(action)[:3], self.steps % 7 == 0, {"simulator": threading.Lock()}


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_infos_that_cannot_be_made_arrays_of_are_told_as_such():
    algorithm = tiny_config(RaggedInfos, num_envs_per_env_runner=2).build_algo()
    with pytest.raises(RuntimeError, match=r"could not broadcast .* the same type and shape in every step, or"):
        algorithm.train()
    algorithm.stop()


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_infos_may_hold_what_cannot_be_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    algorithm = tiny_config(HandleInInfos).build_algo()
    for _ in range(3):
        result = algorithm.train()
    assert result["phase"] == "mixed"
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    assert "a run that resumes from this checkpoint starts new episodes, since cannot pickle" in caplog.text
    algorithm.stop()


class HalfBounded(Sound):
    action_space = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32))


def test_bounds_that_rllib_would_not_keep_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ValueError, match=r"some infinite bounds.*Fix: .env_runners\(normalize_actions=False"):
        tiny_config(HalfBounded).build_algo()
    check_environment(tiny_config(HalfBounded, normalize_actions=False, clip_actions=True), HalfBounded)


def test_a_vector_that_v_has_to_squeeze_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wm_rllib.training.environment_check.probe", lambda *_: None)
    for latent_dim in (3, 2):
        check_environment(tiny_config(Sound, latent_dim=latent_dim), Sound)
        squeezed = "observations have 3 numbers, which V squeezes into latent_dim = 2" in caplog.text
        assert squeezed == (latent_dim == 2)
    caplog.clear()
    check_environment(tiny_config(Sound, latent_dim="auto"), Sound)
    assert "squeezes" not in caplog.text


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_what_remote_env_runners_could_not_make_is_told():
    with pytest.raises(OSError, match="no licence"):
        tiny_config(Unmade, num_env_runners=1).build_algo()


@pytest.mark.integration
def test_the_command_line_says_it_in_one_line(tmp_path: Path):
    command = ["-m", "wm_rllib", "train", "--env", f"{__name__}:OldStep", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert "step() must return (observation, reward" in done.stderr and "Traceback" not in done.stderr
