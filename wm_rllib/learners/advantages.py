"""Generalised advantage estimation (Schulman et al. 2016) on rectangular batches of dreams."""

from __future__ import annotations

import torch
from torch import Tensor


def value_targets(
    rewards: Tensor,
    values: Tensor,
    bootstrap_values: Tensor,
    terminateds: Tensor,
    *,
    gamma: float,
    lambda_: float,
    truncateds: Tensor | None = None,
    cut_values: Tensor | None = None,
) -> Tensor:
    """lambda-returns of B lanes, each cut (truncated) after its last step.

    delta_t = r_t + gamma (1 - done_t) V_{t+1} - V_t;  A_t = delta_t + gamma lambda (1 - done_t) A_{t+1};
    the target is A_t + V_t. RLlib's `compute_value_targets` gives the same on the same steps, one episode at a time.

    Args:
        rewards: [B, H].
        values: [B, H], V(z_t, h_t).
        bootstrap_values: [B], V after the last step.
        terminateds: [B, H] bool; nothing is carried over such a step.
        gamma: Discount.
        lambda_: GAE's lambda.
        truncateds: [B, H] bool; a lane goes on from elsewhere after such a step, which is bootstrapped by itself.
        cut_values: [N], V after each truncated step, lane by lane.

    Returns:
        [B, H].
    """
    alive = 1.0 - terminateds.float()
    next_values = torch.cat([values[:, 1:], bootstrap_values[:, None]], dim=1)
    carried = alive
    if truncateds is not None and cut_values is not None:
        next_values = next_values.masked_scatter(truncateds, cut_values)
        carried = alive * (1.0 - truncateds.float())
    delta = rewards + gamma * alive * next_values - values
    advantages = torch.empty_like(delta)
    carry = torch.zeros_like(bootstrap_values)
    for t in range(delta.shape[1] - 1, -1, -1):
        carry = delta[:, t] + gamma * lambda_ * carried[:, t] * carry
        advantages[:, t] = carry
    return advantages + values


def standardise(advantages: Tensor, mean_and_std: tuple[Tensor, Tensor]) -> Tensor:
    """Zero mean and unit deviation, with RLlib's floor of 1e-4 on the latter.

    Args:
        advantages: [N].
        mean_and_std: Of the rows of all learners; scalars.
    """
    mean, std = mean_and_std
    return ((advantages - mean) / std.clamp(min=1e-4)).to(advantages.dtype)
