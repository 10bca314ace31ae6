"""Bounds that a network's outputs come back from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ClampInwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        low, high = ctx.bounds
        outwards = ((values < low) & (grad > 0)) | ((values > high) & (grad < 0))
        return grad.masked_fill(outwards, 0.0), None, None


def clamp_inwards(values: Tensor, low: float, high: float) -> Tensor:
    """`values.clamp(low, high)`, but gradient descent can bring back what is beyond a bound.

    clamp's own gradient is zero there: a sigma that was as small as is allowed while a latent did not move would stay
    so when it moves. What would lead farther out has none here either, so that this is projected gradient descent.

    Args:
        values: [...].
        low: Least of what is returned.
        high: Most of it.
    """
    return _ClampInwards.apply(values, low, high)  # type: ignore[no-untyped-call]
