"""`world_model.vae.compile`: V's gradient steps on frames by torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_host_reads import fit_v, image_config
from test_merge import make_learner
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_ray")


def fitted(*, compiled: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """V's weights before and after gradient steps."""
    config = image_config()
    config.vae_compile = compiled
    learner = make_learner(config)
    vae = learner.world_model.vae
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    torch.manual_seed(3)
    fit_v(learner, num_epochs=3)
    return before, vae.state_dict()


def test_compiled_steps_lead_to_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    compiled, original = [], torch.compile

    def watched(function, **options):
        compiled.append(function.__name__)
        return original(function, backend="aot_eager", **options)  # captured as for Inductor, which takes a minute

    monkeypatch.setattr(torch, "compile", watched)
    before, plain = fitted(compiled=False)
    assert not compiled
    _, fast = fitted(compiled=True)
    assert compiled == ["frame_losses"]
    for name, value in plain.items():
        np.testing.assert_allclose(fast[name], value, atol=2e-5, err_msg=name)
    assert max((plain[name].float() - value.float()).abs().max() for name, value in before.items()) > 1e-3
