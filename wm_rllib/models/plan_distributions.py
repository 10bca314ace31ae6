"""Distributions over plans: what a search draws its candidates from, for each kind of action.

Plans are written as M takes actions: one-hot for discrete parts, in [-1, 1] for bounded dimensions of a Box. N is the
number of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from wm_rllib.spaces import ActionCodec

SMALLEST_STD = 0.05
"""Of a Gaussian over actions, whose whole range is 2: a search that has converged goes on looking around."""
KEPT = 0.1
"""Of a distribution when it is fitted anew: a few lucky candidates do not end the search (as in iCEM)."""
TRUST_IN_SHIFTED = 0.5
"""Probability that a discrete search draws the previous plan's action where it starts from one."""


class PlanDistribution(Protocol):
    """Independent distributions over each action of B plans."""

    @property
    def mode(self) -> Tensor:
        """The plans [B, H, A] that it is centred on."""

    def choose(self, plans: Tensor, returns: Tensor) -> Tensor:
        """The plans [B, H, A] to follow, after `refit` to plans [B, N, H, A] with returns [B, N]."""

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Candidates [B, N, H, A]; every row of B gets the same noise, and so the plan that it would get alone."""

    def refit(self, plans: Tensor, weights: Tensor) -> PlanDistribution:
        """The distribution that fits plans [B, N, H, A] with weights [B, N], which sum to 1."""

    def around(self, plans: Tensor) -> PlanDistribution:
        """As wide as this one, but centred on plans [B, H, A]."""


@dataclass(frozen=True)
class GaussianPlans:
    """For Box actions: mean and std [B, H, A]; `bounded` [A] says which dimensions are clipped to [-1, 1]."""

    mean: Tensor
    std: Tensor
    bounded: Tensor

    @property
    def mode(self) -> Tensor:
        """See `PlanDistribution`."""
        return self._clipped(self.mean)

    def choose(self, plans: Tensor, returns: Tensor) -> Tensor:
        """See `PlanDistribution`: the mean, which is closer to the best plan than any single candidate is."""
        return self.mode

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """See `PlanDistribution`."""
        noise = torch.randn((num_samples, *self.mean.shape[1:]), generator=generator, device=self.mean.device)
        return self._clipped(torch.addcmul(self.mean.unsqueeze(1), self.std.unsqueeze(1), noise))

    def refit(self, plans: Tensor, weights: Tensor) -> GaussianPlans:
        """See `PlanDistribution`."""
        weights = weights[:, :, None, None]
        mean = (weights * plans).sum(1)
        variance = (weights * (plans - mean.unsqueeze(1)).square()).sum(1)
        std = torch.lerp(variance.sqrt(), self.std, KEPT).clamp(min=SMALLEST_STD)
        return replace(self, mean=torch.lerp(mean, self.mean, KEPT), std=std)

    def around(self, plans: Tensor) -> GaussianPlans:
        """See `PlanDistribution`."""
        return replace(self, mean=plans)

    def _clipped(self, actions: Tensor) -> Tensor:
        return torch.where(self.bounded, actions.clamp(-1.0, 1.0), actions)


@dataclass(frozen=True)
class CategoricalPlans:
    """For Discrete and MultiDiscrete actions: probabilities [B, H, A], of which each part of `sizes` sums to 1."""

    probabilities: Tensor
    sizes: Sequence[int]

    @property
    def mode(self) -> Tensor:
        """See `PlanDistribution`; the most probable action of each step."""
        return self._one_hot(self.probabilities)

    def choose(self, plans: Tensor, returns: Tensor) -> Tensor:
        """See `PlanDistribution`: the best candidate.

        The most probable action of each step may be no plan at all: where left-right and right-left are both good, the
        steps' own probabilities allow right-right.
        """
        return best_plans(plans, returns)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """See `PlanDistribution`."""
        shape = (num_samples, *self.probabilities.shape[1:])
        # p / Exp(1) is largest for each category with probability p: Gumbel's arg max without the logarithms.
        waits = torch.empty(shape, device=self.probabilities.device).exponential_(generator=generator)
        return self._one_hot(self.probabilities.unsqueeze(1) / waits)

    def refit(self, plans: Tensor, weights: Tensor) -> CategoricalPlans:
        """See `PlanDistribution`."""
        frequencies = (weights[:, :, None, None] * plans).sum(1)
        return replace(self, probabilities=torch.lerp(frequencies, self.probabilities, KEPT))

    def around(self, plans: Tensor) -> CategoricalPlans:
        """See `PlanDistribution`."""
        return replace(self, probabilities=torch.lerp(self.probabilities, plans, TRUST_IN_SHIFTED))

    def _one_hot(self, scores: Tensor) -> Tensor:
        parts = torch.split(scores, list(self.sizes), -1)
        hot = [torch.zeros_like(part).scatter_(-1, part.argmax(-1, keepdim=True), 1.0) for part in parts]
        return hot[0] if len(hot) == 1 else torch.cat(hot, -1)


def best_plans(plans: Tensor, returns: Tensor) -> Tensor:
    """Of plans [B, N, H, A] those with the highest of returns [B, N], the first of equals: [B, H, A]."""
    return plans[torch.arange(len(plans), device=plans.device), returns.argmax(1)]


def first_distribution(codec: ActionCodec, rows: int, horizon: int, device: torch.device) -> PlanDistribution:
    """What a search starts from where nothing is known: as good as uniform, for B rows of H steps.

    On bounded dimensions of a Box it is a standard normal clipped to [-1, 1]: a third of its draws are at a bound,
    where the best actions often are. On the others it is a standard normal in the environment's units.
    """
    shape = (rows, horizon, codec.dim)
    space = codec.action_space
    if isinstance(space, gym.spaces.Box):
        bounded = torch.as_tensor(np.asarray(space.bounded_below & space.bounded_above), device=device)
        return GaussianPlans(torch.zeros(shape, device=device), torch.ones(shape, device=device), bounded)
    sizes = codec.sizes
    uniform = torch.cat([torch.full((size,), 1.0 / size, device=device) for size in sizes])
    return CategoricalPlans(uniform.expand(shape), sizes)
