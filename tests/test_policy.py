"""The agent outside of training acts as the env runner does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scripted_env import ScriptedEnv
from tiny import tiny_config

from wm_rllib.acting.policy import WorldModelPolicy, load_policy
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner

SPACES = [
    gym.spaces.Discrete(3),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([6.0, 1.0], np.float32)),
    gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([6.0, np.inf], np.float32)),
]


def runner_on(space: gym.Space[Any], **overrides: Any) -> WorldModelEnvRunner:
    """An env runner with one scripted environment and weights whose actions vary."""
    ScriptedEnv.records.clear()
    config = tiny_config(ScriptedEnv, **overrides).environment(env_config={"action_space": space})
    runner = WorldModelEnvRunner(config=config)
    rng = np.random.default_rng(1)
    state = runner.module.get_state()
    for name, value in state.items():
        scale = 0.0 if name.endswith("bias") else 3.0
        state[name] = rng.normal(scale=scale, size=value.shape).astype(np.float32)
    runner.module.set_state(state)
    # Latents are the observations themselves at first: episodes count up to 5, and would saturate C.
    runner.world_model.vae.set_normalisation(torch.tensor([0.0, 2.5, 2.5, 0.0]), torch.tensor([1.0, 2.0, 2.0, 1.0]))
    return runner


def played(runner: WorldModelEnvRunner) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """(raw observations, actions that the environment received) of whole episodes played greedily."""
    episodes = runner.sample(num_episodes=6, explore=False)
    raw = runner.features.take_raw(episodes, [])
    received = next(record for record in ScriptedEnv.records.values() if record.actions).actions
    return [(list(episode.get_observations()[:-1]), received[int(episode.get_observations(0)[1])]) for episode in raw]


@pytest.mark.parametrize(
    "settings", [{}, {"normalize_actions": False, "clip_actions": True}, {"controller_inputs": "z"}], ids=str
)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_policy_acts_as_the_env_runner(space: gym.Space[Any], settings: dict[str, Any]):
    runner = runner_on(space, **settings)
    episodes = played(runner)
    policy = WorldModelPolicy(runner.world_model, runner.module)
    seen = set()
    for observations, received in episodes:
        policy.reset()
        for observation, expected in zip(observations, received, strict=True):
            action = policy.compute_action(observation)
            np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)
            seen.add(str(action))
    assert len(seen) > 1


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_batch_acts_as_its_rows_alone(space: gym.Space[Any]):
    runner = runner_on(space)
    policy = WorldModelPolicy(runner.world_model, runner.module)
    observations = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    state, batch = policy.initial_state(3), []
    for step in observations:
        actions, state = policy.act(step, state)
        batch.append(actions)
    for lane in range(3):
        policy.reset()
        alone = [policy.compute_action(step[lane]) for step in observations]
        np.testing.assert_allclose(np.array(batch)[:, lane], np.array(alone), rtol=1e-4, atol=1e-5)


def actions_after(policy: WorldModelPolicy, observations: list[np.ndarray]) -> list[np.ndarray]:
    """Actions on observations one after the other."""
    return [policy.compute_action(observation) for observation in observations]


def test_memory_matters_and_is_forgotten_by_reset():
    runner = runner_on(SPACES[3])
    policy = WorldModelPolicy(runner.world_model, runner.module)
    observations = list(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    first = actions_after(policy, observations)
    went_on = actions_after(policy, observations)
    policy.reset()
    again = actions_after(policy, observations)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], went_on[0])


def test_explore_samples_and_greedy_does_not():
    runner = runner_on(SPACES[2])
    policy = WorldModelPolicy(runner.world_model, runner.module)
    observation = np.zeros((200, 4), np.float32)
    greedy, _ = policy.act(observation, policy.initial_state(200))
    explored, _ = policy.act(observation, policy.initial_state(200), explore=True)
    assert len(np.unique(greedy, axis=0)) == 1
    assert len(np.unique(explored, axis=0)) > 1


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Any):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is not a checkpoint of WorldModelPPO"):
        load_policy(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_policy(tmp_path / "nowhere")


def test_a_folder_that_is_no_checkpoint_says_which_would_be(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoints" / "last").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"is a run folder, not a checkpoint\. Fix: .*run/checkpoints/last\."):
        load_policy(tmp_path / "run")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="is not a checkpoint of WorldModelPPO"):
        load_policy(tmp_path / "other")
