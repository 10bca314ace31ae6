"""Pixel settings wherever an environment is made: env runners, checks, checkpoints and the commands that load them."""

from __future__ import annotations

import json
import os

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from custom_envs import Cinema, Gallery, Walk
from tiny import tiny_config

from wm_rllib import WorldModelPPO, load_policy
from wm_rllib.acting.evaluation import evaluate_policy, make_vector_env
from wm_rllib.cli.main import main
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.environments.names import make_env, vector_maker
from wm_rllib.environments.pixels import FrameSkip, ImageObservation, PixelError, PixelSettings, preprocess
from wm_rllib.look.episodes import step_limit
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.options import changed_on_resume, resolved_tree
from wm_rllib.runs.plan import check_env
from wm_rllib.settings.settings import SettingError

PIXELS = PixelSettings(key="screen", crop=(0, 0, 0, 2), grayscale=True, size=(4, 3), frame_skip=5)
SHAPE = (4, 3, 1)
RETURN, DECISIONS = 12.0, 3  # twelve frames of reward 1 by five a decision


def image_config(env=Cinema, **overrides):
    """A tiny config of these settings, with a V that takes such images."""
    config = tiny_config(env, vae_class="custom_models:ImageVAE", **overrides)
    return config.environment(
        pixels_key="screen", pixels_crop=(0, 0, 0, 2), pixels_grayscale=True, pixels_size=[4, 3], frame_skip=5
    )


def wrappers_of(env):
    while isinstance(env, gym.Wrapper):
        yield type(env)
        env = env.env


# --- env runners -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [Cinema, "custom_envs:Cinema"], ids=["class", "path"])
def test_env_runners_see_the_image(env):
    config = image_config(env)
    runner = WorldModelEnvRunner(config=config)
    assert runner.env.single_observation_space == gym.spaces.Box(0, 255, SHAPE, np.uint8)
    episodes = runner.sample(num_episodes=1, random_actions=True)
    (raw,) = runner.features.take_raw(episodes, [])
    assert [len(episode) for episode in episodes] == [DECISIONS] and episodes[0].get_return() == RETURN
    observations = np.asarray(raw.observations)
    assert observations.shape == (DECISIONS + 1, *SHAPE) and observations.dtype == np.uint8
    assert observations[:, 0, 0, 0].tolist() == [0, 5, 10, 12]
    runner.make_env()  # as after an error of the environment
    assert runner.env.single_observation_space.shape == SHAPE
    assert runner.config.env == env
    runner.stop()


def test_defaults_leave_the_env_runner_s_environment_alone():
    """But for what the deterministic setting needs; so there is no seed here."""
    for env, before in (("CartPole-v1", gym.make_vec("CartPole-v1", vectorization_mode="sync").envs[0]), (Walk, None)):
        runner = WorldModelEnvRunner(config=tiny_config(env, seed=None))
        wrappers = list(wrappers_of(runner.env.unwrapped.envs[0]))
        assert ImageObservation not in wrappers and FrameSkip not in wrappers
        if before is not None:
            assert wrappers == list(wrappers_of(before))
        runner.stop()


