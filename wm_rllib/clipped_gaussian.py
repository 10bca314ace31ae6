"""What a Gaussian policy's actions being clipped on their way to the environment means for greed and entropy."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchDiagGaussian
from torch import Tensor

STANDARD_ENTROPY = 0.5 + 0.5 * math.log(2.0 * math.pi)
"""Of a standard normal variable, in nats."""


def clipped_mean(mean: Tensor, std: Tensor) -> Tensor:
    """The mean of a Gaussian variable that is clipped to [-1, 1], elementwise: between -1 and 1.

    Args:
        mean: Of the Gaussian.
        std: Its standard deviation, above 0, of the same shape.
    """
    mu, sigma = mean.double(), std.double()  # differences of what is nearly the same, times a spread that may be large
    low, high = (-1.0 - mu) / sigma, (1.0 - mu) / sigma
    below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
    inside = mu * (1.0 - above - below) + sigma * (_density(low) - _density(high))
    return (above - below + inside).clamp(-1.0, 1.0).to(mean.dtype)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)


class ClippedGaussian(TorchDiagGaussian):
    """RLlib's Gaussian over actions that are clipped to [-1, 1]; its greedy action is the mean of the clipped ones.

    What lies beyond the bounds is one action, so that training widens the Gaussian at no cost until it steers by how
    often it is at either bound. Its mode, which RLlib takes, was then never tried: on CarRacing-v3 one policy got 354
    by its mode, 626 by sampling, and 880 by this mean (24 episodes each). A narrow one within the bounds has the same
    of both.
    """

    def to_deterministic(self) -> TorchDeterministic:
        """The greedy action."""
        return TorchDeterministic(loc=clipped_mean(self._dist.mean, self._dist.stddev))


class BoundedEntropy(TorchDiagGaussian):
    """RLlib's Gaussian in training, whose entropy does not grow with a deviation beyond 1; actions end at -1 and 1.

    What lies beyond the bounds is one action, so that a wider Gaussian explores no more. Its entropy would grow on, and
    the bonus for it widened C's Gaussian to a deviation of 4,000 in LunarLander-v3 with `continuous: true`: every
    action was at one bound or the other, whatever C's mean.
    """

    def entropy(self) -> Tensor:
        """Entropies [B], of each action at most that of a standard normal one."""
        return self._dist.entropy().clamp(max=STANDARD_ENTROPY).sum(-1)


def is_clipped(distribution: Any, space: gym.Space[Any], *, normalized: bool) -> bool:
    """Whether a Gaussian's actions are clipped to [-1, 1] on their way to the environment.

    Args:
        distribution: RLlib's class.
        space: The environment's actions.
        normalized: RLlib's `normalize_actions`: a Box with bounds in all dimensions is [-1, 1] in policy space.
    """
    bounded = isinstance(space, gym.spaces.Box) and space.is_bounded("both")
    return normalized and bounded and distribution is TorchDiagGaussian


def greedy_distribution(distribution: Any, space: gym.Space[Any], *, normalized: bool) -> Any:
    """What greedy actions are taken from: `distribution`, but where RLlib clips the normalised actions that it draws.

    Args:
        distribution: The module's class for inference.
        space: The environment's actions.
        normalized: RLlib's `normalize_actions`: a Box with bounds in all dimensions is [-1, 1] in policy space.
    """
    return ClippedGaussian if is_clipped(distribution, space, normalized=normalized) else distribution
