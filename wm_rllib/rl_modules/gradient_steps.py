"""Gradient steps over a batch of one module, without RLlib's costs per minibatch.

RLlib's loop slices SampleBatches, logs a dozen metrics and checks every parameter for NaN in each minibatch: with
networks of 64 units that is a third of the time (docs/performance.md). The losses stay RLlib's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Columns = dict[str, Tensor]

LENGTHS = "lengths"
"""Beside a minibatch's columns: how many steps of each row are real, a list that needs no read of the device."""


@dataclass(frozen=True)
class Minibatch:
    """What RLlib's update loop reads of a minibatch: columns by module."""

    policy_batches: dict[str, dict[str, Any]]


class Minibatches:
    """Minibatches of `columns`, epoch after epoch, each epoch in an order of its own.

    A minibatch may span two epochs: all have the same size, so that learners of a group take equally many.

    Args:
        module_id: Whose batch it is.
        columns: Tensors with one leading dimension, [N, ...] each.
        size: Rows of a minibatch, at most N.
        num_epochs: Passes over the rows, the last one rounded up to whole minibatches.
        count: Minibatches instead, if not 0.
        shuffle: Whether the order is random; otherwise that of the columns.
        lengths: [N], of rows that are padded sequences how many of their steps are real; not with `shuffle`. None: rows
            are no such sequences.
    """

    def __init__(
        self,
        module_id: str,
        columns: Columns,
        *,
        size: int,
        num_epochs: int = 1,
        count: int = 0,
        shuffle: bool,
        lengths: Sequence[int] | None = None,
    ):
        assert lengths is None or not shuffle
        self._lengths = lengths
        self._module_id, self._columns, self._size, self._shuffle = module_id, columns, size, shuffle
        self._num_rows = len(next(iter(columns.values())))
        self._count = count or -(-num_epochs * self._num_rows // size)

    def __len__(self) -> int:
        """Minibatches in all."""
        return self._count

    def __iter__(self) -> Iterator[Minibatch]:
        """One minibatch after the other."""
        order = self._order()
        for index in range(self._count):
            first = index * self._size
            rows = order[first : first + self._size]
            columns: dict[str, Any] = {name: column[rows] for name, column in self._columns.items()}
            if self._lengths is not None:
                columns[LENGTHS] = [self._lengths[(first + k) % self._num_rows] for k in range(self._size)]
            yield Minibatch({self._module_id: columns})

    def _order(self) -> Tensor:
        epochs = -(-self._count * self._size // self._num_rows)
        device = next(iter(self._columns.values())).device
        make = torch.randperm if self._shuffle else torch.arange
        return torch.cat([make(self._num_rows, device=device) for _ in range(epochs)])


class Silent:
    """Stands in for a MetricsLogger where only the last minibatch's values are kept."""

    def log_value(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_dict(self, *_: Any, **__: Any) -> None:
        """Nothing."""


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
    """Clips the gradients of an optimiser's parameters by their global norm, and takes a step if that norm is finite.

    torch's fused optimisers decide on the device whether to take it, as for a `GradScaler`; nothing waits for it.

    Returns:
        1 if the step was left out, else 0; on the parameters' device.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:  # single frames are V's alone
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm(grads)
    if max_norm is not None:
        torch._foreach_mul_(grads, torch.where(norm > max_norm, max_norm / (norm + 1e-6), 1.0))
    left_out = (~torch.isfinite(norm)).to(norm.dtype)
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = left_out  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif not left_out:  # RLlib's own Adam, as a checkpoint of a run without dreams brings it along
        optimizer.step()
    return left_out
