"""Sigmas beyond their range come back, and what a clamp returns is what torch's returns."""

import pytest
import torch

from wm_rllib.models.bounds import clamp_inwards

VALUES = torch.tensor([-9.0, -3.0, -1.0, 1.0, 4.0])


def test_what_is_returned_is_clamped():
    assert torch.equal(clamp_inwards(VALUES, -3.0, 1.0), VALUES.clamp(-3.0, 1.0))


@pytest.mark.parametrize(
    ("sign", "expected"), [(1.0, [0.0, 1.0, 1.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, -1.0, -1.0, 0.0])]
)
def test_gradients_lead_inwards_alone(sign: float, expected: list[float]):
    values = VALUES.clone().requires_grad_()
    (sign * clamp_inwards(values, -3.0, 1.0)).sum().backward()
    assert values.grad is not None and values.grad.tolist() == expected


@pytest.mark.parametrize(("start", "true"), [(-8.0, 0.0), (-8.0, -2.0), (5.0, -1.0), (-1.0, -5.0), (0.0, 3.0)])
def test_a_sigma_is_fitted_from_beyond_its_range(start: float, true: float):
    targets = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * torch.tensor(true).exp()
    raw = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([raw], 0.1)
    for _ in range(2000):
        log_sigma = clamp_inwards(raw, -3.0, 1.0)
        loss = -torch.distributions.Normal(0.0, log_sigma.exp()).log_prob(targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(clamp_inwards(raw, -3.0, 1.0)) == pytest.approx(min(max(true, -3.0), 1.0), abs=0.05)
