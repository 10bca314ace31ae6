"""Floating-point operations of one dreamed step, counted from the sizes of the networks.

A multiplication and an addition are two operations; only matrix products are counted (biases, activations, sampling
and the restart of lanes are work too, but none that the matrix product's rate stands for).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from wm_rllib.models import MDNRNNConfig


def mlp_flops(sizes: Sequence[int]) -> int:
    """One row through linear layers of these widths, the input's first."""
    return sum(2 * width * following for width, following in pairwise(sizes))


def lstm_flops(mdn: MDNRNNConfig) -> int:
    """One row through the LSTM: four gates, each of [z, a] and h."""
    return 2 * 4 * mdn.hidden_dim * (mdn.latent_dim + mdn.action_dim + mdn.hidden_dim)


def mixture_outputs(mdn: MDNRNNConfig) -> tuple[int, int]:
    """Widths of the mixture heads' outputs: weights; means and log sigmas."""
    weights = mdn.num_mixtures * (1 if mdn.mixture == "joint" else mdn.latent_dim)
    return weights, 2 * mdn.num_mixtures * mdn.latent_dim


def step_flops(mdn: MDNRNNConfig, policy_hidden_dims: Sequence[int], num_policy_outputs: int) -> int:
    """One dreamed step of one lane: C's actor, the LSTM, the mixture heads and the outcome head.

    Args:
        mdn: Sizes of M.
        policy_hidden_dims: Hidden layers of C's actor, which sees [z, h].
        num_policy_outputs: Inputs of C's distribution.
    """
    z, a, h = mdn.latent_dim, mdn.action_dim, mdn.hidden_dim
    policy = mlp_flops([z + h, *policy_hidden_dims, num_policy_outputs])
    mixture = sum(mlp_flops([h + z + a, *mdn.head_hidden_dims, width]) for width in mixture_outputs(mdn))
    outcome = mlp_flops([z + a + z, *mdn.head_hidden_dims, 3])
    return policy + lstm_flops(mdn) + mixture + outcome


def paper_step_flops(mdn: MDNRNNConfig, policy_hidden_dims: Sequence[int], num_policy_outputs: int) -> int:
    """The same with one linear layer on h for mixture, reward and termination together, as in the paper."""
    policy = mlp_flops([mdn.latent_dim + mdn.hidden_dim, *policy_hidden_dims, num_policy_outputs])
    return policy + lstm_flops(mdn) + mlp_flops([mdn.hidden_dim, sum(mixture_outputs(mdn)) + 2])
