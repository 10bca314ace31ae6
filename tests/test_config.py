"""What the config refuses before anything is started."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.result import STDERR_FILE, STDOUT_FILE, TRIAL_INFO
from tiny import tiny_config

from wm_rllib import WorldModelPPO, WorldModelPPOConfig
from wm_rllib.learners.gate import Bounds
from wm_rllib.settings.settings import SettingError


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Ray nor an actor."""

    def start(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("started")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.actor.ActorClass._remote", start)


@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_an_env_to_module_connector_is_refused(nothing_starts: None, num_env_runners: int):
    config = tiny_config(num_env_runners=num_env_runners)
    config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    with pytest.raises(ValueError, match=r"(?s)env_to_module_connector is not supported.*Gymnasium wrapper"):
        config.build_algo()
    with pytest.raises(ValueError, match="env_to_module_connector is not supported"):
        config.validate()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.env_runners(module_to_env_connector=lambda *_: None), "module_to_env_connector is not supported"),
        (lambda c: c.training(learner_connector=lambda *_: None), "learner_connector is not supported"),
        (lambda c: c.evaluation(evaluation_duration_unit="timesteps"), "evaluation_duration_unit = 'timesteps'"),
        (lambda c: c.env_runners(batch_mode="complete_episodes"), "batch_mode = 'complete_episodes'"),
        (lambda c: c.env_runners(num_gpus_per_env_runner=1), "num_gpus_per_env_runner = 1 must be 0"),
        (
            lambda c: c.world_model(replay_directory="here"),
            "replay_directory = 'here' .* but replay_storage = 'memory'",
        ),
        (
            lambda c: c.world_model(replay_directory="no/such", replay_storage="disk"),
            "replay_directory = 'no/such' is no folder",
        ),
        (
            lambda c: c.world_model(random_collection_steps=3000, replay_capacity=2000),
            "random_collection_steps = 3000 must not exceed replay_capacity = 2000",
        ),
        (
            lambda c: c.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False),
            "must stay True",
        ),
        (lambda c: c.reporting(min_time_s_per_iteration=5), "min_time_s_per_iteration = 5"),
        (lambda c: c.reporting(min_train_timesteps_per_iteration=9), "min_train_timesteps_per_iteration = 9"),
        (lambda c: c.reporting(min_sample_timesteps_per_iteration=9), "min_sample_timesteps_per_iteration = 9"),
    ],
    ids=[
        "connector",
        "learner",
        "duration",
        "batch mode",
        "gpus",
        "storage",
        "folder",
        "capacity",
        "api",
        "time",
        "train",
        "sample",
    ],
)
def test_settings_of_rllibs_that_would_go_wrong_are_refused(nothing_starts: None, change: Any, said: str):
    config = tiny_config()
    change(config)
    with pytest.raises(ValueError, match=said):
        config.validate()


