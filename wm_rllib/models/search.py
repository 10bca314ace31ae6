"""The search for a plan inside the world model: random shooting, CEM and MPPI, for many rows at once.

All three draw candidates, run them through M, and keep what did best; the next iteration starts from there.

* `random` draws all candidates from the first distribution and keeps the best one;
* `cem` fits the distribution to the best candidates (cross-entropy method, Rubinstein 1999);
* `mppi` fits it to all candidates, weighted by the softmax of their returns (Williams et al. 2017, information
  theoretic MPC). Its temperature is in standard deviations of the candidates' returns, so that one value serves every
  environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wm_rllib.models.lookahead import Lookahead
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.plan_distributions import PlanDistribution, best_plans

PlannerName = Literal["random", "cem", "mppi"]


@dataclass(frozen=True)
class SearchConfig:
    """How to search, the same for every environment. Ranges are checked in `wm_rllib.settings.planner`.

    Attributes:
        planner: random, cem or mppi.
        horizon: H, actions of a plan.
        num_samples: N, candidates of an iteration; the first of them is the plan so far, where there is one.
        num_iterations: Iterations of a decision.
        num_particles: P, runs of each candidate through M with other noise.
        temperature: tau of M's mixture; 0 takes the mean of its most probable component.
        critic: Whether C's critic says what is to be expected after the horizon.
        elite_fraction: Of the candidates that `cem` fits its distribution to; at least one.
        mppi_temperature: In standard deviations of the candidates' returns.
    """

    planner: PlannerName = "cem"
    horizon: int = 5
    num_samples: int = 64
    num_iterations: int = 3
    num_particles: int = 1
    temperature: float = 1.0
    critic: bool = True
    elite_fraction: float = 0.1
    mppi_temperature: float = 0.5


@dataclass(frozen=True)
class IterationStats:
    """Predicted returns of an iteration's candidates, each [B].

    Attributes:
        best: The highest.
        mean: Their mean.
        std: Their standard deviation.
        effective_samples: 1 / sum of squared weights: how many candidates the next iteration starts from.
    """

    best: Tensor
    mean: Tensor
    std: Tensor
    effective_samples: Tensor


def best_weights(returns: Tensor) -> Tensor:
    """All of the weight on the best of returns [B, N], the first of equals."""
    return torch.zeros_like(returns).scatter_(1, returns.argmax(1, keepdim=True), 1.0)


def elite_weights(returns: Tensor, fraction: float) -> Tensor:
    """Equal weights on the best of returns [B, N]."""
    count = max(1, round(fraction * returns.shape[1]))
    return torch.zeros_like(returns).scatter_(1, returns.topk(count, 1).indices, 1.0 / count)


def softmax_weights(returns: Tensor, temperature: float) -> Tensor:
    """softmax(returns / (temperature x their standard deviation)) of returns [B, N]; equal where they do not differ."""
    scale = temperature * returns.std(1, correction=0, keepdim=True)
    advantages = returns - returns.max(1, keepdim=True).values
    return torch.softmax(advantages / scale.clamp(min=torch.finfo(returns.dtype).tiny), 1)


def candidate_weights(returns: Tensor, config: SearchConfig) -> Tensor:
    """What each candidate counts [B, N], by its return [B, N]."""
    if config.planner == "random":
        return best_weights(returns)
    if config.planner == "cem":
        return elite_weights(returns, config.elite_fraction)
    return softmax_weights(returns, config.mppi_temperature)


def search(
    lookahead: Lookahead,
    first: PlanDistribution,
    start: tuple[Tensor, State],
    config: SearchConfig,
    generator: torch.Generator,
    previous: Tensor | None = None,
) -> tuple[Tensor, list[IterationStats]]:
    """Plans [B, H, A] for B rows, and what each iteration found.

    Args:
        lookahead: Judges candidates.
        first: What is drawn from where nothing is known.
        start: z [B, Z] and M's state.
        config: How to search.
        generator: Source of everything random.
        previous: Plans [B, H, A] to start from, shifted already.
    """
    plan, statistics = previous, []
    distribution = first
    if previous is not None and config.planner != "random":
        distribution = first.around(previous)
    for _ in range(config.num_iterations):
        candidates = distribution.sample(config.num_samples, generator)
        if plan is not None:
            candidates[:, 0] = plan
        returns = lookahead(*start, candidates, generator).returns
        weights = candidate_weights(returns, config)
        if config.planner == "random":
            plan = best_plans(candidates, returns)
        else:
            distribution = distribution.refit(candidates, weights)
            plan = distribution.choose(candidates, returns)
        statistics.append(_statistics(returns, weights))
    assert plan is not None, config
    return plan, statistics


def shifted(plans: Tensor, first: PlanDistribution) -> Tensor:
    """Plans [B, H', A] one step later: without their first action, and filled up to H by actions that know nothing."""
    unknown = first.mode
    return torch.cat([plans[:, 1:], unknown], 1)[:, : unknown.shape[1]]


def _statistics(returns: Tensor, weights: Tensor) -> IterationStats:
    std, mean = torch.std_mean(returns, 1, correction=0)
    return IterationStats(returns.max(1).values, mean, std, 1.0 / weights.square().sum(1))
