"""The ensemble beside M's head: batched members, their spread, and what is usual."""

from __future__ import annotations

import numpy as np
import torch
from tiny_models import LATENT_DIM, mdn_config
from torch import Tensor
from torch.nn import functional

from wm_rllib.models import MDNRNN
from wm_rllib.models.ensemble import SHOWN, USUAL_QUANTILE, USUAL_RATE, Ensemble

INPUTS = LATENT_DIM + 2


def ensemble(size: int = 4) -> Ensemble:
    return Ensemble(INPUTS, LATENT_DIM, size, hidden_dim=8)


def one_by_one(members: Ensemble, inputs: Tensor) -> Tensor:
    """Each member's network by itself, [E, N, Z]."""
    weights, biases = members.hidden.weight.split(8), members.hidden.bias.split(8)
    return torch.stack(
        [
            functional.silu(functional.linear(inputs, weights[e], biases[e])) @ members.weight[e] + members.bias[e]
            for e in range(members.size)
        ]
    )


def spread_by_hand(predictions: Tensor) -> np.ndarray:
    return np.sqrt(predictions.detach().numpy().std(axis=0).__pow__(2).mean(axis=-1))


def test_batched_members_equal_a_loop_over_them():
    members, inputs = ensemble(), torch.randn(9, INPUTS)
    with torch.no_grad():
        members.bias.normal_()
    torch.testing.assert_close(members.predict(inputs), one_by_one(members, inputs), rtol=1e-5, atol=1e-6)


def test_members_that_are_equal_agree():
    members = ensemble()
    with torch.no_grad():
        members.hidden.weight.copy_(members.hidden.weight[:8].repeat(4, 1))
        members.hidden.bias.copy_(members.hidden.bias[:8].repeat(4))
        members.weight.copy_(members.weight[:1].expand_as(members.weight))
    assert members.disagreement(torch.randn(20, INPUTS)).abs().max() < 1e-6


def test_disagreement_by_hand():
    members, inputs = ensemble(), torch.randn(9, INPUTS)
    members.usual.fill_(0.25)
    expected = spread_by_hand(one_by_one(members, inputs)) / 0.25
    np.testing.assert_allclose(members.disagreement(inputs).detach().numpy(), expected, rtol=1e-4)
    assert expected.min() > 0


def test_usual_is_a_running_quantile_of_training_batches():
    members, usual = ensemble().train(), 1.0
    for seed in range(3):
        inputs = torch.randn(50, INPUTS, generator=torch.Generator().manual_seed(seed))
        quantile = np.quantile(spread_by_hand(members.predict(inputs)), USUAL_QUANTILE)
        usual += USUAL_RATE * (quantile - usual)
        members.loss(inputs, torch.zeros(50, LATENT_DIM))
        assert abs(members.usual.item() - usual) < 1e-5
    members.eval().loss(inputs, torch.zeros(50, LATENT_DIM))
    members.train().loss(inputs[:0], torch.zeros(0, LATENT_DIM))
    assert abs(members.usual.item() - usual) < 1e-5


def test_loss_shows_each_member_its_own_half():
    members, inputs, change = ensemble(2), torch.randn(400, INPUTS), torch.randn(400, LATENT_DIM)
    torch.manual_seed(3)
    loss = members.loss(inputs, change)
    torch.manual_seed(3)
    shown = torch.rand(2, 400) < SHOWN
    assert 0.4 < shown.float().mean() < 0.6 and not torch.equal(shown[0], shown[1])
    error = 0.5 * (one_by_one(members, inputs) - change).square().sum(-1)
    torch.testing.assert_close(loss, (error * shown).sum() / 400, rtol=1e-4, atol=1e-5)


def trained() -> tuple[MDNRNN, Tensor]:
    """M after some hundred steps on transitions near the origin, and the z of those."""
    mdn = MDNRNN(mdn_config(ensemble_size=3)).train()
    optimizer = torch.optim.Adam(mdn.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    z = 0.5 * torch.randn(64, 9, LATENT_DIM, generator=generator)
    for t in range(8):
        z[:, t + 1] = 0.9 * z[:, t] + 0.1 * torch.sin(3.0 * z[:, t].roll(1, -1))
    rest = torch.zeros(64, 8), torch.zeros(64, 8, dtype=torch.bool), torch.ones(64, 8, dtype=torch.bool)
    for _ in range(200):
        loss = mdn.losses(z, torch.zeros(64, 8, 2), *rest).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return mdn.eval(), z[:, :-1].flatten(0, 1)


def test_disagreement_is_usual_on_the_data_and_high_far_away():
    mdn, z = trained()
    action = torch.zeros(len(z), 2)
    with torch.no_grad():
        near, far = mdn.disagreement(z, action), mdn.disagreement(10.0 * torch.sign(z), action)
    assert 0.85 < (near < 1.0).float().mean() < 0.995  # 1 is about the 0.95 quantile
    assert far.median() > 5.0
    assert torch.quantile(far, 0.1) > torch.quantile(near, 0.9)


def test_what_is_usual_travels_with_the_weights():
    mdn = MDNRNN(mdn_config(ensemble_size=3))
    assert mdn.ensemble is not None
    mdn.ensemble.usual.fill_(0.125)
    copied = MDNRNN(mdn_config(ensemble_size=3))
    copied.load_state_dict(mdn.state_dict())
    z, action = torch.randn(5, LATENT_DIM), torch.randn(5, 2)
    assert torch.equal(copied.disagreement(z, action), mdn.disagreement(z, action))


def test_without_an_ensemble_nothing_is_unusual():
    mdn = MDNRNN(mdn_config())
    assert mdn.ensemble is None
    assert not mdn.disagreement(torch.randn(5, LATENT_DIM), torch.randn(5, 2)).any()
    assert not any("ensemble" in name for name in mdn.state_dict())
