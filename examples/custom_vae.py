"""A V of your own: name the class in the config, and every process builds it.

    python examples/custom_vae.py

In YAML the same is ``world_model.vae.class: examples.custom_vae:FourierVAE`` (the module must be importable in every
process: put its folder on PYTHONPATH, or into the job's working_dir).
"""

import math

import ray
import torch
from torch import Tensor, nn

from wm_rllib import WorldModelPPOConfig
from wm_rllib.models import VariationalAutoencoder
from wm_rllib.models.layers import mlp

NUM_FREQUENCIES = 4


class FourierEncoder(nn.Module):
    """The usual encoder, plus what a network makes of sines and cosines of the observation, which starts as nothing."""

    def __init__(self, usual: nn.Module, observation_dim: int, hidden_dims: tuple[int, ...], output_dim: int):
        super().__init__()
        self.usual = usual
        self.of_waves = mlp(2 * NUM_FREQUENCIES * observation_dim, hidden_dims, output_dim)
        for parameter in self.of_waves[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, observations: Tensor) -> Tensor:
        """[N, *O] to mean and log variance, [N, 2 Z]."""
        frequencies = 2.0 ** torch.arange(NUM_FREQUENCIES, device=observations.device)
        waves = (observations.flatten(1).unsqueeze(-1) * frequencies).flatten(1)
        return self.usual(observations) + self.of_waves(torch.cat([waves.sin(), waves.cos()], dim=-1))


class FourierVAE(VariationalAutoencoder):
    """V that also sees waves of its (normalised) vector observations."""

    def make_encoder(self) -> nn.Module:
        """The usual encoder starts as the identity, which is worth keeping: one that starts anew blurs a vector."""
        size = math.prod(self.config.observation_shape)
        return FourierEncoder(super().make_encoder(), size, self.config.hidden_dims, 2 * self.config.latent_dim)


def main() -> None:
    """Trains CartPole for a few iterations with it."""
    ray.init(address="local", include_dashboard=False)
    config = (
        WorldModelPPOConfig()
        .environment("CartPole-v1")
        .world_model(vae_class=FourierVAE, pretrain_epochs=100)
        .dreamers(imagination_ratio=0.9)
    )
    algo = config.build_algo()
    for _ in range(5):
        result = algo.train()
        print(result["phase"], result["num_env_steps_sampled_lifetime"], result["vae"])
    algo.stop()


if __name__ == "__main__":
    main()