def test_the_same_config_without_a_connector_is_valid(nothing_starts: None):
    tiny_config().env_runners(env_to_module_connector=None).validate()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"imagination_ratio_bounds": [0.9, 0.5]}, ("imagination_ratio_bounds", "[0.9, 0.5]", "low below high")),
        ({"imagination_ratio_bounds": [0.5, 0.5]}, ("imagination_ratio_bounds", "[0.5, 0.5]", "low below high")),
        ({"imagination_ratio_bounds": [0.0, 1.0]}, ("imagination_ratio_bounds", "[0.0, 1.0]", "from 0 to 0.999")),
        ({"imagination_ratio_bounds": [-0.1, 0.5]}, ("imagination_ratio_bounds", "[-0.1, 0.5]", "from 0 to 0.999")),
        ({"imagination_ratio_bounds": [0.5]}, ("imagination_ratio_bounds", "[0.5]", "two numbers [low, high]")),
        ({"imagination_ratio_bounds": 0.5}, ("imagination_ratio_bounds", "0.5", "two numbers [low, high]")),
        ({"imagination_ratio": "automatic"}, ("imagination_ratio", "'automatic'", 'or "auto"')),
        ({"min_imagination_horizon": 0}, ("min_imagination_horizon", "0", "a whole number of at least 1")),
        ({"max_disagreement": 0.0}, ("max_disagreement", "0.0", "a number above 0, or null")),
        ({"max_disagreement": 3.0, "ensemble_size": 0}, ("max_disagreement = 3.0", "ensemble_size = 0")),
        ({"max_disagreement": 3.0, "ensemble_size": 1}, ("max_disagreement = 3.0", "ensemble_size = 1")),
        ({"policy_hidden_dims": []}, ("policy_hidden_dims = []", "must have a layer")),
        ({"ensemble_size": 1.5}, ("ensemble_size", "1.5", "a whole number of at least 0")),
        ({"num_gpus_per_learner": 1}, ("device = 'cpu'", "num_gpus_per_learner = 1", "device auto")),
        (
            {"num_gpus_per_learner": 0.5, "num_learners": 2, "device": "auto"},
            ("num_gpus_per_learner = 0.5 must be whole where num_learners = 2",),
        ),
        (
            {"num_gpus_per_learner": 1.5, "num_learners": 1, "device": "auto"},
            ("num_gpus_per_learner = 1.5 must be whole above 1", "Fix: 1."),
        ),
        ({"num_gpus_per_dreamer": 2.5, "num_dreamers": 1}, ("num_gpus_per_dreamer = 2.5 must be whole above 1",)),
        ({"num_gpus_per_dreamer": 0.25}, ("num_gpus_per_dreamer = 0.25", "num_dreamers = 0")),
        (
            {"imagination_ratio": "auto", "min_imagination_horizon": 6, "imagination_horizon": 5},
            ("min_imagination_horizon = 6", "must not exceed imagination_horizon = 5"),
        ),
    ],
    ids=str,
)
def test_wrong_bounds_are_one_clear_error(nothing_starts: None, overrides: dict[str, Any], said: tuple[str, ...]):
    with pytest.raises(ValueError, match="Fix: ") as error:
        tiny_config(**overrides).build_algo()
    assert all(part in str(error.value) for part in said)


@pytest.mark.parametrize("settings", [{"num_gpus_per_learner": 1}, {"device": "cuda"}], ids=str)
def test_a_gpu_that_is_not_there_is_one_clear_error(nothing_starts: None, settings: dict[str, Any]):
    config = tiny_config(**{"device": "auto", **settings})
    with pytest.raises(ValueError, match=r"num_gpus_per_learner = 1 asks for a GPU.*sees no GPU. Fix: device auto"):
        config.build_algo()


def test_a_gpu_that_auto_found_is_not_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(device="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config.validate()
    assert config.num_gpus_per_learner == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elsewhere = config.copy(copy_frozen=False)
    elsewhere.validate()
    assert elsewhere.num_gpus_per_learner == 0
    asked_for = tiny_config(device="auto", num_gpus_per_learner=1, num_learners=1)
    asked_for.validate()
    assert asked_for.num_gpus_per_learner == 1


def test_a_controller_with_a_memory_of_its_own_is_refused(nothing_starts: None):
    with pytest.raises(ValueError, match=r"use_lstm = True .*Fix: use_lstm False"):
        tiny_config().rl_module(model_config={"use_lstm": True}).build_algo()


def test_layers_given_in_rllibs_way_alone_are_refused(nothing_starts: None):
    with pytest.raises(ValueError, match=r"fcnet_hiddens = \[128\] of .*Fix: .training\(policy_hidden_dims=\[128\]\)"):
        tiny_config().rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128])).build_algo()
    same = tiny_config(policy_hidden_dims=[128])
    with pytest.raises(ValueError, match=r"vf_share_layers = True .*Fix: vf_share_layers=False"):
        same.copy().rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128])).validate()
    same.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128], fcnet_activation="relu", vf_share_layers=False))
    same.validate()
    assert same.model_config["fcnet_activation"] == "relu"


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        (
            "learners",
            {"learner_class": PPOTorchLearner},
            "learner_class = .*wm_rllib.learners.learner.WorldModelPPOLearner",
        ),
        (
            "env_runners",
            {"env_runner_cls": SingleAgentEnvRunner},
            "env_runner_cls = .*wm_rllib.env_runners.env_runner.WorldModel",
        ),
        ("evaluation", {"custom_evaluation_function": print}, r"custom_evaluation_function .*get_policy\(\)"),
        ("evaluation", {"custom_evaluation_function": None}, "custom_evaluation_function is not supported"),
        ("evaluation", {"evaluation_config": {"explore": True}}, "explore = True is not supported"),
        ("offline_data", {"input_": "episodes"}, "offline_data.* is not supported"),
        ("offline_data", {"output": "episodes"}, "offline_data.* is not supported"),
    ],
    ids=str,
)
def test_parts_that_would_be_ignored_or_know_nothing_of_v_and_m(
    nothing_starts: None, section: str, settings: dict[str, Any], said: str
):
    config = tiny_config()
    getattr(config, section)(**settings)
    with pytest.raises(ValueError, match=said):
        config.build_algo()


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        ("environment", {"clip_rewards": True}, "clip_rewards = True .*Fix: gymnasium.wrappers.TransformReward"),
        ("env_runners", {"observation_filter": "MeanStdFilter"}, "observation_filter = 'MeanStdFilter' .*leave it out"),
        ("training", {"model": {"fcnet_hiddens": [8]}}, r"model = \{'fcnet_hiddens': \[8\]\} .*policy_hidden_dims"),
    ],
    ids=str,
)
def test_the_old_apis_settings_are_refused(nothing_starts: None, section: str, settings: dict[str, Any], said: str):
    config = tiny_config()
    getattr(config, section)(**settings)
    with pytest.raises(ValueError, match=said):
        config.build_algo()


