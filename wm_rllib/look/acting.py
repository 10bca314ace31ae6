"""What C would do at a place in the dream: its choice, how sure it is, and what it expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.columns import Columns
from torch import Tensor

from wm_rllib.acting.policy import WorldModelPolicy


@torch.no_grad()
def greedy_actions(policy: WorldModelPolicy, features: Tensor) -> Tensor:
    """Actions [B, ...] in policy space, as an evaluation takes them, on features [B, F]."""
    inputs = policy.module.forward_inference({Columns.OBS: features})[Columns.ACTION_DIST_INPUTS]
    return policy.module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic().sample()


@dataclass(frozen=True)
class Choice:
    """What C thinks at one place.

    Attributes:
        action: Its greedy action in policy space.
        probabilities: Of each discrete part's actions; empty for a Box.
        mean: Of each action dimension of a Box, in policy space; empty for others.
        std: As `mean`.
        value: The critic's, in the environment's units.
    """

    action: Tensor
    probabilities: list[list[float]]
    mean: list[float]
    std: list[float]
    value: float


@torch.no_grad()
def choice_at(policy: WorldModelPolicy, z: Tensor, h: Tensor) -> Choice:
    """C's choice on z [1, Z] and h [1, D]."""
    features = policy.world_model.features(z, h)
    inputs = policy.module.forward_exploration({Columns.OBS: features})[Columns.ACTION_DIST_INPUTS][0]
    action = greedy_actions(policy, features)[0]
    value = float(policy.values(z, h)[0])
    if isinstance(policy.action_space, Box):
        mean, log_std = inputs.chunk(2)
        return Choice(action, [], mean.tolist(), log_std.exp().tolist(), value)
    parts = torch.split(inputs, _sizes(policy.action_space))
    return Choice(action, [part.softmax(0).tolist() for part in parts], [], [], value)


def _sizes(space: Any) -> list[int]:
    return [int(space.n)] if isinstance(space, Discrete) else [int(size) for size in space.nvec]
