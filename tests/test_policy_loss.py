"""The light PPO loss, against RLlib's own: the same bits, in all that an update changes and reports."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from test_merge import SPACES, config_of, imagined_block, make_learner, policy_state, real_episodes

pytestmark = pytest.mark.usefixtures("no_ray")


def updated(config: Any, *, by_rllib: bool) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """C's weights and an update's metrics after three merged updates."""
    learner = make_learner(config.copy(copy_frozen=False))
    if by_rllib:
        learner.compute_loss_for_module = MethodType(PPOTorchLearner.compute_loss_for_module, learner)
    results: Any = {}
    for number in range(3):
        results = learner.update(
            episodes=real_episodes(config.action_space, seed=number),
            imagined=[[[imagined_block(config.action_space, 6, 5, seed=number)]]],
            stage_seed=number,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 100 * number},
            num_epochs=3,
            minibatch_size=31,
        )
    metrics = {name: float(stats.peek()) for name, stats in results[DEFAULT_MODULE_ID].items()}
    return policy_state(learner), metrics


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "settings",
    [
        {"use_kl_loss": False},
        {"use_kl_loss": False, "vf_clip_param": 0.3, "vf_loss_coeff": 0.7, "entropy_coeff": [[0, 0.1], [1000, 0.0]]},
        {"use_kl_loss": True},
        {"use_kl_loss": False, "use_critic": False},
    ],
    ids=str,
)
def test_updates_are_those_of_rllibs_loss_bit_for_bit(space: str, settings: dict[str, Any]):
    config = config_of(space, **settings)
    (ours, our_metrics), (theirs, their_metrics) = (updated(config, by_rllib=which) for which in (False, True))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert our_metrics == their_metrics
    assert {"policy_loss", "vf_loss", "vf_explained_var", "entropy"} <= set(our_metrics)
