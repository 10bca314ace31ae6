"""C's module: the critic's units change no value, and C hardly looks at h at first."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from test_merge import config_of, make_learner
from torch import Tensor

from wm_rllib.rl_modules.policy_module import UNITS_RATE, WorldModelPPOModule, moved_units

LATENT, FEATURES = 3, 11


def build(module_class: type = WorldModelPPOModule, *, inference_only: bool = False, **model: Any) -> Any:
    """A module over features of 3 latents and 8 hidden values; the same first weights for both classes."""
    torch.manual_seed(0)
    config = DefaultModelConfig(**{"fcnet_hiddens": [16], "vf_share_layers": False, **model})
    return RLModuleSpec(
        module_class=module_class,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32),
        action_space=gym.spaces.Discrete(2),
        inference_only=inference_only,
        model_config={**vars(config), "latent_dim": LATENT},
    ).build()


def values_of(module: Any, features: Tensor) -> Tensor:
    with torch.no_grad():
        return module.compute_values({Columns.OBS: features})


@pytest.mark.parametrize("shared", [False, True])
def test_new_units_keep_every_value(shared: bool):
    module, features = build(vf_share_layers=shared), torch.randn(50, FEATURES)
    before = values_of(module, features)
    assert before.std() > 0.01
    for mean, scale in ((-300.0, 120.0), (5.0, 0.5), (0.0, 1.0), (2e4, 1e3)):
        module.rescale_values(torch.tensor(mean), torch.tensor(scale))
        assert (module.value_mean.item(), module.value_scale.item()) == (mean, scale)
        torch.testing.assert_close(values_of(module, features), before, rtol=0, atol=1e-6 * (abs(mean) + scale) + 1e-4)


def test_the_network_itself_speaks_in_the_units():
    module, features = build(), torch.randn(50, FEATURES)
    before = values_of(module, features)
    module.rescale_values(torch.tensor(7.0), torch.tensor(4.0))
    with torch.no_grad():
        raw = DefaultPPOTorchRLModule.compute_values(module, {Columns.OBS: features})
    torch.testing.assert_close(raw, (before - 7.0) / 4.0, rtol=1e-5, atol=1e-5)


def test_without_new_units_values_are_the_networks_own():
    module, features = build(), torch.randn(50, FEATURES)
    with torch.no_grad():
        raw = DefaultPPOTorchRLModule.compute_values(module, {Columns.OBS: features})
    assert torch.equal(values_of(module, features), raw)


def test_units_move_a_fifth_of_the_way():
    mean, scale = moved_units(*map(torch.tensor, (10.0, 4.0, 20.0, 9.0)))
    assert (mean.item(), scale.item()) == (pytest.approx(12.0), pytest.approx(5.0))
    for _ in range(60):
        mean, scale = moved_units(mean, scale, torch.tensor(20.0), torch.tensor(9.0))
    assert (mean.item(), scale.item()) == (pytest.approx(20.0, rel=1e-4), pytest.approx(9.0, rel=1e-4))


@pytest.mark.parametrize(("target_mean", "floor"), [(-300.0, 3.0), (0.0, 1e-4)])
def test_constant_targets_do_not_make_the_units_vanish(target_mean: float, floor: float):
    _, scale = moved_units(*map(torch.tensor, (0.0, 1.0, target_mean, 0.0)))
    assert scale.item() == pytest.approx(1.0 + UNITS_RATE * (floor - 1.0))


def test_units_keep_their_dtype():
    moved = moved_units(torch.zeros(()), torch.ones(()), *torch.tensor([3.0, 2.0], dtype=torch.float64))
    assert {value.dtype for value in moved} == {torch.float32}


def first_layers(module: Any) -> list[Tensor]:
    """Weights on the features, of actor and critic."""
    return [p for p in module.parameters() if p.ndim == 2 and p.shape[1] == FEATURES]


@pytest.mark.parametrize("model", [{}, {"vf_share_layers": True}, {"use_lstm": True}], ids=str)
def test_columns_of_h_start_at_a_tenth_of_rllibs(model: dict[str, Any]):
    if "use_lstm" in model:  # its encoder tokenises first, without a layer of its own on the features
        assert build(**model).encoder is not None
        return
    ours, theirs = first_layers(build(fcnet_hiddens=[4096], **model)), FEATURES**-0.5
    assert len(ours) == (1 if "vf_share_layers" in model else 2)
    for weight in ours:
        # RLlib's are uniform within +- 1 / sqrt(features).
        assert weight[:, LATENT:].abs().max() <= 0.1 * theirs
        assert weight[:, LATENT:].std().item() == pytest.approx(0.1 * theirs / 3**0.5, rel=0.05)
        assert weight[:, :LATENT].std().item() == pytest.approx((2.0 / LATENT) ** 0.5, rel=0.05)


def test_hidden_layers_start_orthogonal_and_the_policy_uniform():
    module, features = build(fcnet_hiddens=[16, 16]), torch.randn(200, FEATURES)
    square = [p for p in module.parameters() if p.shape == (16, 16)]
    assert len(square) == 2
    for weight in square:
        torch.testing.assert_close(weight @ weight.t(), 2.0 * torch.eye(16), atol=1e-5, rtol=0)
    with torch.no_grad():
        logits = module.forward_exploration({Columns.OBS: features})[Columns.ACTION_DIST_INPUTS]
    assert torch.softmax(logits, -1).sub(0.5).abs().max() < 0.02


def test_what_acts_has_no_critic():
    acting = build(inference_only=True)
    assert set(build().get_state(inference_only=True)) == set(acting.get_state())
    assert not any(name.startswith(("vf", "value_")) for name in acting.get_state())


def columns_with(targets: Tensor) -> dict[str, Tensor]:
    return {Postprocessing.VALUE_TARGETS: targets}


def test_all_learners_take_the_units_of_all_targets(monkeypatch: pytest.MonkeyPatch):
    learners = [make_learner(config_of()) for _ in range(2)]
    targets = [-100.0 + 3.0 * torch.randn(40), 50.0 * torch.randn(7)]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    moments: list[Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: moments.append(tensor.clone()))
    for learner, own in zip(learners, targets, strict=True):
        learner._agree_on_targets([columns_with(own[:3]), columns_with(own[3:])])
        learner.module[DEFAULT_MODULE_ID].unwrapped().rescale_values(torch.tensor(0.0), torch.tensor(1.0))
    total = moments[0] + moments[1]
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.copy_(total))
    for learner, own in zip(learners, targets, strict=True):
        learner._agree_on_targets([columns_with(own[:3]), columns_with(own[3:])])
    everything = torch.cat(targets).double()
    expected = moved_units(torch.zeros(()), torch.ones(()), everything.mean(), everything.std(correction=0))
    for learner in learners:
        module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        torch.testing.assert_close((module.value_mean, module.value_scale), expected, rtol=1e-5, atol=1e-5)
