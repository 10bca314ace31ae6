"""`world_model.transfer.parts: vmc`: a run that goes on from another one's weights and collects a replay of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from test_merge import config_of, make_learner
from tiny import RANDOM_STEPS, tiny_config

from wm_rllib.acting.policy import load_module

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose C always pushes to the right."""
    folder = tmp_path_factory.mktemp("source")
    learner = make_learner(config_of())
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    with torch.no_grad():
        module.pi.net.mlp[-1].bias.copy_(torch.tensor([-20.0, 20.0]))
    learner.save_to_path(str(folder / "learner_group" / "learner"))
    return folder


@pytest.mark.parametrize("parts", ["vm", "vmc"])
def test_the_other_runs_controller_collects_in_place_of_random_actions(source: Path, parts: str):
    settings: dict[str, Any] = {"transfer_from": str(source), "transfer_parts": parts}
    algorithm = tiny_config(**settings).build_algo()
    try:
        first = algorithm.train()
        actions = [int(action) for episode in algorithm._replay.service._replay.episodes for action in episode.actions]
        policy = copy.deepcopy(algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].state_dict())
        later = [algorithm.train() for _ in range(2)]
    finally:
        algorithm.stop()
    assert first["phase"] == "random" and len(actions) == first["num_env_steps_sampled_lifetime"] >= RANDOM_STEPS
    theirs = load_module(source).state_dict()
    taken_over = all(torch.equal(policy[name], theirs[name]) for name in theirs)
    assert taken_over == (set(actions) == {1}) == (parts == "vmc")
    assert later[-1]["phase"] == "mixed" and later[-1]["rows"]["imagined"] > 0