def test_the_old_apis_batch_size_is_refused(nothing_starts: None):
    with pytest.raises(ValueError, match=r"train_batch_size = 2000 .*Fix: train_batch_size_per_learner"):
        tiny_config().training(train_batch_size=2000).build_algo()


@pytest.mark.parametrize(
    ("episodes", "runners", "lanes"), [(20, 0, 20), (20, 1, 20), (20, 4, 5), (21, 4, 6), (3, 4, 1), (500, 4, 20)]
)
def test_no_evaluation_environment_without_an_episode(nothing_starts: None, episodes: int, runners: int, lanes: int):
    config = tiny_config(evaluation_duration=episodes, evaluation_num_env_runners=runners)
    config.validate()
    assert config.evaluation_config["num_envs_per_env_runner"] == lanes


def test_bounds_of_the_gate_are_the_configs(nothing_starts: None):
    config = tiny_config(imagination_ratio="auto", imagination_ratio_bounds=[0.1, 0.7], min_imagination_horizon=3)
    config.validate()
    assert config.gate_bounds == Bounds(0.1, 0.7, 3, config.imagination_horizon)
    # Only the gate looks at the least horizon.
    tiny_config(imagination_ratio=0.5, min_imagination_horizon=9).validate()


def test_auto_places_dreamers():
    assert tiny_config(imagination_ratio="auto", num_dreamers=2).num_dreamers_to_place == 2
    assert tiny_config(imagination_ratio=0.0, num_dreamers=2).num_dreamers_to_place == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"imagination_raito": 0.5}, "unknown setting imagination_raito. Fix: did you mean imagination_ratio?"),
        ({"ppo.learning_rate": 1e-3}, "unknown setting ppo.learning_rate. Fix: did you mean lr?"),
        ({"world_model": {"latent_dim": 4}}, "unknown setting world_model. Fix: write the arguments of"),
        ({"evaluation_intervall": 4}, "unknown setting evaluation_intervall. Fix: did you mean evaluation_interval"),
        ({"qwxz": 4}, "unknown setting qwxz. Fix: use the arguments"),
    ],
)
def test_a_name_that_does_not_exist_in_a_dict_is_refused(given: dict[str, Any], said: str):
    """As Ray Tune's param_space sets values; RLlib would set it in silence."""
    with pytest.raises(SettingError, match=re.escape(said)):
        WorldModelPPO.default_resource_request(given)
    with pytest.raises(SettingError, match=re.escape(said)):
        WorldModelPPOConfig.from_dict(dict(given))


def test_a_name_that_does_not_exist_in_the_config_of_evaluation_is_refused(nothing_starts: None):
    config = tiny_config().evaluation(evaluation_config={"exploer": False})
    with pytest.raises(SettingError, match=r"unknown setting exploer\. Fix: did you mean explore\?"):
        config.build_algo()


BY_TUNE = (TRIAL_INFO, STDOUT_FILE, STDERR_FILE)
"""Keys that Ray Tune puts into a trial's config."""


def test_a_dict_of_a_whole_config_is_taken():
    config = tiny_config(latent_dim=3)
    config.validate()
    config.freeze()
    again = WorldModelPPOConfig.from_dict(
        {**config.to_dict(), "lambda": 0.5, "num_workers": 2, **dict.fromkeys(BY_TUNE)}
    )
    assert (again.latent_dim, again.lambda_, again.num_env_runners) == (3, 0.5, 2)
