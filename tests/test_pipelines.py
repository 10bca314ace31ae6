"""The shortened connector pipelines do what RLlib's default ones do, and leave the user's own pieces alone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from scripted_env import ScriptedEnv
from tiny import tiny_config

from wm_rllib.acting.connectors import FeatureConnector
from wm_rllib.acting.pipelines import ENV_TO_MODULE, MODULE_TO_ENV, VectorActions
from wm_rllib.env_runners import env_runner
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner

SPACES = [
    gym.spaces.Discrete(3),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([6.0, 1.0], np.float32)),
    gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([6.0, np.inf], np.float32)),
]
SETTINGS = [{}, {"normalize_actions": False, "clip_actions": True}, {"normalize_actions": False}]


class CountCalls(ConnectorV2):
    """A user's module-to-env piece, which counts its calls."""

    calls = 0

    def __call__(self, *, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        type(self).calls += 1
        return batch


def runner_on(space: gym.Space[Any], config_changes: dict[str, Any] | None = None) -> WorldModelEnvRunner:
    """An env runner on three scripted environments, always with the same weights."""
    ScriptedEnv.records.clear()
    torch.manual_seed(1)
    config = tiny_config(ScriptedEnv, **(config_changes or {})).environment(env_config={"action_space": space})
    return WorldModelEnvRunner(config=config.env_runners(num_envs_per_env_runner=3))


def sampled(runner: WorldModelEnvRunner, *, explore: bool) -> tuple[list[SingleAgentEpisode], list[Any]]:
    """Episodes of a few requests, and the actions that the environments received."""
    torch.manual_seed(2)
    episodes = [episode for steps in (7, 30, 4) for episode in runner.sample(num_timesteps=steps, explore=explore)]
    received = [action for _, record in sorted(ScriptedEnv.records.items()) for action in record.actions.values()]
    return episodes, received


def pieces(runner: WorldModelEnvRunner) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The classes in both pipelines."""
    pipelines = (runner._env_to_module, runner._module_to_env)
    return tuple(tuple(map(type, pipeline.connectors)) for pipeline in pipelines)  # type: ignore[return-value]


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_episodes_are_those_of_the_default_pipelines(
    space: gym.Space[Any], settings: dict[str, Any], explore: bool, monkeypatch: pytest.MonkeyPatch
):
    short = runner_on(space, settings)
    assert pieces(short) == ((FeatureConnector,), (VectorActions,))
    episodes, received = sampled(short, explore=explore)
    monkeypatch.setattr(env_runner, "shorten", lambda *_: None)
    default = runner_on(space, settings)
    assert pieces(default) == (ENV_TO_MODULE, MODULE_TO_ENV)
    expected, expected_received = sampled(default, explore=explore)
    assert len(episodes) == len(expected) > 9
    for episode, other in zip(episodes, expected, strict=True):
        for what in ("observations", "actions", "rewards"):
            one, two = (np.asarray(getattr(e, f"get_{what}")()) for e in (episode, other))
            assert one.dtype == two.dtype and np.array_equal(one, two)
        assert episode.extra_model_outputs.keys() == other.extra_model_outputs.keys()
        for key in (Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP) if explore else (Columns.ACTION_DIST_INPUTS,):
            one, two = (np.asarray(e.get_extra_model_outputs(key)) for e in (episode, other))
            assert one.dtype == two.dtype and np.array_equal(one, two)
    np.testing.assert_array_equal(np.concatenate(received), np.concatenate(expected_received))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_greedy_environments_take_the_policys_best_action_and_the_others_explore(space: gym.Space[Any]):
    runner = runner_on(space)
    (actions,) = runner._module_to_env.connectors
    actions.num_greedy = 2
    torch.manual_seed(0)
    inputs = torch.randn(3, runner.module.pi.net.mlp[-1].out_features)  # one row an environment
    distribution = runner.module.get_exploration_action_dist_cls().from_logits(inputs)
    best = runner.module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic().sample().numpy()
    explored = 0
    for _ in range(20):
        batch = actions(
            rl_module=runner.module, batch={Columns.ACTION_DIST_INPUTS: inputs}, episodes=[None], explore=True
        )
        taken = batch[Columns.ACTIONS]
        assert np.array_equal(taken[:2], best[:2])
        explored += not np.array_equal(taken[2], best[2])
        expected = distribution.logp(torch.as_tensor(taken)).numpy()
        np.testing.assert_allclose(batch[Columns.ACTION_LOGP], expected, rtol=1e-6)
    assert explored > 3


@pytest.mark.parametrize(
    ("ratio", "fraction", "expected"),
    [(0.9, 0.5, 1), (0.9, 1.0, 3), (0.9, 0.3, 0), (0.5, 0.5, 0), (0.0, 0.5, 0), ([[0, 0.0], [1000, 0.9]], 0.5, 0)],
    ids=str,
)
def test_environments_act_greedily_only_where_most_is_imagined(
    ratio: Any, fraction: float, expected: int, local_ray: Any
):
    nothing_learned = {"pretrain_epochs": 0, "updates_per_step": 0.0, "num_dream_rounds": 1}
    config = tiny_config(ScriptedEnv, greedy_fraction=fraction, imagination_ratio=ratio, **nothing_learned).environment(
        env_config={"action_space": SPACES[0]}
    )
    algorithm = config.env_runners(num_envs_per_env_runner=3).build_algo()
    try:
        while algorithm.train()["phase"] != "mixed":
            pass
        assert algorithm.env_runner._module_to_env.connectors[0].num_greedy == expected
    finally:
        algorithm.stop()


def test_a_users_piece_keeps_the_default_ones():
    CountCalls.calls = 0
    runner = runner_on(SPACES[0], {"_module_to_env_connector": lambda *_: CountCalls()})
    assert pieces(runner) == ((FeatureConnector,), (*MODULE_TO_ENV[:4], CountCalls, *MODULE_TO_ENV[4:]))
    episodes, _ = sampled(runner, explore=True)
    assert CountCalls.calls > 10
    assert sum(map(len, episodes)) >= 41


def test_what_the_environment_does_to_its_actions_stays_there():
    connector = VectorActions(None, SPACES[1], normalize_actions=True, clip_actions=False)
    batch = connector(
        rl_module=None, batch={Columns.ACTIONS: torch.tensor([[1, 2], [0, 1]])}, episodes=[None], explore=True
    )
    batch[Columns.ACTIONS_FOR_ENV] += 5
    assert batch[Columns.ACTIONS].tolist() == [[1, 2], [0, 1]]
