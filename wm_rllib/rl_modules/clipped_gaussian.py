"""RLlib's Gaussian policy where its actions are clipped on their way to the environment."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchDiagGaussian
from torch import Tensor

from wm_rllib.models.clipped import clipped_divergence, clipped_log_likelihood, clipped_mean

STANDARD_ENTROPY = 0.5 + 0.5 * math.log(2.0 * math.pi)
"""Of a standard normal variable, in nats."""


class ClippedGaussian(TorchDiagGaussian):
    """RLlib's Gaussian over actions that are clipped to [-1, 1]; what lies beyond a bound is one action.

    Its likelihood is that of the clipped action (`clipped_log_likelihood`).

    Its greedy action is the mean of the clipped ones. Training widens the Gaussian at no cost until it steers by how
    often it is at either bound, and its mode, which RLlib takes, is then never tried: on CarRacing-v3 one policy got
    354 by its mode, 626 by sampling, and 880 by this mean (24 episodes each). A narrow one within the bounds has the
    same of both.

    Its entropy does not grow with a deviation beyond 1, for a wider Gaussian explores no more. The bonus for it widened
    C's Gaussian to a deviation of 4,000 in LunarLander-v3 with `continuous: true`: every action was at one bound or the
    other, whatever C's mean.
    """

    def logp(self, value: Tensor) -> Tensor:
        """Log-likelihoods [B] of actions [B, A] as they were drawn."""
        return clipped_log_likelihood(value, self._dist.mean, self._dist.stddev.log()).sum(-1)

    def kl(self, other: ClippedGaussian) -> Tensor:
        """Of the actions [B] that reach the environment, from those of another one."""
        mine, theirs = self._dist, other._dist
        return clipped_divergence(mine.mean, mine.stddev, theirs.mean, theirs.stddev).sum(-1)

    def entropy(self) -> Tensor:
        """Entropies [B], of each action at most that of a standard normal one."""
        return self._dist.entropy().clamp(max=STANDARD_ENTROPY).sum(-1)

    def to_deterministic(self) -> TorchDeterministic:
        """The greedy action."""
        return TorchDeterministic(loc=clipped_mean(self._dist.mean, self._dist.stddev))


def as_clipped(distribution: Any, space: gym.Space[Any], *, normalized: bool) -> Any:
    """`ClippedGaussian` in place of RLlib's Gaussian where what that draws is clipped to [-1, 1]; any other as it is.

    Args:
        distribution: RLlib's class.
        space: The environment's actions.
        normalized: RLlib's `normalize_actions`: a Box with bounds in all dimensions is [-1, 1] in policy space.
    """
    bounded = isinstance(space, gym.spaces.Box) and space.is_bounded("both")
    return ClippedGaussian if normalized and bounded and distribution is TorchDiagGaussian else distribution
