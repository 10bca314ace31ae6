"""A Gaussian policy whose actions are clipped to [-1, 1] on their way to the environment: means and likelihoods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


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


def clipped_log_likelihood(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-likelihood of what an action does, elementwise: those beyond a bound are one action, and at the bound.

    A density inside, a probability at the bounds. By the Gaussian's own density, actions that are the same to the
    environment count as different ones: PPO then follows noise, and where the mean lies beyond a bound nothing keeps
    the Gaussian from narrowing there until likelihood ratios overflow. Fujita and Maeda (2018), Clipped action policy
    gradient, for the estimate that has the same mean and less variance.

    Args:
        action: As drawn, not clipped.
        mean: Of the Gaussian.
        log_std: Logarithm of its standard deviation.
    """
    precision = torch.exp(-log_std)
    inside = -0.5 * ((action - mean) * precision).square() - log_std - HALF_LOG_TWO_PI
    below = torch.special.log_ndtr((-1.0 - mean) * precision)
    above = torch.special.log_ndtr((mean - 1.0) * precision)
    return torch.where(action <= -1.0, below, torch.where(action >= 1.0, above, inside))


def clipped_divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL of a clipped Gaussian from another one, elementwise: over both bounds, each one event, and what lies between.

    Two that lie beyond the same bound are the same, however far apart.

    Args:
        mean: Of the Gaussian.
        std: Its standard deviation, above 0.
        other_mean: Of the other one.
        other_std: Its standard deviation, above 0.
    """
    mu, sigma, nu, tau = (x.double() for x in (mean, std, other_mean, other_std))
    low, high = (-1.0 - mu) / sigma, (1.0 - mu) / sigma
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(-high)
    other_below, other_above = torch.special.log_ndtr((-1.0 - nu) / tau), torch.special.log_ndtr((nu - 1.0) / tau)
    at_bounds = below.exp() * (below - other_below) + above.exp() * (above - other_above)
    # Moments of x - mu between the bounds, of order 0, 1 and 2.
    zeroth = (1.0 - below.exp() - above.exp()).clamp(min=0.0)
    first = sigma * (_density(low) - _density(high))
    second = sigma.square() * (zeroth + low * _density(low) - high * _density(high))
    shift = mu - nu
    from_other = (second + 2.0 * shift * first + shift.square() * zeroth) / (2.0 * tau.square())
    inside = zeroth * (tau.log() - sigma.log()) - second / (2.0 * sigma.square()) + from_other
    return (at_bounds + inside).clamp(min=0.0).to(mean.dtype)
