"""What the learners of a group tell each other, besides gradients: sums over all of them, and that one gives up.

With one learner, or none that is remote, nothing is sent and the sums are its own.
"""

from __future__ import annotations

import logging
import os
import threading

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DRIFT = 3.0
"""How many standard deviations the mean of a change is beyond which it is the change's size."""
LAST_WORDS_S = 1.0
"""How long a learner that failed lives on, to answer."""
FAILURE = "wm_rllib/failure"
"""Where a group's first failure is told, in the store that torch.distributed met at."""


def num_learners() -> int:
    """Learners that update together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def sum_over_learners(values: Tensor) -> Tensor:
    """The sum of all learners' `values` (same shape in each); each of them has to call this."""
    total = values.clone()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


def moments(column: Tensor | None) -> Tensor:
    """Count, sum and sum of squares, [3] float64: what learners add up to get a common mean and deviation."""
    if column is None:
        return torch.zeros(3, dtype=torch.float64)
    values = column.double()
    return torch.stack([torch.full_like(values.sum(), values.numel()), values.sum(), values.square().sum()])


def mean_and_std(total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation, float64 scalars, of what `moments` were summed from."""
    mean = total[1] / total[0]
    return mean, (total[2] / total[0] - mean.square()).clamp(min=0.0).sqrt()


def change_over_learners(rows: Tensor) -> Tensor:
    """How large the changes [N, Z] of all learners are, [Z], 0 of none; each of them has to call this.

    Their standard deviation; of what drifts steadily, like a clock, their mean.
    """
    values = rows.double()
    count = torch.full_like(values.sum(0), len(values))
    total = sum_over_learners(torch.stack([count, values.sum(0), values.square().sum(0)]))
    total[0].clamp_(min=1.0)
    mean, std = mean_and_std(total)
    return torch.where(mean.abs() > DRIFT * std, mean.abs(), std).to(rows.dtype)


class OtherLearnerError(RuntimeError):
    """This learner failed because another one had: its message is that one's."""


def leave_group(error: Exception, index: int) -> None:
    """Ends this learner's process shortly, so that the others get an error where they would wait for it for ever.

    They may be in the middle of an all-reduce that this one, having failed, will never join; gloo tells them only when
    the process is gone (not when its group is destroyed or aborted), and waits half an hour otherwise. What it raises
    now still reaches the driver. RLlib has the driver raise what the first learner in line raised, which gloo may have
    told no more than that a connection was closed: so the one that failed first leaves word for the others.

    Args:
        error: What was raised.
        index: This learner's.

    Raises:
        OtherLearnerError: Another one failed first.
    """
    if num_learners() == 1:
        return
    logger.exception("a learner failed and leaves its group; the others will fail too")
    leave = threading.Timer(LAST_WORDS_S, os._exit, [1])
    leave.daemon = True
    leave.start()
    first = _first_failure(f"learner {index} failed: {type(error).__name__}: {error}")
    if first is not None:
        raise OtherLearnerError(first) from error


def _first_failure(mine: str) -> str | None:
    """What another learner said when it failed; None, and this is said to those to come, if none has."""
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        first = bytes(store.compare_set(FAILURE, "", mine)).decode()
    except Exception:  # the learner that keeps the store is gone, and its own error is the driver's
        return None
    return None if first == mine else first
