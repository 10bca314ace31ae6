"""Dreams as rows of a PPO batch: what the loss reads of them, under the critic of this moment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from wm_rllib.learners.advantages import value_targets

COLUMNS = (
    Columns.OBS,
    Columns.ACTIONS,
    Columns.ACTION_LOGP,
    Columns.ACTION_DIST_INPUTS,
    Postprocessing.ADVANTAGES,
    Postprocessing.VALUE_TARGETS,
)
"""What the PPO loss reads of a row, real or imagined."""

RowColumns = dict[str, Tensor]
Block = dict[str, np.ndarray]
Critic = Callable[[Tensor], Tensor]
"""Features [N, F] to values [N]."""


@torch.no_grad()
def dreamed_rows(
    blocks: list[Block], critic: Critic, *, gamma: float, lambda_: float, device: torch.device
) -> RowColumns:
    """All rows of the dreams, flat [N, ...], with advantages and value targets.

    Args:
        blocks: Arrays [B, H, ...], as `wm_rllib.dreamers.dreamer` makes them.
        critic: Values under the current weights.
        gamma: Discount.
        lambda_: GAE's lambda.
        device: Where the rows are wanted.
    """
    columns = {
        name: torch.as_tensor(np.concatenate([_rows(block[name]) for block in blocks]), device=device)
        for name in COLUMNS
        if name in blocks[0]
    }
    values = critic(columns[Columns.OBS])
    targets, row = [], 0
    for block in blocks:
        count = block[Columns.REWARDS].size
        targets.append(_targets(block, values[row : row + count], critic, gamma, lambda_, device))
        row += count
    columns[Postprocessing.VALUE_TARGETS] = torch.cat(targets)
    columns[Postprocessing.ADVANTAGES] = columns[Postprocessing.VALUE_TARGETS] - values
    return columns


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[2:])


def _targets(
    block: Block, values: Tensor, critic: Critic, gamma: float, lambda_: float, device: torch.device
) -> Tensor:
    """lambda-returns of one block, flat."""

    def tensor(name: str) -> Tensor:
        return torch.tensor(block[name], device=device)

    was_cut = "cut_obs" in block
    rewards = tensor(Columns.REWARDS)
    return value_targets(
        rewards,
        values.view_as(rewards),
        critic(tensor("bootstrap_obs")),
        tensor(Columns.TERMINATEDS),
        gamma=gamma,
        lambda_=lambda_,
        truncateds=tensor(Columns.TRUNCATEDS) if was_cut else None,
        cut_values=critic(tensor("cut_obs")) if was_cut else None,
    ).reshape(-1)
