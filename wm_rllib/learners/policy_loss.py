"""PPO's loss alone, for gradient steps whose diagnostics nobody reads."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor


def policy_loss(
    distribution: Any, inputs: Tensor, values: Tensor, batch: dict[str, Any], config: Any, entropy_coeff: Any
) -> Tensor:
    """The scalar that RLlib's PPO learner descends, without a KL penalty, to the last bit.

    RLlib's own computes the explained variance in each minibatch, and has constants brought to the device for it and
    for the KL: on a GPU each of these two copies waits for all that was launched before.

    Args:
        distribution: RLlib's class of the distribution that is trained.
        inputs: Of it, [B, L].
        values: The critic's, [B].
        batch: Rows [B, ...] as RLlib's learner gets them, none of them padding.
        config: With clip_param, vf_clip_param and vf_loss_coeff.
        entropy_coeff: As it is now.
    """
    policy = distribution.from_logits(inputs)
    advantages = batch[Postprocessing.ADVANTAGES]
    ratio = torch.exp(policy.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP])
    clipped = torch.clamp(ratio, 1 - config.clip_param, 1 + config.clip_param)
    surrogate = torch.min(advantages * ratio, advantages * clipped)
    squares = torch.pow(values - batch[Postprocessing.VALUE_TARGETS], 2.0)
    errors = torch.clamp(squares, 0, config.vf_clip_param)
    return torch.mean(-surrogate + config.vf_loss_coeff * errors - entropy_coeff * policy.entropy())
