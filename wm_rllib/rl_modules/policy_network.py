"""What dreams need to know of RLlib's modules: their plain layers and their distributions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchMLPHead
from torch import Tensor, nn

from wm_rllib.models.controller import ActionSampler, CategoricalSampler, Controller, GaussianSampler
from wm_rllib.models.dreaming import Policy
from wm_rllib.rl_modules.clipped_gaussian import ClippedGaussian
from wm_rllib.rl_modules.policy_module import WorldModelPPOModule


class ClipLogStd(nn.Module):
    """Clips the second half of [B, 2 A] to [-limit, limit], as RLlib's Gaussian heads do."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, 2 A] to [B, 2 A]."""
        mean, log_std = inputs.chunk(2, -1)
        return torch.cat([mean, log_std.clamp(-self.limit, self.limit)], -1)


def default_network(module: Any) -> nn.Sequential | None:
    """The layers between features and distribution inputs of RLlib's default PPO module; None for any other module."""
    if (
        type(module) not in (DefaultPPOTorchRLModule, WorldModelPPOModule)
        or type(module.encoder) is not TorchActorCriticEncoder
    ):
        return None
    encoder = module.encoder.encoder if module.encoder.config.shared else module.encoder.actor_encoder
    if type(encoder) is not TorchMLPEncoder or type(module.pi) is not TorchMLPHead:
        return None
    layers = [encoder.net.mlp, module.pi.net.mlp]
    if module.pi.clip_log_std:
        layers.append(ClipLogStd(float(module.pi.log_std_clip_param_const)))
    return nn.Sequential(*layers)


def make_sampler(distribution: Any, space: gym.Space[Any]) -> ActionSampler | None:
    """Draws like RLlib's own distribution over this space, with noise made ahead; None for any other distribution."""
    if isinstance(space, gym.spaces.Discrete) and distribution is TorchCategorical:
        return CategoricalSampler([int(space.n)], scalar=True)
    if isinstance(space, gym.spaces.MultiDiscrete) and _stands_for(distribution, TorchMultiCategorical):
        return CategoricalSampler([int(size) for size in space.nvec], scalar=False)
    if isinstance(space, gym.spaces.Box) and distribution in (TorchDiagGaussian, ClippedGaussian):
        return GaussianSampler(int(space.shape[0]), clipped=distribution is ClippedGaussian)
    return None


def _stands_for(distribution: Any, kind: type) -> bool:
    """Whether a class is `kind` with some arguments given, as RLlib's `get_partial_dist_cls` makes it."""
    return distribution.__name__ == f"{kind}Partial" and distribution.__mro__[1] is kind


def make_policy(module: Any) -> Policy:
    """C as the dream calls it: the module's exploration distribution, sampled.

    RLlib's own distributions make a `Controller`, whose noise is drawn ahead; any other is sampled by its own methods.
    """
    distribution = module.get_exploration_action_dist_cls()

    def inputs_of(features: Tensor) -> Tensor:
        return module.forward_exploration({Columns.OBS: features})[Columns.ACTION_DIST_INPUTS]

    sampler = make_sampler(distribution, module.action_space)
    if sampler is not None:
        return Controller(default_network(module) or inputs_of, sampler)

    def policy(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = inputs_of(features)
        dist = distribution.from_logits(inputs)
        actions = dist.sample()
        return actions, dist.logp(actions), inputs

    return policy
