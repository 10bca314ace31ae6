"""Environments that need more packages: found by their ids alone, or one message with the command for pip."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from tiny import tiny_config

from wm_rllib.cli.main import main
from wm_rllib.environments.extras import EXTRAS, extra_of
from wm_rllib.environments.names import env_spaces, find_env, gymnasium_makes, make_env, vector_maker
from wm_rllib.environments.pixels import PixelSettings
from wm_rllib.settings.settings import SettingError

SMALL_DOOM = {"frame_skip": 4, "screen_resolution": "RES_160X120"}
DOOM_IDS = ["VizdoomTakeCover-v1", "vizdoom.gymnasium_wrapper:VizdoomTakeCover-v1"]


def needs(*modules):
    """Skips where one of them is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


NEEDS_DOOM = needs("vizdoom", "pygame")

MISSING = [
    ("CarRacing-v3", "Box2D", "Box2D", "box2d"),
    ("CarRacing-v3", "pygame", "pygame", "box2d"),
    ("LunarLander-v3", "Box2D", "Box2D", "box2d"),
    ("BipedalWalker-v3", "Box2D", "Box2D", "box2d"),
    ("Hopper-v5", "mujoco", "MuJoCo", "mujoco"),
    ("HalfCheetah-v5", "imageio", "imageio", "mujoco"),
    ("ALE/Pong-v5", "ale_py", "ale-py", "atari"),
    ("ale_py:ALE/Pong-v5", "ale_py", "ale-py", "atari"),
    *((doom, "vizdoom", "ViZDoom", "vizdoom") for doom in DOOM_IDS),
]


@pytest.fixture
def no_actor_starts(monkeypatch):
    """Fails the test if an actor is created."""
    monkeypatch.setattr("ray.actor.ActorClass._remote", lambda *_, **__: pytest.fail("an actor was started"))


@pytest.mark.parametrize(("env_id", "module", "called", "extra"), MISSING)
def test_a_missing_extra_is_one_message(monkeypatch, capsys, tmp_path, env_id, module, called, extra):
    for other in (one for known in EXTRAS if known.name == extra for one in known.modules):
        monkeypatch.setitem(sys.modules, other, sys)  # there, whether or not this machine has it
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    words = f"environment '{env_id}' needs {called}, which is not installed. Fix: pip install 'wm_rllib[{extra}]'\n"
    assert main(["train", "--env", env_id]) == 2
    assert capsys.readouterr().err == f"wm_rllib: error: {words}"
    assert main(["benchmark", "run", "--env", env_id, "--contender", "random"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray", "no_actor_starts")
def test_the_algorithm_says_so_before_any_actor(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(SettingError, match=r"pip install 'wm_rllib\[box2d\]'"):
        tiny_config("LunarLander-v3").build_algo()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "wm_rllib/Dream-v0", "custom_envs:Walk", "pygame:Thing", "None"])
def test_other_environments_need_no_extra(env_id):
    assert extra_of(env_id) is None


def test_pyproject_has_the_extras():
    text = open(os.path.join(os.path.dirname(__file__), "..", "pyproject.toml")).read()
    for extra in EXTRAS:
        assert f"\n{extra.name} = [" in text


def test_a_package_that_an_environment_imports_and_nobody_has(monkeypatch):
    monkeypatch.setitem(gym.registry, "Lost-v0", gym.envs.registration.EnvSpec("Lost-v0", "no_such_module:Lost"))
    with pytest.raises(SettingError, match="'Lost-v0' cannot be made: No module named 'no_such_module'"):
        env_spaces("Lost-v0")


# --- those that are installed ----------------------------------------------------------------------------------------


@needs("Box2D", "pygame")
def test_car_racing_is_shrunk():
    env = make_env("CarRacing-v3", {}, PixelSettings(crop=(0, 12, 0, 0), size=(64, 64), frame_skip=4))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (64, 64, 3) and observation.std() > 0
    env.close()


@needs("ale_py")
def test_atari_is_found_by_its_id():
    for env_id in ("ALE/Pong-v5", "ale_py:ALE/Pong-v5"):
        observation_space, action_space = env_spaces(env_id, {}, PixelSettings(size=(84, 84), grayscale=True))
        assert (observation_space.shape, action_space.n) == ((84, 84, 1), 6)


@needs("mujoco", "imageio")
def test_mujoco():
    assert env_spaces("InvertedPendulum-v5")[0].shape == (4,)


@NEEDS_DOOM
@pytest.mark.parametrize("env_id", DOOM_IDS)
def test_doom_is_found_by_its_id_and_leaves_the_folder_alone(env_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = make_env(env_id, SMALL_DOOM, PixelSettings(key="screen", size=(64, 64)))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (64, 64, 3) and observation.dtype == np.uint8 and observation.std() > 0
    total, done = 0.0, False
    while not done:
        observation, reward, done, truncated, _ = env.step(0)
        assert not truncated and 1 <= reward <= 4  # one for each tic that was survived, and for the last one
        total += float(reward)
    assert 50 < total < 2100
    assert not observation.any()  # the engine has no picture of the end
    env.close()
    assert not list(tmp_path.iterdir())
    assert not gymnasium_makes(env_id) and callable(vector_maker(env_id))


@NEEDS_DOOM
def test_the_engine_plays_the_same_as_without_us(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find_env(DOOM_IDS[0])
    pictures = []
    for env in (make_env(DOOM_IDS[0], SMALL_DOOM), gym.make(DOOM_IDS[0], **SMALL_DOOM)):
        env.reset(seed=3)
        pictures.append([env.step(action)[0]["screen"] for action in (0, 1, 2, 2, 2, 1)])
        env.close()
    assert np.array_equal(*pictures)


@NEEDS_DOOM
def test_the_engine_s_folder_goes_with_the_process(tmp_path, processes_without_ray):
    program = (
        "from wm_rllib.environments.vizdoom_engine import engine_settings\n"
        "settings = engine_settings({'doom_scenario_path': 'my.wad', 'frame_skip': 4, 'doom_map': 'map01'})\n"
        "print(settings['vizdoom_path'], settings['doom_scenario_path'], settings['frame_skip'])"
    )
    (tmp_path / "my.wad").touch()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    launcher, scenario, frame_skip = done.stdout.split()
    assert not os.path.exists(launcher) and scenario == str(tmp_path / "my.wad") and frame_skip == "4"


@NEEDS_DOOM
@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_env_runners_find_doom(tmp_path, monkeypatch):
    from wm_rllib.env_runners.env_runner import WorldModelEnvRunner

    monkeypatch.chdir(tmp_path)
    config = tiny_config(DOOM_IDS[0], vae_class="custom_models:ImageVAE")
    config.environment(env_config=SMALL_DOOM, pixels_key="screen", pixels_size=(4, 4))
    runner = WorldModelEnvRunner(config=config)
    assert runner.env.single_observation_space.shape == (4, 4, 3)
    assert sum(map(len, runner.sample(num_timesteps=8, random_actions=True))) == 8
    runner.stop()
    assert not list(tmp_path.iterdir())
