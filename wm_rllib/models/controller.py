"""C inside a dream: a network, and draws from its distribution with noise made ahead for a whole dream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from wm_rllib.models.clipped import HALF_LOG_TWO_PI, clipped_log_likelihood

Network = Callable[[Tensor], Tensor]
"""Features [B, F] to distribution inputs [B, L]."""


class ActionSampler(Protocol):
    """A distribution over actions, given inputs [..., L]."""

    input_dim: int
    """L."""

    def draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Noise [*shape, .] for that many draws, from torch's global generator."""

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Actions [B, ...] in policy space of inputs [B, L] and noise [B, .]."""

    def logp(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Log-probabilities [N] of actions [N, ...] under inputs [N, L]."""


class CategoricalSampler:
    """One categorical (RLlib's TorchCategorical) or several (TorchMultiCategorical), by Gumbel arg max.

    Args:
        sizes: Categories of each.
        scalar: Whether actions are [B] rather than [B, number of categoricals].
    """

    def __init__(self, sizes: Sequence[int], *, scalar: bool):
        self._sizes, self._scalar = list(sizes), scalar
        self.input_dim = sum(sizes)

    def draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard Gumbel noise [*shape, L]: minus the logarithm of an exponential draw, which is never log(0)."""
        return torch.empty((*shape, self.input_dim), device=device).exponential_().log_().neg_()

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """See `ActionSampler`; int64."""
        scores = inputs + noise
        if self._scalar:
            return scores.argmax(-1)
        return torch.stack([part.argmax(-1) for part in torch.split(scores, self._sizes, -1)], -1)

    def logp(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """See `ActionSampler`."""
        chosen = actions.unsqueeze(-1) if self._scalar else actions
        parts = zip(torch.split(inputs, self._sizes, -1), torch.split(chosen, 1, -1), strict=True)
        return torch.cat([part.log_softmax(-1).gather(-1, index) for part, index in parts], -1).sum(-1)


class GaussianSampler:
    """A Gaussian with diagonal covariance; inputs are means and log standard deviations (RLlib's TorchDiagGaussian).

    Args:
        action_dim: A.
        clipped: Whether likelihoods are those of actions that are clipped to [-1, 1].
    """

    def __init__(self, action_dim: int, *, clipped: bool = False):
        self.input_dim, self._clipped = 2 * action_dim, clipped

    def draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard normal noise [*shape, A]."""
        return torch.randn((*shape, self.input_dim // 2), device=device)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """See `ActionSampler`."""
        mean, log_std = inputs.chunk(2, -1)
        return torch.addcmul(mean, log_std.exp(), noise)

    def logp(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """See `ActionSampler`."""
        mean, log_std = inputs.chunk(2, -1)
        if self._clipped:
            return clipped_log_likelihood(actions, mean, log_std).sum(-1)
        normalised = (actions - mean) * torch.exp(-log_std)
        return (-0.5 * normalised.square() - log_std - HALF_LOG_TWO_PI).sum(-1)


@dataclass(frozen=True)
class Controller:
    """C as dreams like it best: they run its network in place, and draw the noise of all its actions ahead.

    It is a `Policy` too: called on features [B, F] it returns actions [B, ...], log-probabilities [B] and distribution
    inputs [B, L].
    """

    network: nn.Module | Network
    sampler: ActionSampler

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One draw for each row."""
        inputs = self.network(features)
        actions = self.sampler.sample(inputs, self.sampler.draw((len(features),), features.device))
        return actions, self.sampler.logp(inputs, actions), inputs
