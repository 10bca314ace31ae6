"""Stages that wait instead of computing: what a schedule costs shows on any machine, however many cores it has."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import gymnasium as gym
import numpy as np

from wm_rllib.actors.failures import Failure
from wm_rllib.algorithm import WorldModelPPO
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.dreamers.dreamer import Dreamed, Dreamer, DreamRequest, NoWeights
from wm_rllib.learners.learner import WorldModelPPOLearner

STEPS = 16
"""Real steps of an iteration, of each env runner."""
EPISODE = 50


class WaitingEnv(gym.Env[np.ndarray, np.int64]):
    """Three numbers, two actions, and `seconds` a step.

    Args:
        config: `seconds`.
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: dict[str, Any]):
        self._seconds = float(config["seconds"])
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """RLlib's and Gymnasium's."""
        super().reset(seed=seed)
        self._t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Waits, and pays for action 1."""
        time.sleep(self._seconds)
        self._t += 1
        return self._observation(), float(action), False, self._t == EPISODE, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Waits:
    """Seconds that each stage of an iteration waits; those of dreams and updates are shared by the rounds."""

    sample: float
    dream: float
    fit: float
    update: float

    @property
    def total(self) -> float:
        """One after the other."""
        return self.sample + self.dream + self.fit + self.update

    @property
    def busiest(self) -> float:
        """Of one process: fit and update share the learner."""
        return max(self.sample, self.dream, self.fit + self.update)


def waiting_config(waits: Waits, *, rounds: int, overlap: bool) -> WorldModelPPOConfig:
    """A config of tiny networks whose stages take as long as `waits` says: 2 env runners, 2 dreamers, 1 learner."""

    class WaitingDreamer(Dreamer):
        def dream(self, request: DreamRequest) -> Dreamed | Failure | NoWeights:
            time.sleep(waits.dream / rounds)
            result = super().dream(request)
            if isinstance(result, Dreamed):
                return dataclasses.replace(result, seconds=result.seconds + waits.dream / rounds)
            return result

    class WaitingLearner(WorldModelPPOLearner):
        def update(self, *args: Any, **kwargs: Any) -> Any:
            is_fit = kwargs["training_data"].episodes_refs is None
            # Not the pretraining, which is no part of a mixed iteration.
            time.sleep((waits.fit if kwargs["vae_lr_scale"] < 1.0 else 0.0) if is_fit else waits.update / rounds)
            return super().update(*args, **kwargs)

    class WaitingPPO(WorldModelPPO):
        dreamer_class = WaitingDreamer

    config = WorldModelPPOConfig(algo_class=WaitingPPO)
    config.policy_hidden_dims = [8]
    config.device = "cpu"
    return (
        config.environment(WaitingEnv, env_config={"seconds": waits.sample / STEPS})
        .env_runners(num_env_runners=2, num_envs_per_env_runner=1, num_cpus_per_env_runner=0.1)
        .world_model(
            latent_dim=2,
            vae_hidden_dims=[8],
            mdn_hidden_dim=8,
            mdn_head_hidden_dims=[8],
            num_mixtures=2,
            sequence_length=8,
            sequence_batch_size=4,
            updates_per_step=0.1,
            pretrain_epochs=1,
            random_collection_steps=2 * STEPS,
        )
        .dreamers(
            num_dreamers=2,
            num_cpus_per_dreamer=0.1,
            num_cpus_for_replay=0.1,
            imagination_ratio=0.5,
            imagination_horizon=5,
            num_dream_rounds=rounds,
            burn_in=4,
            overlap=overlap,
            max_dreams_in_flight=rounds,
        )
        .training(train_batch_size_per_learner=2 * STEPS, minibatch_size=64, num_epochs=1, learner_class=WaitingLearner)
        .learners(num_learners=1, num_cpus_per_learner=0.1)
        .debugging(seed=0, log_level="ERROR")
    )
