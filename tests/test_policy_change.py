"""How far an update moved the policy, held to torch's own KL, and what the learner reports of it."""

from __future__ import annotations

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from test_merge import SPACES, config_of, imagined_block, make_learner, real_episodes

from wm_rllib.learners.policy_change import CLIP_FRACTION, POLICY_KL, policy_change

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.mark.parametrize(("distribution", "shape"), [(TorchCategorical, 3), (TorchDiagGaussian, 4)])
def test_it_is_the_kl_and_the_share_beyond_the_clip(distribution, shape: int):
    torch.manual_seed(0)
    rows = 200_000
    old, new = (0.15 * torch.randn(shape).expand(rows, shape) for _ in range(2))
    before = distribution.from_logits(old)
    actions = before.sample()
    batch = {Columns.ACTIONS: actions, Columns.ACTION_LOGP: before.logp(actions)}
    found = policy_change(distribution, new, batch, clip_param=0.2)
    expected = before.kl(distribution.from_logits(new)).mean()
    assert float(expected) > 0.003
    torch.testing.assert_close(found[POLICY_KL], expected, rtol=0.05, atol=0.002)
    ratio = torch.exp(distribution.from_logits(new).logp(actions) - before.logp(actions))
    assert float(found[CLIP_FRACTION]) == float(((ratio < 0.8) | (ratio > 1.2)).float().mean())
    same = policy_change(distribution, old, batch, clip_param=0.2)
    assert float(same[CLIP_FRACTION]) == 0.0 and float(same[POLICY_KL]) == pytest.approx(0.0, abs=1e-6)


def test_an_update_reports_it():
    learner = make_learner(config_of(lr=0.05))
    space = SPACES["discrete"]
    result = learner.update(
        episodes=real_episodes(space),
        imagined=[[[imagined_block(space, 6, 5)]]],
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1},
        num_epochs=6,
        minibatch_size=31,
    )
    reported = {name: float(result[DEFAULT_MODULE_ID][name].peek()) for name in (POLICY_KL, CLIP_FRACTION)}
    assert reported[POLICY_KL] > 0.0 and 0.0 <= reported[CLIP_FRACTION] <= 1.0
