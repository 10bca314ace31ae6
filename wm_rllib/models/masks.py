"""Where masks are True, without a wait for the device if the host knows how often."""

from __future__ import annotations

from torch import Tensor


def places(mask: Tensor, count: int | None = None) -> Tensor:
    """Where `mask` is True, [N] in ascending order, as indices of the flattened mask.

    Args:
        mask: Bool, of any shape.
        count: N, if the host knows it. A size that only the device knows has the host wait for all that was launched.
    """
    if count is None:
        return mask.flatten().nonzero().squeeze(-1)
    return mask.flatten().logical_not().sort(stable=True).indices[:count]
