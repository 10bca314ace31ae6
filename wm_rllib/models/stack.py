"""Feed-forward networks for a fixed number of rows, run in memory that is asked for once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Operation = Callable[[Tensor], Tensor]

SMALLEST_LARGE_PRODUCT = 2.5e6
"""In floating-point operations; below, oneDNN's call, or a cast to bfloat16, costs more than it saves."""


class Stack:
    """A network's layers, applied to [B, in] under no gradient; the result [B, out] may lie in a buffer that is reused.

    It computes what ``nn.Sequential(*layers)`` does, up to rounding. tanh is computed as 2 sigmoid(2 x) - 1, both
    factors folded into the linear layers around it: on an AMD EPYC torch's tanh took ten times as long as its sigmoid.
    Layers that are not known here, or carry hooks, are called as they are.

    Weights are copied: build a new one when they have changed.

    Args:
        layers: Applied one after the other.
        rows: B.
        output_order: Which of the last layer's outputs stand where; that layer must be linear.
        dtype: What large products are computed in; see `affine`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        rows: int,
        output_order: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self._operations: list[Operation] = []
        owned = folded = False
        for index, layer in enumerate(layers):
            following = layers[index + 1] if index + 1 < len(layers) else None
            if is_plain(layer, nn.Linear):
                order = output_order if following is None else None
                self._operations.append(_affine(layer, rows, dtype, folded, is_plain(following, nn.Tanh), order))
                owned, folded = True, False
            elif is_plain(layer, nn.Tanh) and is_plain(layers[index - 1] if index else None, nn.Linear):
                self._operations.append(torch.sigmoid_)
                folded = is_plain(following, nn.Linear)
                if not folded:
                    self._operations.append(_unfold)
            else:
                owned, operation = _other(layer, owned)
                self._operations.append(operation)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, in] to [B, out]; overwritten by the next call."""
        for operation in self._operations:
            x = operation(x)
        return x


def affine(weight: Tensor, bias: Tensor, rows: int, dtype: torch.dtype = torch.float32) -> Operation:
    """The map from x [B, in] to x weight^T + bias [B, out], which may lie in a buffer that is reused.

    torch multiplies float32 matrices on x86 CPUs by MKL. On an AMD EPYC with AVX-512, oneDNN, called as torch.compile
    calls it, was 2.2 times as fast (docs/performance.md).

    Args:
        weight: [out, in].
        bias: [out].
        rows: B.
        dtype: What x and the weights are rounded to where the product is large; the result is float32 in any case.
    """
    is_large = 2 * rows * weight.numel() >= SMALLEST_LARGE_PRODUCT
    out = weight.new_empty(rows, len(weight))
    if is_large and dtype != torch.float32:
        product = _product(weight.to(dtype), bias.to(dtype))
        return lambda x: out.copy_(product(x.to(dtype)))
    if is_large and _has_onednn(weight):
        return _product(weight, bias)
    transposed = weight.t()
    return lambda x: torch.addmm(bias, x, transposed, out=out)


def _product(weight: Tensor, bias: Tensor) -> Operation:
    """`affine`, in the dtype of all three, in new memory."""
    if not _has_onednn(weight):
        return lambda x: nn.functional.linear(x, weight, bias)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda x: linear(x, weight, bias, "none", [], "")


def _has_onednn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def is_plain(layer: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a layer is exactly of this class, not a subclass, and has no hooks: only then is its forward known."""
    return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks)


def flat_layers(network: nn.Module) -> list[nn.Module]:
    """A network as the layers that run one after the other; nested `nn.Sequential` are opened."""
    if is_plain(network, nn.Sequential):
        return [layer for child in network.children() for layer in flat_layers(child)]
    return [network]


def _affine(
    layer: nn.Module, rows: int, dtype: torch.dtype, folded: bool, tanh_follows: bool, order: Tensor | None
) -> Operation:
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if folded:  # the input s stands for 2 s - 1
        bias, weight = bias - weight.sum(1), 2.0 * weight
    if tanh_follows:
        bias, weight = 2.0 * bias, 2.0 * weight
    if order is not None:
        bias, weight = bias[order], weight[order]
    return affine(weight.contiguous(), bias, rows, dtype)


def _unfold(x: Tensor) -> Tensor:
    return x.mul_(2.0).sub_(1.0)


def _other(layer: nn.Module, owned: bool) -> tuple[bool, Operation]:
    """The operation of a layer, and whether its result is memory of the stack's own, free to be overwritten."""
    if owned and is_plain(layer, nn.SiLU):
        return True, lambda x: nn.functional.silu(x, inplace=True)
    if owned and is_plain(layer, nn.ReLU):
        return True, torch.relu_
    if is_plain(layer, nn.LayerNorm):
        return True, layer
    return False, layer
