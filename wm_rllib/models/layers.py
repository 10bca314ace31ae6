"""Small network builders shared by V and M."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SKIP_START = 0.1
"""Size of the nonlinear part's first outputs, of what they would be without a linear part beside it."""


def mlp(input_dim: int, hidden_dims: Sequence[int], output_dim: int) -> nn.Sequential:
    """Linear-LayerNorm-SiLU blocks and a linear output; [..., input_dim] to [..., output_dim]."""
    layers: list[nn.Module] = []
    for hidden_dim in hidden_dims:
        layers += [nn.Linear(input_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.SiLU()]
        input_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(input_dim, output_dim))


class SkipMLP(nn.Module):
    """A linear map of the input plus an MLP of it, [..., input_dim] to [..., output_dim].

    The linear part starts as `matrix`, and the MLP small: a network that should be close to a known linear map does not
    have to learn it first.

    Args:
        matrix: First weights of the linear part, [linear_dim, input_dim]; outputs beyond linear_dim get the MLP alone.
        hidden_dims: Of the MLP.
        output_dim: At least linear_dim.
    """

    def __init__(self, matrix: Tensor, hidden_dims: Sequence[int], output_dim: int):
        super().__init__()
        linear_dim, input_dim = matrix.shape
        self.linear = nn.Linear(input_dim, linear_dim, bias=False)
        self.mlp = mlp(input_dim, hidden_dims, output_dim)
        self._missing = output_dim - linear_dim
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            self.linear.weight.copy_(matrix)
            last.weight.mul_(SKIP_START)
            last.bias.mul_(SKIP_START)

    @property
    def bias(self) -> Tensor:
        """[output_dim], of the sum of both parts."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        return last.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., input_dim] to [..., output_dim]."""
        return nn.functional.pad(self.linear(inputs), (0, self._missing)) + self.mlp(inputs)
