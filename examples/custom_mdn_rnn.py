"""An M of your own: name the class in the config, and learners and dreamers build it.

    python examples/custom_mdn_rnn.py

In YAML the same is ``world_model.mdn_rnn.class: examples.custom_mdn_rnn:BoundedRewardMDNRNN``.
"""

import dataclasses

import ray
from torch import Tensor

from wm_rllib import WorldModelPPOConfig
from wm_rllib.models import MDNRNN
from wm_rllib.models.outcome import Outcome

LEAST, MOST = 0.0, 1.0
"""What a step of CartPole-v1 pays."""


class BoundedRewardMDNRNN(MDNRNN):
    """Promises no reward that the environment does not pay: beyond what M knows, a dream can be too good to be true."""

    def decode_outcome(self, out: Tensor) -> Outcome:
        """As M's, with rewards [...] of any step, the last one too, within bounds."""
        outcome = super().decode_outcome(out)
        last = outcome.last_reward
        return dataclasses.replace(
            outcome,
            reward=outcome.reward.clamp(LEAST, MOST),
            last_reward=None if last is None else last.clamp(LEAST, MOST),
        )


def main() -> None:
    """Trains CartPole for a few iterations with it."""
    ray.init(address="local", include_dashboard=False)
    config = (
        WorldModelPPOConfig()
        .environment("CartPole-v1")
        .world_model(mdn_rnn_class=BoundedRewardMDNRNN, pretrain_epochs=100)
        .dreamers(imagination_ratio=0.9)
    )
    algo = config.build_algo()
    for _ in range(5):
        result = algo.train()
        print(result["phase"], result["num_env_steps_sampled_lifetime"], result["mdn"])
    algo.stop()


if __name__ == "__main__":
    main()
