"""`dreamers.precision`: what bfloat16 rounds in a dream, what it leaves alone, and that the setting gets there."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from test_fused_dream import Overridden, controller_for, starts
from tiny import tiny_config
from tiny_models import LATENT_DIM, world_model
from torch import nn

from wm_rllib.models.dreaming import Dream, draw_dream_noise, dream
from wm_rllib.models.stack import Stack, affine
from wm_rllib.models.world_model import WorldModel
from wm_rllib.settings.settings import SettingError, check_value
from wm_rllib.settings.table import BY_PATH

LANES = 1300  # enough for every hidden layer to be a large product
SIZES: dict[str, Any] = {"hidden_dim": 64, "head_hidden_dims": (128,)}
SPACE = gym.spaces.Discrete(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_product_has_three_digits_and_a_small_one_all(dtype: torch.dtype):
    for rows, inputs, outputs in ((256, 290, 1024), (4, 8, 16)):
        # A slice of wider rows, as dreams have it.
        x, weight, bias = torch.randn(rows, inputs + 9)[:, :inputs], torch.randn(outputs, inputs), torch.randn(outputs)
        result = affine(weight, bias, rows, dtype)(x)
        assert result.dtype == torch.float32
        exact = x.double() @ weight.double().T + bias.double()
        error = float((result - exact).pow(2).mean().sqrt() / exact.std())
        is_rounded = dtype == torch.bfloat16 and rows > 4
        assert (1e-3 < error < 1e-2) if is_rounded else error < 1e-6


def test_the_result_of_the_next_call_is_another():
    weight, bias = torch.randn(1024, 290), torch.randn(1024)
    multiply, (x, y) = affine(weight, bias, 256, torch.bfloat16), torch.randn(2, 256, 290)
    first = multiply(x).clone()
    assert not torch.equal(multiply(y), first)
    assert torch.equal(multiply(x), first)


def test_a_stack_in_bfloat16():
    layers, x = [nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)], torch.randn(400, 64)
    with torch.no_grad():
        exact = nn.Sequential(*layers)(x)
        result = Stack(layers, 400, dtype=torch.bfloat16)(x)
    assert 0 < float((result - exact).abs().max()) < 0.02


def dreams(model: WorldModel, horizon: int = 4) -> tuple[Dream, Dream]:
    """One in float32 and one in bfloat16, of the same noise."""
    controller = controller_for(model, SPACE)
    start_z, state = starts(LANES, LATENT_DIM, SIZES["hidden_dim"])
    noise = draw_dream_noise(model, controller, horizon, LANES)
    one, other = (
        dream(model, controller, start_z, state, horizon, 1.0, noise=noise, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    return one, other


def test_one_step_is_rounded_and_no_more():
    exact, rounded = dreams(world_model(mdn=SIZES), horizon=1)
    change = exact.bootstrap_features - exact.features[:, 0]
    error = (rounded.bootstrap_features - exact.bootstrap_features).abs()
    assert error.max() > 0
    # A few lanes draw another component or end otherwise, and are somewhere else.
    assert float(error.median() / change.abs().median()) < 0.01


def test_the_burn_in_is_rounded_and_padding_is_not():
    model = world_model(mdn=SIZES)
    z, actions = torch.randn(LANES, 16, LATENT_DIM), torch.randint(2, (LANES, 15))
    mask = torch.arange(15)[None] >= torch.randint(16, (LANES, 1))
    with torch.no_grad():
        (z_32, exact), (z_16, rounded) = (
            model.burn_in_latents(z, actions, mask, dtype) for dtype in (torch.float32, torch.bfloat16)
        )
    assert torch.equal(z_32, z_16)
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert 0 < float((one - other).abs().max()) < 0.02
        assert not other[~mask.any(1)].any()


def test_rewards_and_ends_are_those_of_the_steps_that_were_dreamed():
    model = world_model(mdn=SIZES)
    model.mdn_rnn.set_normalisation(*map(torch.tensor, (2.0, 3.0, 20.0, 0.01)))
    model.mdn_rnn.change_scale.fill_(0.01)  # so that the change of z has no digits in bfloat16
    _, rounded = dreams(model)
    z, after = rounded.features[:, :-1, :LATENT_DIM], rounded.features[:, 1:, :LATENT_DIM]
    goes_on = ~rounded.terminateds[:, :-1]
    actions = model.codec.encode(rounded.actions[:, :-1].flatten()).view(*z.shape[:2], -1)
    with torch.no_grad():
        outcome = model.mdn_rnn.outcome(z, actions, after)
    torch.testing.assert_close(rounded.rewards[:, :-1][goes_on], outcome.reward[goes_on], rtol=1e-3, atol=1e-3)


def test_an_m_of_ones_own_is_not_rounded():
    exact, rounded = dreams(world_model(mdn=SIZES, mdn_rnn_class=Overridden))
    assert all(torch.equal(getattr(exact, name), getattr(rounded, name)) for name in ("features", "rewards"))


@pytest.mark.parametrize(("setting", "dtype"), [({}, torch.float32), ({"dream_precision": "bfloat16"}, torch.bfloat16)])
def test_the_setting_reaches_the_dreams(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str], dtype: torch.dtype
):
    dreamt: list[torch.dtype] = []

    def recorded(*args: Any, **kwargs: Any) -> Dream:
        dreamt.append(kwargs["dtype"])
        return dream(*args, **kwargs)

    monkeypatch.setattr("wm_rllib.dreamers.dreamer.dream", recorded)
    algorithm = tiny_config().dreamers(**setting).build_algo()
    try:
        while not algorithm.train()["rows"]["imagined"]:
            pass
    finally:
        algorithm.stop()
    assert set(dreamt) == {dtype}


def test_the_setting_is_checked():
    with pytest.raises(SettingError, match=r"dreamers\.precision"):
        check_value(BY_PATH["dreamers.precision"], "float16")
