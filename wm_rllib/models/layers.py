"""Small network builders shared by V and M."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(input_dim: int, hidden_dims: Sequence[int], output_dim: int) -> nn.Sequential:
    """Linear-LayerNorm-SiLU blocks and a linear output; [..., input_dim] to [..., output_dim]."""
    layers: list[nn.Module] = []
    for hidden_dim in hidden_dims:
        layers += [nn.Linear(input_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.SiLU()]
        input_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(input_dim, output_dim))