def test_frames_can_be_skipped_without_images():
    runner = WorldModelEnvRunner(config=tiny_config("CartPole-v1", frame_skip=4))
    assert runner.env.single_observation_space.shape == (4,)
    (episode,) = runner.sample(num_episodes=1, random_actions=True)
    assert episode.get_return() > len(episode)  # CartPole pays 1 a frame
    runner.stop()


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_remote_env_runners_see_it_too():
    config = image_config("custom_envs:Cinema")
    runner = ray.remote(num_cpus=0.2)(WorldModelEnvRunner).remote(config=config, worker_index=1)
    (episode,) = ray.get(runner.sample.remote(num_episodes=1, random_actions=True))
    assert len(episode) == DECISIONS
    ray.kill(runner)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_an_algorithm_trains_evaluates_and_is_restored(tmp_path):
    config = image_config()
    config.evaluation_interval_steps = 1000  # evaluation runners of its own, that are asked below
    algorithm = config.build_algo()
    try:
        phases = [algorithm.train()["phase"] for _ in range(3)]
        assert phases[-1] == "mixed"
        assert algorithm.eval_env_runner_group is not None
        assert algorithm.evaluate_return(2).returns == [RETURN, RETURN]
        assert algorithm.env_creator({}).observation_space.shape == SHAPE
        assert algorithm.get_policy().pixels == PIXELS
        path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algorithm.stop()
    restored = WorldModelPPO.from_checkpoint(path)
    try:
        assert restored.config.pixel_settings == PIXELS
        assert restored.evaluate_return(1).returns == [RETURN]
    finally:
        restored.stop()
    assert load_policy(path).pixels == PIXELS


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of random weights whose settings have pixels."""
    config = image_config()
    runner = WorldModelEnvRunner(config=config)
    spaces = runner.get_spaces()
    runner.stop()
    modules = config.get_multi_rl_module_spec(spaces=spaces).build()
    config.env = "custom_envs:Cinema"

    def save_to(path):
        modules.save_to_path(str((path / "learner_group" / "learner" / "rl_module").absolute()))

    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    return checkpoints.write(folder, "last", CheckpointMeta(3, 300, 1.0), resolved_tree(config, {}), save_to)


@pytest.fixture
def with_custom_envs(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))


@pytest.mark.usefixtures("with_custom_envs")
@pytest.mark.parametrize("env", [[], ["--env", "custom_envs:Cinema"]], ids=["its own", "named"])
def test_evaluate_plays_in_what_the_agent_was_trained_in(checkpoint, capsys, env):
    assert main(["evaluate", str(checkpoint), "--episodes", "3", "--json", *env]) == 0
    assert json.loads(capsys.readouterr().out)["episode_return_mean"] == RETURN


@pytest.mark.usefixtures("with_custom_envs")
def test_a_checkpoint_needs_no_settings_file_to_know(checkpoint, tmp_path, capsys):
    """Ray Tune's have none."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "learner_group").symlink_to(checkpoint / "learner_group")
    (bare / checkpoints.RLLIB_META_FILE).write_text("{}")
    assert main(["evaluate", str(bare), "--env", "custom_envs:Cinema", "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episode_return_mean"] == RETURN


@pytest.mark.usefixtures("with_custom_envs")
def test_plan_plays_in_it_too(checkpoint, capsys):
    few = ["--samples", "4", "--iterations", "1", "--horizon", "2", "--episodes", "1"]
    assert main(["plan", str(checkpoint), "--json", *few]) == 0
    assert json.loads(capsys.readouterr().out)["returns"] == [RETURN]


@pytest.mark.usefixtures("with_custom_envs")
def test_dream_shows_what_the_agent_sees(checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    assert main(["dream", str(checkpoint), "--output", str(tmp_path / "dream.gif"), "--horizon", "2"]) == 0
    assert (tmp_path / "dream.gif").exists()


@pytest.mark.usefixtures("with_custom_envs")
def test_an_environment_without_such_images_is_one_error(checkpoint, capsys):
    assert main(["evaluate", str(checkpoint), "--env", "custom_envs:Gallery"]) == 2
    assert "environment 'custom_envs:Gallery': env.pixels.key is 'screen', but must be null" in capsys.readouterr().err


def test_a_policy_in_an_environment_of_one_s_own(checkpoint):
    policy = load_policy(checkpoint)
    env = preprocess(Cinema(), policy.pixels)
    assert evaluate_policy(policy, lambda _: preprocess(Cinema(), policy.pixels), 2, 0).lengths == [DECISIONS] * 2
    observation, _ = env.reset()
    assert env.action_space.contains(int(policy.compute_action(observation)))


# --- by name ---------------------------------------------------------------------------------------------------------


def test_make_env_preprocesses():
    env = make_env("custom_envs:Cinema", {"rewards": (1.0,) * 7}, PIXELS)
    assert env.reset()[0].shape == SHAPE
    assert [env.step(0)[1] for _ in range(2)] == [5.0, 2.0]


def test_vectors_know_their_time_limit_in_decisions():
    vector = make_vector_env(vector_maker("CartPole-v1", PixelSettings(frame_skip=4)), 2)
    assert step_limit(vector) == 125
    vector.close()
    assert vector_maker("CartPole-v1") == "CartPole-v1"


def test_check_env_sees_what_v_will_see():
    values = {"env.id": "custom_envs:Cinema", "env.pixels.key": "screen", "env.pixels.size": [6, 6]}
    with pytest.raises(CommandError, match="6 x 6 pixels has room for 2"):
        check_env(values)
    for vae in ({"world_model.vae.channels": [8, 8]}, {"world_model.vae.class": "custom_models:ImageVAE"}):
        assert check_env({**values, **vae})[0].shape == (6, 6, 3)
    with pytest.raises(CommandError, match="observation space Dict"):
        check_env({"env.id": "custom_envs:Cinema"})
    with pytest.raises(SettingError, match=r"'CartPole-v1': env.pixels needs images, but observations are a Box of"):
        check_env({"env.id": "CartPole-v1", "env.pixels.grayscale": True})


@pytest.mark.parametrize("path", ["env.frame_skip", "env.pixels.size", "world_model.mdn_rnn.ends_from"])
def test_they_cannot_change_on_resume(path):
    with pytest.raises(CommandError, match=f"{path} cannot change on resume"):
        changed_on_resume({path: None}, {path: 2})


# --- before any actor starts -----------------------------------------------------------------------------------------


@pytest.fixture
def no_actor_starts(monkeypatch):
    """Fails the test if an actor is created."""
    monkeypatch.setattr("ray.actor.ActorClass._remote", lambda *_, **__: pytest.fail("an actor was started"))


class Absent(Walk):
    """Cannot be made where its package is missing."""

    def __init__(self, config):
        raise ModuleNotFoundError("no module named 'absent'")


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray", "no_actor_starts")
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_pixels_that_do_not_fit_are_one_error(num_env_runners):
    config = image_config(Gallery, num_env_runners=num_env_runners, num_cpus_per_env_runner=0.2)
    with pytest.raises(PixelError, match="but must be null"):
        config.build_algo()


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray", "no_actor_starts")
def test_an_environment_that_cannot_be_made_here_is_an_error_where_it_is_needed():
    with pytest.raises(ModuleNotFoundError, match="absent"):
        tiny_config(Absent).build_algo()


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_an_environment_that_cannot_be_made_here_is_left_to_remote_env_runners(monkeypatch):
    def create(*_, **__):
        raise StopIteration("an actor would be started")

    monkeypatch.setattr("ray.actor.ActorClass._remote", create)
    with pytest.raises(StopIteration):
        tiny_config(Absent, num_env_runners=1, num_cpus_per_env_runner=0.2).build_algo()


def test_vectors_that_are_made_at_once_cannot_be_wrapped():
    config = image_config()
    config.gym_env_vectorize_mode = "vector_entry_point"
    with pytest.raises(ValueError, match="gym_env_vectorize_mode = 'vector_entry_point'"):
        config.validate()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels_size": 64}, "pixels_size (env.pixels.size in YAML) is 64, but must be whole numbers of at least 1"),
        ({"pixels_crop": [1, 2]}, "[top, bottom, left, right], or null"),
        ({"pixels_grayscale": 1}, "true or false"),
        ({"frame_skip": 0}, "env.frame_skip is 0, but must be a whole number of at least 1"),
    ],
)
def test_wrong_values_in_the_config(changes, words):
    with pytest.raises(ValueError) as caught:
        tiny_config(Gallery).environment(**changes).validate()
    assert words in str(caught.value)
