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


class FourierFeatures(nn.Module):
    """[N, O] to [N, O (1 + 2 F)]: the observation and sines and cosines of it."""

    def forward(self, observations: Tensor) -> Tensor:
        """Appends the waves."""
        frequencies = 2.0 ** torch.arange(NUM_FREQUENCIES, device=observations.device)
        waves = (observations.unsqueeze(-1) * frequencies).flatten(1)
        return torch.cat([observations, waves.sin(), waves.cos()], dim=-1)


class FourierVAE(VariationalAutoencoder):
    """Preprocesses (normalised) vector observations before the usual encoder."""

    def make_encoder(self) -> nn.Module:
        """Fourier features, then a multi-layer perceptron to mean and log variance, [N, 2 Z]."""
        width = math.prod(self.config.observation_shape) * (1 + 2 * NUM_FREQUENCIES)
        return nn.Sequential(
            nn.Flatten(), FourierFeatures(), mlp(width, self.config.hidden_dims, 2 * self.config.latent_dim)
        )


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
