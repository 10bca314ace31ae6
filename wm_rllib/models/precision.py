"""What networks multiply in: float32, or bfloat16; in learners under torch.autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "bfloat16"


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of this name."""
    return {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}[precision]


class Precision:
    """A setting on a device. In float32 nothing is changed, not a bit.

    Weights, gradients and optimisers stay float32 in any case, and so do losses: bfloat16 has the range of float32 and
    three digits, so that no loss has to be scaled, but a likelihood, a probability ratio or a value needs the digits.

    Args:
        setting: "float32", "bfloat16" or "auto": bfloat16 where it pays, on a GPU that has it in hardware.
        device: Where the networks are.
        pays: Whether these networks are large enough. On an H200 V's convolutions trained 3.4 times as fast, while M
            and C, whose products take less time than their launches, were slowed down by the casts.
    """

    def __init__(self, setting: str, device: torch.device | str, *, pays: bool):
        self._device_type = torch.device(device).type
        chosen = setting == AUTO and pays and self._device_type == "cuda" and _has_bfloat16()
        self.is_reduced = setting == BFLOAT16 or chosen

    @property
    def name(self) -> str:
        """Which of the two it is."""
        return BFLOAT16 if self.is_reduced else FLOAT32

    def autocast(self) -> AbstractContextManager[Any]:
        """What a forward pass and its losses run in."""
        return torch.autocast(self._device_type, torch.bfloat16) if self.is_reduced else nullcontext()

    def in_float32(self, outputs: Any) -> Any:
        """Networks' outputs, in nested dicts, with numbers in float32, as losses want them."""
        return tree_map(_float32, outputs) if self.is_reduced else outputs


def _float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _has_bfloat16() -> bool:
    """Whether this process's GPU has it in hardware; before Ampere it is emulated, and slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
