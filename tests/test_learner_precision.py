"""`world_model.training.precision` in the learner: what bfloat16 reaches, and what stays float32."""

import logging

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from test_merge import SPACES, config_of, fit, imagined_block, make_learner, policy_state, real_episodes
from torch import nn

from wm_rllib.models.precision import Precision
from wm_rllib.settings.settings import SettingError, check_value
from wm_rllib.settings.table import BY_PATH

pytestmark = pytest.mark.usefixtures("no_ray")


def trained(precision, space="discrete"):
    """A learner after a fit and a merged update."""
    learner = make_learner(config_of(space, precision=precision))
    torch.manual_seed(5)
    if space == "discrete":
        fit(learner)
    merged_update(learner, space)
    return learner


def merged_update(learner, space="discrete"):
    learner.update(
        episodes=real_episodes(SPACES[space]),
        imagined=[[[imagined_block(SPACES[space], 6, 5)]]],
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1},
        minibatch_size=10,
        num_epochs=1,
    )


def weights(learner):
    model = {name: tensor.numpy() for name, tensor in learner.world_model.state_dict().items()}
    return {name: np.asarray(value) for name, value in {**model, **policy_state(learner)}.items()}


def test_auto_is_bfloat16_where_a_gpu_has_it(monkeypatch):
    for has_it in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert Precision("auto", "cuda", pays=True).is_reduced is has_it
        assert not Precision("auto", "cuda", pays=False).is_reduced
    names = [Precision(setting, "cpu", pays=True).name for setting in ("auto", "float32", "bfloat16")]
    assert names == ["float32", "float32", "bfloat16"]
    assert Precision("float32", "cuda", pays=True).name == "float32"


def test_the_setting_is_checked():
    setting = BY_PATH["world_model.training.precision"]
    assert check_value(setting, "bfloat16") == "bfloat16"
    with pytest.raises(SettingError, match="precision"):
        check_value(setting, "float16")


def test_auto_on_a_cpu_is_float32_to_the_last_bit(monkeypatch):
    auto, exact = weights(trained("auto")), weights(trained("float32"))
    assert all(np.array_equal(auto[name], exact[name]) for name in exact)
    monkeypatch.setattr(torch, "autocast", None)  # nothing of it is entered but where it is switched off
    assert Precision("float32", "cpu", pays=True).in_float32(exact) is exact


@pytest.mark.parametrize("space", SPACES)
def test_bfloat16_trains_to_about_the_same_weights(space):
    start = weights(make_learner(config_of(space)))
    exact, rounded = weights(trained("float32", space)), weights(trained("bfloat16", space))
    moved = apart = 0.0
    for name in exact:
        assert rounded[name].dtype == exact[name].dtype and np.isfinite(rounded[name]).all(), name
        if exact[name].dtype == bool:
            continue
        moved += np.square(exact[name] - start[name], dtype=np.float64).sum()
        apart += np.square(exact[name] - rounded[name], dtype=np.float64).sum()
    assert 0.0 < apart < 0.1 * moved


def test_networks_multiply_in_bfloat16_and_losses_see_float32(monkeypatch):
    learner = make_learner(config_of(precision="bfloat16"))
    multiplied, outputs, values = set(), [], []

    def see(module, _, out):
        multiplied.add(out.dtype)

    for module in (*learner.world_model.modules(), *learner.module[DEFAULT_MODULE_ID].modules()):
        if isinstance(module, nn.Linear):
            module.register_forward_hook(see)
    policy, compute_losses = learner.module[DEFAULT_MODULE_ID].unwrapped(), learner.compute_losses
    compute_values = policy.compute_values

    def watched(*, fwd_out, batch):
        losses = compute_losses(fwd_out=fwd_out, batch=batch)
        outputs.extend(value for out in fwd_out.values() for value in out.values())
        outputs.extend(losses.values())
        return losses

    def valued(*args, **kwargs):
        values.append(compute_values(*args, **kwargs))
        return values[-1]

    monkeypatch.setattr(learner, "compute_losses", watched)
    monkeypatch.setattr(policy, "compute_values", valued)
    fit(learner)
    assert torch.bfloat16 in multiplied
    multiplied.clear()
    merged_update(learner)
    assert torch.bfloat16 in multiplied
    assert {value.dtype for value in outputs} == {torch.float32}
    assert values and {value.dtype for value in values} == {torch.float32}


def test_probabilities_of_unchanged_weights_stay_near():
    """The first minibatch's ratios are 1 but for rounding of the network's outputs: far less than PPO's clipping."""
    features, logits = torch.randn(200, 11), {}
    for precision in ("float32", "bfloat16"):
        learner = make_learner(config_of(precision=precision))
        with torch.no_grad(), learner._precision.autocast():
            out = learner._precision.in_float32(
                learner.module.forward_train({DEFAULT_MODULE_ID: {Columns.OBS: features}})
            )
        logits[precision] = out[DEFAULT_MODULE_ID][Columns.ACTION_DIST_INPUTS].log_softmax(-1)
    ratio = (logits["bfloat16"] - logits["float32"]).exp()
    assert 0.0 < (ratio - 1.0).abs().max() < 0.01


def test_latents_are_computed_in_float32_whatever_v_is_fitted_in():
    latents = {}
    frames = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    for precision in ("float32", "bfloat16"):
        ref = make_learner(config_of(precision=precision)).put_latents(frames)
        latents[precision] = ref.value
        assert latents[precision].dtype == np.float32
    assert np.array_equal(latents["float32"], latents["bfloat16"])


def test_the_choice_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(
        logging.getLogger("wm_rllib.learners.learner"), "info", lambda text, *args: told.append(text % args)
    )
    trained("bfloat16")
    assert told == ["fits and merged updates compute in bfloat16, V on images in bfloat16, on cpu"]
