"""Training under bfloat16 autocast: losses are float32, finite, and near those of float32."""

import math
from contextlib import nullcontext

import pytest
import torch
from tiny_models import mdn_config, sequences, vae_config, world_model
from torch import nn

from wm_rllib.models.conv_vae import ConvolutionalVAE
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.mixture import mixture_nll


def autocast(precision):
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def scalars(losses):
    return {name: value for name, value in vars(losses).items() if value is not None}


def both(compute, network):
    """Losses and gradients in float32 and under autocast, with the same random numbers."""
    results = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(1)
        network.zero_grad()
        with autocast(precision):
            losses = compute()
        sum(part.total for part in losses).backward()
        grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append(([scalars(part) for part in losses], grads))
    return results


def assert_near(results, tolerance=0.05):
    (exact, exact_grads), (rounded, rounded_grads) = results
    for one, other in zip(exact, rounded, strict=True):
        for name, value in one.items():
            assert other[name].dtype == torch.float32, name
            assert torch.isfinite(other[name]), name
            assert abs(other[name] - value) <= tolerance * max(1.0, abs(value)), name
    assert len(exact_grads) == len(rounded_grads)
    assert all(grad.dtype == torch.float32 and torch.isfinite(grad).all() for grad in rounded_grads)
    exact_all, rounded_all = (torch.cat([grad.flatten() for grad in grads]) for grads in (exact_grads, rounded_grads))
    assert nn.functional.cosine_similarity(exact_all, rounded_all, dim=0) > 0.98


@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
def test_v_and_m_on_sequences(mixture):
    torch.manual_seed(0)
    model = world_model(mdn={"mixture": mixture, "ensemble_size": 3, "shuffled_coeff": 0.1, "input_noise": 0.1})
    model.mdn_rnn.grow_change_scale(torch.full((3,), 0.03))
    model.mdn_rnn.set_normalisation(*(torch.tensor(value) for value in (-50.0, 30.0, 100.0, 0.01)))
    model.train()
    batch = sequences([8, 5, 8, 3], 8)
    assert_near(both(lambda: model.losses(batch), model))


def test_v_on_frames():
    torch.manual_seed(0)
    shape = (16, 16, 3)
    vae = ConvolutionalVAE(vae_config(observation_shape=shape, channels=(8, 16), latent_dim=4, change_weight=3.0))
    vae.set_normalisation(torch.full(shape, 127.0), torch.full(shape, 60.0))
    frames = torch.randint(0, 256, (6, 2, *shape), dtype=torch.uint8)
    assert_near(both(lambda: [vae.frame_losses(frames)], vae))
    with autocast("bfloat16"):
        assert vae.posterior(frames[:, 1]).mean.dtype == torch.float32


def test_the_finest_sigma_keeps_its_digits():
    """A sigma of exp(-6) and a target 1 sigma away: bfloat16 could not even tell the target from the mean."""
    torch.manual_seed(0)
    mdn_rnn = MDNRNN(mdn_config(num_mixtures=1))
    out = torch.cat([torch.zeros(1, 1 + 3), torch.full((1, 3), -6.0)], -1)
    z = torch.full((1, 3), 2.0)
    target = z + torch.tensor(-6.0).exp()
    expected = mixture_nll(mdn_rnn.decode_mixture(out, z), target)
    with autocast("bfloat16"):
        got = mixture_nll(mdn_rnn.decode_mixture(out.bfloat16(), z), target)
    torch.testing.assert_close(got, expected)
    assert float(got) == pytest.approx(3 * (0.5 - 6.0 + 0.5 * math.log(2 * math.pi)), abs=1e-3)


def test_m_is_fitted_to_latents_in_float32():
    model = world_model()
    seen = []
    model.latent_losses = lambda z, _: seen.append(z)
    for precision in ("float32", "bfloat16"):
        with autocast(precision):
            model.losses(sequences([4, 4], 4))
    assert torch.equal(*seen)
