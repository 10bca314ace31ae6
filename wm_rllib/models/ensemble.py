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


class Members(nn.Module):
    """E networks of one hidden layer, all in two batched products.

    Args:
        input_dim: Width of the input.
        output_dim: Width of each member's output.
        size: E.
        hidden_dim: Units of each member's hidden layer.
    """

    usual: Tensor

    def __init__(self, input_dim: int, output_dim: int, size: int, hidden_dim: int):
        super().__init__()
        self.size = size
        self.hidden = nn.Linear(input_dim, size * hidden_dim)
        bound = 1.0 / math.sqrt(hidden_dim)
        self.weight = nn.Parameter(torch.empty(size, hidden_dim, output_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(size, 1, output_dim))
        self.register_buffer("usual", torch.ones(()))

    def predict(self, inputs: Tensor) -> Tensor:
        """Each member's output, [E, N, out] float32, for inputs [N, in]."""
        hidden = torch.nn.functional.silu(self.hidden(inputs)).reshape(len(inputs), self.size, self.weight.shape[1])
        return torch.baddbmm(self.bias, hidden.transpose(0, 1), self.weight).float()  # bfloat16 under autocast

    def record_usual(self, spread: Tensor) -> None:
        """Moves the record of what spread [N] is usual on real transitions; in training only."""
        if self.training and len(spread):
            self.usual.lerp_(torch.quantile(spread, USUAL_QUANTILE).clamp(min=1e-8), USUAL_RATE)

    def mean_of_shown(self, error: Tensor) -> Tensor:
        """The sum over members of their errors [E, N] on the transitions that they are shown, divided by N."""
        shown = torch.rand(error.shape, device=error.device) < SHOWN
        return (error * shown).sum() / max(1, error.shape[1])


class Ensemble(Members):
    """Members that each predict z_{t+1} - z_t from (z_t, a_t).

    Their spread is a measure of what M does not know, not of what is random: noise moves the data, not the members'
    means (Lakshminarayanan et al. 2017; Pathak et al. 2019). It does not see h, as M's outcome head does not.

    Args:
        input_dim: Z + A.
        latent_dim: Z.
        size: E.
        hidden_dim: Units of each member's hidden layer.
    """

    def __init__(self, input_dim: int, latent_dim: int, size: int, hidden_dim: int = 64):
        super().__init__(input_dim, latent_dim, size, hidden_dim)

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
        self.record_usual(_spread(predictions.detach()))
        return 0.5 * self.mean_of_shown((predictions - change).square().sum(-1))


def _spread(predictions: Tensor) -> Tensor:
    """Standard deviation over the members, root mean square over Z: [E, N, Z] to [N]."""
    return predictions.var(0, correction=0).mean(-1).sqrt()
