"""A small ensemble beside M's head: where its members disagree, M has not seen enough to be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

USUAL_QUANTILE = 0.95
"""Quantile of the disagreement on real transitions that counts as usual."""
USUAL_RATE = 0.05
"""How far one gradient step moves the record of it."""
SHOWN = 0.5
"""Share of the transitions that a member sees in a gradient step: seeing all, members would come to agree too well."""


class Ensemble(nn.Module):
    """E networks that each predict z_{t+1} - z_t from (z_t, a_t), all in two batched products.

    Their spread is a measure of what M does not know, not of what is random: noise moves the data, not the members'
    means (Lakshminarayanan et al. 2017; Pathak et al. 2019). It does not see h, as M's outcome head does not.

    Args:
        input_dim: Z + A.
        latent_dim: Z.
        size: E.
        hidden_dim: Units of each member's hidden layer.
    """

    usual: Tensor

    def __init__(self, input_dim: int, latent_dim: int, size: int, hidden_dim: int = 64):
        super().__init__()
        self.size, self.latent_dim = size, latent_dim
        self.hidden = nn.Linear(input_dim, size * hidden_dim)
        bound = 1.0 / math.sqrt(hidden_dim)
        self.weight = nn.Parameter(torch.empty(size, hidden_dim, latent_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(size, 1, latent_dim))
        self.register_buffer("usual", torch.ones(()))

    def predict(self, inputs: Tensor) -> Tensor:
        """The members' z_{t+1} - z_t, [E, N, Z], for [z_t, a_t] [N, Z + A]."""
        hidden = torch.nn.functional.silu(self.hidden(inputs)).reshape(len(inputs), self.size, self.weight.shape[1])
        return torch.baddbmm(self.bias, hidden.transpose(0, 1), self.weight)

    def disagreement(self, inputs: Tensor) -> Tensor:
        """Spread of the members [N], in multiples of what is usual on real transitions."""
        return _spread(self.predict(inputs)) / self.usual

    def loss(self, inputs: Tensor, change: Tensor) -> Tensor:
        """Half squared error, summed over Z and the members, mean over [N]; in training it also updates `usual`.

        Args:
            inputs: [N, Z + A].
            change: z_{t+1} - z_t, [N, Z].
        """
        predictions = self.predict(inputs)
        if self.training and len(inputs):
            usual = torch.quantile(_spread(predictions.detach()), USUAL_QUANTILE)
            self.usual.lerp_(usual.clamp(min=1e-8), USUAL_RATE)
        shown = torch.rand(predictions.shape[:2], device=change.device) < SHOWN
        error = (predictions - change).square().sum(-1) * shown
        return 0.5 * error.sum() / max(1, len(inputs))


def _spread(predictions: Tensor) -> Tensor:
    """Standard deviation over the members, root mean square over Z: [E, N, Z] to [N]."""
    return predictions.var(0, correction=0).mean(-1).sqrt()
