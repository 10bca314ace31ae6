"""Terminations that count more than once: larger gradients of rare ends, and the same probabilities. No Ray."""

from __future__ import annotations

import math

import pytest
import torch
from test_unseen_ends import transitions
from tiny_models import mdn_config
from torch.nn import functional

from wm_rllib.models import MDNRNN
from wm_rllib.models.outcome import Outcome, Truth

NUM_STEPS, NUM_ENDS = 200, 3


def truth() -> Truth:
    return Truth(torch.zeros(NUM_STEPS), torch.arange(NUM_STEPS) < NUM_ENDS, torch.ones(NUM_STEPS))


def error(logit: torch.Tensor, weight: float) -> torch.Tensor:
    return truth().termination_error(Outcome(torch.zeros(NUM_STEPS), logit.expand(NUM_STEPS)), weight).sum()


@pytest.mark.parametrize("weight", [1.0, 10.0, 300.0])
def test_the_smallest_error_is_that_of_the_share_of_ends(weight: float):
    logit = torch.logit(torch.tensor(NUM_ENDS / NUM_STEPS, dtype=torch.float64)).requires_grad_()
    error(logit, weight).backward()
    assert logit.grad is not None and abs(logit.grad.item()) < 1e-5
    for other in (-0.5, 0.5):
        assert error(logit.detach() + other, weight) > error(logit.detach(), weight)


def test_errors_by_hand():
    logit = torch.tensor(-2.0)
    end = -10.0 * math.log(1 / (1 + math.exp(2.0) / 10.0))
    none = math.log(1 + 10.0 * math.exp(-2.0))
    expected = NUM_ENDS * end + (NUM_STEPS - NUM_ENDS) * none
    torch.testing.assert_close(error(logit, 10.0), torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_weight_changes_what_is_learned_from_and_not_what_is_reported():
    batch, totals, reported = transitions(), [], []
    for weight in (1.0, 10.0):
        torch.manual_seed(0)
        mdn = MDNRNN(mdn_config(termination_positive_weight=weight, termination_loss_coeff=5.0)).eval()
        losses = mdn.losses(*batch)
        totals.append(losses.total)
        reported.append(losses.termination)
    torch.testing.assert_close(reported[0], reported[1], rtol=0, atol=0)
    z, action, reward, terminated, _ = batch
    unit = torch.ones_like(reward)
    outcome = mdn.outcome(z[:, :-1], action, z[:, 1:])
    happened = Truth(reward, terminated, unit)
    more = (happened.termination_error(outcome, 10.0) - happened.termination_error(outcome)).mean()
    torch.testing.assert_close(totals[1] - totals[0], 5.0 * more)


def test_shuffled_transitions_are_weighed_as_real_ones_without_an_end():
    batch, totals = transitions(), []
    for coeff in (0.0, 0.3):
        torch.manual_seed(1)
        settings = {"shuffled_coeff": coeff, "termination_loss_coeff": 5.0, "termination_positive_weight": 10.0}
        mdn = MDNRNN(mdn_config(**settings)).train()
        last = mdn.outcome_head[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, 0.7)
        totals.append(mdn.losses(*batch).total)
    no_end = functional.softplus(torch.tensor(0.7 + math.log(10.0)))
    torch.testing.assert_close(totals[1] - totals[0], 5.0 * 0.3 * no_end)
