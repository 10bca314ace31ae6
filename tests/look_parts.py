"""A small agent, real episodes and pictures for tests of what looks into the dream. No Ray."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from tiny_models import OBSERVATION_DIM, world_model
from torch import Tensor, nn

from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.look.episodes import Episode
from wm_rllib.look.session import World
from wm_rllib.look.starts import Starts


class LinearController:
    """What is asked of a PPO module: logits, and a value that is the sum of the features."""

    def __init__(self, action_space: gym.Space[Any], feature_dim: int):
        self.action_space = action_space
        self.is_box = isinstance(action_space, gym.spaces.Box)
        width = 2 * action_space.shape[0] if self.is_box else int(action_space.n)  # type: ignore[attr-defined, index]
        self.network = nn.Linear(feature_dim, width)

    def forward_exploration(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.network(batch[Columns.OBS])}

    forward_inference = forward_exploration

    def compute_values(self, batch: dict[str, Tensor]) -> Tensor:
        return batch[Columns.OBS].sum(-1)

    def get_exploration_action_dist_cls(self) -> Any:
        return TorchDiagGaussian if self.is_box else TorchCategorical

    get_inference_action_dist_cls = get_exploration_action_dist_cls


class BarPainter:
    """One pixel for each number of the observation."""

    def paint(self, path: np.ndarray) -> np.ndarray:
        row = np.clip(128 + 100 * path[-1], 0, 255).astype(np.uint8)
        return np.repeat(np.repeat(row[None, :, None], 3, -1), 8, 0)

    def close(self) -> None:
        pass


def agent(action_space: gym.Space[Any] | None = None, **changes: Any) -> WorldModelPolicy:
    """V, M and C with random weights."""
    model = world_model(action_space, **changes).eval()
    return WorldModelPolicy(model, LinearController(model.config.action_space, model.feature_dim))


def episodes(lengths: list[int], *, seed: int = 0, terminated: bool = True) -> list[Episode]:
    """Random real episodes with Discrete(2) actions and rewards of 1."""
    rng = np.random.default_rng(seed)
    return [
        Episode(
            rng.normal(size=(length + 1, OBSERVATION_DIM)).astype(np.float32),
            rng.integers(2, size=length),
            np.ones(length, np.float32),
            terminated,
        )
        for length in lengths
    ]


def world(policy: WorldModelPolicy | None = None, **changes: Any) -> World:
    """What sessions share; never ends, so that tests can go on."""
    policy = policy or agent()
    with torch.no_grad():
        policy.world_model.mdn_rnn.outcome_head[-1].bias[2] = -50.0
    values: dict[str, Any] = {
        "env_id": "CartPole-v1",
        "policy": policy,
        "painter": BarPainter(),
        "starts": Starts(episodes([5, 3])),
        "burn_in": 2,
        "temperature": 1.0,
        "seed": 0,
    }
    return World(**{**values, **changes})
