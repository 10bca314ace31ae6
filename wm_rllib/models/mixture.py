"""Gaussian mixtures over the next latent (Bishop 1994), with the paper's temperature.

`joint`: one mixture over the whole latent, log_pi [..., K] (Ha & Schmidhuber's text, ctallec's code). `per_dimension`:
one mixture for each latent dimension, log_pi [..., K, Z] (Ha's own code, rnn.py of CarRacing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixtureParams:
    """A mixture of K diagonal Gaussians: log_pi [..., K] or [..., K, Z]; mean and log_sigma [..., K, Z]."""

    log_pi: Tensor
    mean: Tensor
    log_sigma: Tensor

    @property
    def joint(self) -> bool:
        """Whether one component is chosen for the whole latent."""
        return self.log_pi.ndim == self.mean.ndim - 1

    def expectation(self) -> Tensor:
        """The mean of the mixture, [..., Z]."""
        weights = self.log_pi.exp()
        return ((weights.unsqueeze(-1) if self.joint else weights) * self.mean).sum(-2)


@dataclass(frozen=True)
class MixtureNoise:
    """Noise of one draw: gumbel like log_pi, normal [..., Z]. Drawn ahead for a whole dream."""

    gumbel: Tensor
    normal: Tensor


def mixture_nll(params: MixtureParams, target: Tensor) -> Tensor:
    """Negative log-likelihood, in nats, of targets [..., Z]; returns [...]."""
    together = _with_component(params, target)
    return -torch.logsumexp(together, dim=-1) if params.joint else -torch.logsumexp(together, dim=-2).sum(-1)


def explained(params: MixtureParams, target: Tensor) -> MixtureParams:
    """The same components, each as likely as it is to have drawn the target [..., Z] (Bishop 2006, equation 9.23)."""
    dim = -1 if params.joint else -2
    return replace(params, log_pi=torch.log_softmax(_with_component(params, target), dim))


def _with_component(params: MixtureParams, target: Tensor) -> Tensor:
    """Log-likelihood of each component together with the target, shaped as log_pi is."""
    normalised = (target.unsqueeze(-2) - params.mean) * torch.exp(-params.log_sigma)
    log_prob = -0.5 * normalised.square() - params.log_sigma - 0.5 * math.log(2.0 * math.pi)
    return params.log_pi + (log_prob.sum(-1) if params.joint else log_prob)


def draw_noise(
    shape: tuple[int, ...],
    num_mixtures: int,
    latent_dim: int,
    joint: bool,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> MixtureNoise:
    """Noise for draws of batch shape `shape`, from torch's global generator unless one is given."""
    choice = (*shape, num_mixtures) if joint else (*shape, num_mixtures, latent_dim)
    # Gumbel noise from exponentials: -log(Exp(1)) is standard Gumbel, and never log(0).
    gumbel = -torch.empty(choice, device=device).exponential_(generator=generator).log()
    return MixtureNoise(gumbel, torch.randn((*shape, latent_dim), device=device, generator=generator))


def sample_mixture(params: MixtureParams, temperature: float, noise: MixtureNoise) -> Tensor:
    """One draw [..., Z] at a temperature tau: logits / tau and sigma * sqrt(tau) (Ha & Schmidhuber 2018, appendix)."""
    chosen = (params.log_pi / temperature + noise.gumbel).argmax(dim=-1 if params.joint else -2)
    if params.joint:
        index = chosen[..., None, None].expand(*chosen.shape, 1, params.mean.shape[-1])
    else:
        index = chosen.unsqueeze(-2)
    mean = params.mean.gather(-2, index).squeeze(-2)
    log_sigma = params.log_sigma.gather(-2, index).squeeze(-2)
    return mean + log_sigma.exp() * math.sqrt(temperature) * noise.normal
