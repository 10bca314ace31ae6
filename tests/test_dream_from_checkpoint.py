"""What is done with a whole checkpoint: imagining as its algorithm does, dreaming in it, learning on from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from tiny import tiny_config

from wm_rllib import DreamEnv, WorldModelPPO, load_policy

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def trained(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """An algorithm in its mixed phase, and its checkpoint."""
    algorithm = tiny_config(temperature=0.7).build_algo()
    for _ in range(3):
        algorithm.train()
    yield algorithm, Path(algorithm.save_to_path(str(tmp_path_factory.mktemp("trained") / "checkpoint")))
    algorithm.stop()


def world_model_of(algorithm: Any) -> dict[str, torch.Tensor]:
    return algorithm.get_policy().world_model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_algorithm_imagines_what_its_checkpoint_does(trained: tuple[Any, Path]):
    algorithm, checkpoint = trained
    starts = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    arguments = {"horizon": 20, "explore": True, "num_samples": 2, "seed": 4}
    trajectory = algorithm.imagine_rollout(starts, **arguments)
    assert same(trajectory, load_policy(checkpoint).imagine_rollout(starts, **arguments))
    assert same(trajectory, algorithm.imagine_rollout(starts, temperature=0.7, **arguments))
    assert trajectory["values"].sum(dim=1).shape == (6,)
    assert trajectory["values"].std() > 0
    # The critic that learns, not a new one.
    critic = algorithm.learner_group._learner.module["default_policy"]
    features = torch.cat([trajectory["latents"], trajectory["hidden_states"]], -1)[:, 3]
    with torch.no_grad():
        torch.testing.assert_close(critic.compute_values({"obs": features}), trajectory["values"][:, 3])


def test_the_module_is_the_learners_newest(trained: tuple[Any, Path]):
    """RLlib's own is the local env runner's, which the updates since its last step have left behind."""
    algorithm, _ = trained
    algorithm.train()
    module, learnt = algorithm.get_module(), algorithm.learner_group.get_weights()["default_policy"]
    state = module.get_state()
    assert all(np.array_equal(state[name], learnt[name]) for name in state)
    with pytest.raises(NotImplementedError, match=r"algo.get_policy\(\).*policy.compute_action"):
        algorithm.compute_single_action(np.zeros(4, np.float32))


class LoadsC(RLlibCallback):
    checkpoint = ""

    def on_algorithm_init(self, *, algorithm: Any, **_: Any) -> None:
        component = "learner_group/learner/rl_module/default_policy"
        algorithm.restore_from_path(f"{self.checkpoint}/{component}", component=component)


def test_weights_can_be_loaded_as_an_algorithm_begins(trained: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LoadsC, "checkpoint", str(trained[1]))
    algorithm = tiny_config().callbacks(LoadsC).build_algo()
    assert same(algorithm.get_policy().module.state_dict(), load_policy(trained[1]).module.state_dict())
    algorithm.stop()


def test_the_dream_is_in_the_real_environments_spaces(trained: tuple[Any, Path]):
    dream, real = DreamEnv(trained[1]), gym.make("CartPole-v1")
    assert (dream.observation_space, dream.action_space) == (real.observation_space, real.action_space)


def test_a_run_starts_with_another_ones_v_and_m_once(trained: tuple[Any, Path], tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(trained[1], source)
    theirs = load_policy(source).world_model.state_dict()
    algorithm = tiny_config(transfer_from=str(source), random_collection_steps=1010, seed=1).build_algo()
    try:
        assert algorithm.train()["phase"] == "random"
        assert same(world_model_of(algorithm), theirs)
        early = algorithm.save_to_path(str(tmp_path / "early"))
        phases = [algorithm.train()["phase"] for _ in range(3)]
        assert phases == ["random", "pretrain", "mixed"]
        ours = world_model_of(algorithm)
        assert not same(ours, theirs)
        late = algorithm.save_to_path(str(tmp_path / "late"))
    finally:
        algorithm.stop()
    shutil.rmtree(source)
    resumed = WorldModelPPO.from_checkpoint(early)
    try:
        assert resumed.train()["phase"] == "random"  # the phase in which the source would be read
        assert same(world_model_of(resumed), theirs)
        resumed.restore_from_path(late)
        assert same(world_model_of(resumed), ours)
    finally:
        resumed.stop()
