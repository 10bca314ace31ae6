"""V: a beta-VAE over single observations (Kingma & Welling 2014; Higgins et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wm_rllib.models.config import VAEConfig
from wm_rllib.models.layers import SkipMLP
from wm_rllib.models.masks import places

LOG_VARIANCE_RANGE = (-10.0, 4.0)
"""Keeps exp(log_variance) finite in float32 whatever the encoder puts out."""


@dataclass(frozen=True)
class Posterior:
    """q(z | o), a diagonal Gaussian: mean and log_variance, both [..., Z]."""

    mean: Tensor
    log_variance: Tensor

    def sample(self) -> Tensor:
        """One reparameterised draw, [..., Z]."""
        return self.mean + torch.exp(0.5 * self.log_variance) * torch.randn_like(self.mean)

    def kl_from_standard_normal(self) -> Tensor:
        """KL(q || N(0, I)) in nats, [...]."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance).sum(-1)


@dataclass(frozen=True)
class VAELosses:
    """Scalars, means over the observations of a batch, in nats."""

    total: Tensor
    reconstruction: Tensor
    kl_divergence: Tensor
    explained: Tensor | None = None
    """Of frames: share of the squared deviation from the mean frame that V explains."""
    moving_explained: Tensor | None = None
    """The same over pixels that changed since the frame before."""


GAIN = 2.0
"""Normalised observations have a standard deviation of a half, and latents should have one of 1."""


class VariationalAutoencoder(nn.Module):
    """Compresses observations [..., *O] into latents [..., Z].

    To make your own V, subclass this, override `make_encoder` and `make_decoder` (or any public method), and name the
    class in the config: ``world_model.vae.class: my_package.my_module:MyVAE``. ``self.config`` is set before both run.

    Args:
        config: Sizes and beta.
    """

    obs_mean: Tensor
    obs_scale: Tensor

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        # Fixed after the random phase: a running filter would shift V's input under M, trained on its latents.
        self.register_buffer("obs_mean", torch.zeros(config.observation_shape))
        self.register_buffer("obs_scale", torch.ones(config.observation_shape))
        self.encoder = self.make_encoder()
        self.decoder = self.make_decoder()

    def make_encoder(self) -> nn.Module:
        """A network from normalised observations [N, *O] to mean and log variance, [N, 2 Z].

        Its mean starts as the observation itself, plus what an MLP adds: vectors need little compression, and what V
        loses nobody downstream gets back.
        """
        config = self.config
        matrix = GAIN * torch.eye(config.latent_dim, math.prod(config.observation_shape))
        network = SkipMLP(matrix, config.hidden_dims, 2 * config.latent_dim)
        used = slice(config.latent_dim, config.latent_dim + min(matrix.shape))
        with torch.no_grad():
            # The best variance behind a linear decoder of unit variance (Lucas et al. 2019), not 1: it would take
            # hundreds of steps to fall that far, and meanwhile V would blur what it has. Never above the prior's: a
            # variance beyond the clip gets no gradient, and would stay there.
            network.bias[used] += math.log(min(max(GAIN**2 * config.beta, math.exp(LOG_VARIANCE_RANGE[0])), 1.0))
        return nn.Sequential(nn.Flatten(), network)

    def make_decoder(self) -> nn.Module:
        """A network from latents [N, Z] to normalised observations [N, *O]; it starts as the encoder's inverse."""
        shape = self.config.observation_shape
        matrix = torch.eye(math.prod(shape), self.config.latent_dim) / GAIN
        network = SkipMLP(matrix, tuple(reversed(self.config.hidden_dims)), math.prod(shape))
        return nn.Sequential(network, nn.Unflatten(-1, shape))

    def set_normalisation(self, mean: Tensor, scale: Tensor) -> None:
        """Fixes the observation normalisation: encoders see (o - mean) / scale, both of shape *O."""
        self.obs_mean.copy_(mean)
        self.obs_scale.copy_(scale)

    def posterior(self, observations: Tensor) -> Posterior:
        """q(z | o) for observations [..., *O] of any dtype."""
        batch_shape = observations.shape[: observations.ndim - len(self.config.observation_shape)]
        flat = observations.reshape(-1, *self.config.observation_shape)
        # Whatever autocast multiplied in, what follows (exp, KL, latents) is float32; so are all of V's and M's losses.
        out = self.encoder(self.normalise(flat)).float().reshape(*batch_shape, 2 * self.config.latent_dim)
        mean, log_variance = out.chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def encode(self, observations: Tensor) -> Tensor:
        """Latents [..., Z]: a sample of the posterior in training mode, its mean in eval mode."""
        posterior = self.posterior(observations)
        return posterior.sample() if self.training else posterior.mean

    def decode(self, latents: Tensor) -> Tensor:
        """Observations [..., *O], in the environment's units, of latents [..., Z]."""
        flat = self.decoder(latents.reshape(-1, self.config.latent_dim))
        observations = flat * self.obs_scale + self.obs_mean
        return observations.reshape(*latents.shape[:-1], *self.config.observation_shape)

    def forward(self, observations: Tensor) -> tuple[Tensor, Posterior]:
        """Encodes and decodes [..., *O]; the latent is sampled in training mode, the mean in eval mode."""
        posterior = self.posterior(observations)
        latents = posterior.sample() if self.training else posterior.mean
        return self.decode(latents), posterior

    def losses(self, observations: Tensor, mask: Tensor, num_real: int | None = None) -> VAELosses:
        """beta-VAE loss over the observations [B, T, *O] where mask [B, T] is True: `num_real`, if the host knows.

        Reconstruction is the negative log-likelihood, up to a constant, of a Gaussian decoder with unit variance in
        normalised units: half the squared error, summed over the observation.
        """
        observations = observations.flatten(0, 1)[places(mask, num_real)]
        posterior = self.posterior(observations)
        error = self.decoder(posterior.sample()).float() - self.normalise(observations)
        reconstruction = 0.5 * error.flatten(1).square().sum(-1).mean()
        kl_divergence = posterior.kl_from_standard_normal().mean()
        return VAELosses(reconstruction + self.config.beta * kl_divergence, reconstruction, kl_divergence)

    def frame_losses(self, frames: Tensor) -> VAELosses:
        """Losses of N single observations, as V is fitted to frames.

        Args:
            frames: [N, 2, *O], each with the one before it, which may be itself.
        """
        mask = torch.ones(len(frames), 1, dtype=torch.bool, device=frames.device)
        return self.losses(frames[:, 1:], mask, len(frames))

    def normalise(self, observations: Tensor) -> Tensor:
        """Observations as the encoder takes them: float32, (o - mean) / scale."""
        return (observations.float() - self.obs_mean) / self.obs_scale
