"""What a transition brings, the errors of its prediction, and an ensemble of predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from wm_rllib.models.ensemble import Members


@dataclass(frozen=True)
class Outcome:
    """What a transition brings.

    A last reward is often of another size than those before it (LunarLander: -100 or +100 against 1 or so), so there
    may be a prediction for each case.

    Attributes:
        reward: [...] in the environment's units, if the episode goes on.
        termination_logit: [...].
        last_reward: [...] if it terminates; None: as `reward`.
    """

    reward: Tensor
    termination_logit: Tensor
    last_reward: Tensor | None = None

    def reward_if(self, terminated: Tensor) -> Tensor:
        """The reward [...], given whether the episode terminates [...]."""
        return self.reward if self.last_reward is None else torch.where(terminated, self.last_reward, self.reward)

    def expected_reward(self) -> Tensor:
        """The reward [...], weighted by the probability of either case."""
        if self.last_reward is None:
            return self.reward
        return torch.lerp(self.reward, self.last_reward, torch.sigmoid(self.termination_logit))

    def reward_spread(self) -> Tensor:
        """Standard deviation of the expected reward over the first axis, which holds an ensemble's members."""
        return self.expected_reward().std(0, correction=0)


@dataclass(frozen=True)
class Truth:
    """What N transitions brought.

    Attributes:
        reward: [N] in the environment's units.
        terminated: [N] bool.
        unit: [N], what a reward's error is measured in.
    """

    reward: Tensor
    terminated: Tensor
    unit: Tensor

    def reward_error(self, outcome: Outcome) -> Tensor:
        """Half squared error [..., N] of the reward, in its unit, given whether the episode ended."""
        return 0.5 * ((outcome.reward_if(self.terminated) - self.reward) / self.unit).square()

    def termination_error(self, outcome: Outcome, positive_weight: float = 1.0) -> Tensor:
        """Cross-entropy [..., N] of the termination, in nats; terminations count `positive_weight` times.

        What is weighted is the cross-entropy of a logit that is higher by the weight's logarithm (King and Zeng 2001,
        "Logistic regression in rare events data"), so that the smallest error is that of the true probability, with
        any weight: rare ends get large gradients, and dreams do not end more often for it.
        """
        logit = outcome.termination_logit + math.log(positive_weight)
        target = self.terminated.to(logit.dtype).expand_as(logit)
        weight = logit.new_full((), positive_weight)
        return functional.binary_cross_entropy_with_logits(logit, target, pos_weight=weight, reduction="none")


class OutcomeEnsemble(Members):
    """Members that each predict a transition's outcome from (z_t, a_t).

    Where few outcomes have been seen they disagree: on whether a soft landing, after twenty hard ones, is a crash. The
    mean says that it may be, and a policy that believes it never finds out.

    Args:
        input_dim: Z + A.
        size: E.
        hidden_dim: Units of each member's hidden layer.
    """

    def __init__(self, input_dim: int, size: int, hidden_dim: int = 128):
        super().__init__(input_dim, 3, size, hidden_dim)

    def loss(self, members: Outcome, truth: Truth, positive_weight: float = 1.0) -> Tensor:
        """Reward's and termination's errors, summed over the members, mean over [N]; in training updates `usual`.

        Args:
            members: The members' predictions, all [E, N].
            truth: What happened.
            positive_weight: See `Truth.termination_error`.
        """
        self.record_usual(members.reward_spread().detach())
        return self.mean_of_shown(truth.reward_error(members) + truth.termination_error(members, positive_weight))
