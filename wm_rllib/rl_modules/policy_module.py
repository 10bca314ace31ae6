"""C's RLModule: RLlib's PPO network with a value head in units of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from torch import Tensor, nn

from wm_rllib.rl_modules.clipped_gaussian import as_clipped

NORMALIZE_ACTIONS = "normalize_actions"
"""RLlib's setting, in the module's model config."""

UNITS_RATE = 0.2
"""How far one update moves the critic's units: six dream rounds cover three quarters of the way."""


def moved_units(mean: Tensor, scale: Tensor, target_mean: Tensor, target_std: Tensor) -> tuple[Tensor, Tensor]:
    """The next units (mean, scale) of the critic, all scalars.

    Constant targets have no spread of their own; a hundredth of their size keeps the units from vanishing.
    """
    target_scale = torch.maximum(target_std, 0.01 * target_mean.abs()).clamp(min=1e-4)
    new_mean = mean + UNITS_RATE * (target_mean.to(mean) - mean)
    new_scale = scale + UNITS_RATE * (target_scale.to(scale) - scale)
    return new_mean, new_scale


FIRST_POLICY_GAIN = 0.01
"""Of the policy's last layer: the first policy is as good as uniform (Andrychowicz et al. 2021, What matters)."""
HIDDEN_STATE_START = 0.1
"""Size of the first weights on h, of the usual: h is wider than z, and another one after each fit of M."""


def initialise_hidden(network: nn.Module, latent_dim: int) -> None:
    """Starts a network on [z, h] so that its hidden units see z, at a size that their nonlinearity can use.

    RLlib's default divides by the width of all inputs: next to 64 of h, latents move a hidden unit by a tenth, the
    network is linear, and it takes thousands of gradient steps until it is not.

    Args:
        network: With at least one linear layer, on inputs [., Z + D] or [., Z].
        latent_dim: Z.
    """
    first, *rest = _linear_layers(network)
    with torch.no_grad():
        first.weight[:, :latent_dim].normal_(0.0, math.sqrt(2.0 / latent_dim))
        first.weight[:, latent_dim:] *= HIDDEN_STATE_START
        first.bias.zero_()
    for layer in rest:
        orthogonal(layer, math.sqrt(2.0))


def orthogonal(layer: nn.Linear, gain: float) -> None:
    """Orthogonal weights and no bias, as PPO is usually started (Engstrom et al. 2020)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


def _linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


class WorldModelPPOModule(DefaultPPOTorchRLModule):
    """RLlib's default PPO module whose critic predicts (V - value_mean) / value_scale.

    Returns of different environments differ by orders of magnitude, and Adam moves a weight by about its learning rate
    whatever the loss: a critic in the environment's units needs thousands of steps to reach a value of -300. Until
    `rescale_values` is called the units are the environment's own, and the module is RLlib's.
    """

    value_mean: Tensor
    value_scale: Tensor

    def setup(self) -> None:
        """Builds RLlib's networks and the units."""
        super().setup()
        # One encoder if layers are shared, else two, of which actors hold one.
        for name in ("encoder", "actor_encoder", "critic_encoder"):
            network = getattr(self.encoder, name, None)
            if isinstance(network, nn.Module) and _linear_layers(network):
                initialise_hidden(network, self.model_config["latent_dim"])
        for head, gain in ((self.pi, FIRST_POLICY_GAIN), (getattr(self, "vf", None), 1.0)):
            if head is not None:
                orthogonal(_linear_layers(head)[-1], gain)
        self.register_buffer("value_mean", torch.zeros(()))
        self.register_buffer("value_scale", torch.ones(()))

    def get_inference_action_dist_cls(self) -> Any:
        """RLlib's, but for actions that are clipped on their way to the environment; explores and trains, too."""
        distribution = super().get_inference_action_dist_cls()
        # RLlib's default, for checkpoints from before it was written into them.
        normalized = self.model_config.get(NORMALIZE_ACTIONS, True)
        return as_clipped(distribution, self.action_space, normalized=normalized)

    def train(self, mode: bool = True) -> WorldModelPPOModule:
        """RLlib asks for eval mode at every env step; all layers are in it already."""
        return self if mode is self.training else super().train(mode)

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values [B] in the environment's units."""
        # Under autocast the network's output is bfloat16, and scalars would not make it float32.
        return super().compute_values(batch, embeddings).float() * self.value_scale + self.value_mean

    @torch.no_grad()
    def rescale_values(self, mean: Tensor, scale: Tensor) -> None:
        """Sets new units; the last layer is changed so that every value stays what it was (PopArt).

        van Hasselt et al. (2016), Learning values across many orders of magnitude, proposition 1.

        Args:
            mean: Scalar, in the environment's units.
            scale: Scalar above 0.
        """
        last = _linear_layers(self.vf)[-1]
        last.weight.mul_(self.value_scale / scale)
        last.bias.mul_(self.value_scale / scale).add_((self.value_mean - mean) / scale)
        self.value_mean.copy_(mean)
        self.value_scale.copy_(scale)

    def get_non_inference_attributes(self) -> list[str]:
        """RLlib's, and the units of the values."""
        return [*super().get_non_inference_attributes(), "value_mean", "value_scale"]
