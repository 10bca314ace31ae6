"""The state of an algorithm as plain values, and its comparison bit for bit."""

from __future__ import annotations

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from wm_rllib.columns import WORLD_MODEL_MODULE_ID

ONLY_GROW = ("sequence", "published_at", "resumes")
"""What an in-place restore does not take back (contract 5), or counts."""


def replay_state(algorithm) -> dict:
    service = algorithm._replay.service
    state = service.get_state() if hasattr(service, "_replay") else ray.get(service.get_state.remote())
    # RLlib names episodes at random; a name means nothing but which chunks belong together.
    names = {name: number for number, name in enumerate(episode["id_"] for episode in state["episodes"])}
    for episode in state["episodes"]:
        episode["id_"] = names[episode["id_"]]
    state["episode_id_to_index"] = {names[name]: index for name, index in state["episode_id_to_index"] if name in names}
    return state


def snapshot(algorithm) -> dict:
    """All that contract 7 names, apart from what only grows."""
    learner = algorithm.learner_group.get_state()["learner"]
    training = algorithm._state.to_dict()
    return {
        "modules": learner["rl_module"],
        "optimizers": learner["optimizer"],
        "kl": learner["kl_coeffs"],
        "replay": replay_state(algorithm),
        "training": {name: value for name, value in training.items() if name not in ONLY_GROW},
        "iteration": algorithm.iteration,
    }


def assert_equal(one, other, where=""):
    """Bit for bit, through dicts, lists, arrays and tensors."""
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_equal(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif hasattr(one, "__dict__") and not isinstance(one, type):
        assert_equal(vars(one), vars(other), where)
    else:
        assert one == other or one is other or (one != one and other != other), f"{where}: {one} != {other}"


def learner_weights(algorithm) -> tuple[dict, dict]:
    modules = algorithm.learner_group.get_state()["learner"]["rl_module"]
    prefix = "world_model."
    return (
        {name.removeprefix(prefix): value for name, value in modules[WORLD_MODEL_MODULE_ID].items()},
        modules[DEFAULT_MODULE_ID],
    )
