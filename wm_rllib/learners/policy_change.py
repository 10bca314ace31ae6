"""How far an update has moved the policy from the one that acted."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

POLICY_KL, CLIP_FRACTION = "policy_kl", "clip_fraction"


@torch.no_grad()
def policy_change(distribution: Any, inputs: Tensor, batch: dict[str, Any], clip_param: float) -> dict[str, Tensor]:
    """Scalars over the B rows of a minibatch, by name.

    The estimate r - 1 - log r of the KL of the new policy from the old one, r their likelihood ratio (Schulman 2020,
    Approximating KL divergence): it is never negative, and its mean is the KL. And the share of rows whose r is further
    from 1 than PPO's clip.

    Args:
        distribution: RLlib's class.
        inputs: The new policy's, [B, L].
        batch: With actions [B, ...] and the old policy's log-likelihoods [B].
        clip_param: PPO's.
    """
    log_ratio = distribution.from_logits(inputs.float()).logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP]
    ratio = log_ratio.exp()
    return {
        POLICY_KL: (ratio - 1.0 - log_ratio).mean(),
        CLIP_FRACTION: ((ratio - 1.0).abs() > clip_param).float().mean(),
    }
