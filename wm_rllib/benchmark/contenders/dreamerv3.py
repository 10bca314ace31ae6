"""RLlib's DreamerV3, as its own CartPole example has it: size XS, training ratio 1024."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_rllib.acting.evaluation import GreedyPolicy
from wm_rllib.benchmark.contenders.rllib_ppo import to_env
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.trainer import Contender
from wm_rllib.environments.names import env_spaces

MODEL_SIZE, TRAINING_RATIO = "XS", 1024


class DreamerV3Trainer:
    """DreamerV3 in this process alone.

    Args:
        job: What to measure.
        values: Nothing: it takes no settings.
    """

    def __init__(self, job: Job, values: Mapping[str, Any]):
        from ray.rllib.algorithms.dreamerv3 import DreamerV3Config

        from wm_rllib.runs.plan import register_env

        register_env(job.env_id, job.pixels)
        config = (
            DreamerV3Config()
            .environment(job.env_id, env_config=dict(job.env_config))
            .env_runners(num_env_runners=0)
            .learners(num_learners=0)
            .training(model_size=MODEL_SIZE, training_ratio=TRAINING_RATIO)
            .debugging(seed=job.seed, log_level="ERROR")
        )
        names = ("batch_size_B", "batch_length_T", "horizon_H", "gamma", "world_model_lr", "actor_lr", "critic_lr")
        self.settings: Mapping[str, Any] = {
            "model_size": MODEL_SIZE,
            "training_ratio": TRAINING_RATIO,
            **{name: getattr(config, name) for name in names},
        }
        self._algorithm = config.build_algo()
        with suppress(OSError):
            Path(self._algorithm.logdir).rmdir()

    def train(self) -> int:
        """One iteration: the first fills a batch with random steps, later ones are one step and its update."""
        return int(self._algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])

    def policy(self) -> GreedyPolicy:
        """The newest weights."""
        runner = self._algorithm.env_runner
        return _DreamerPolicy(runner.module, runner.env.single_action_space)

    def stop(self) -> None:
        """Ends the algorithm."""
        self._algorithm.stop()


class _DreamerPolicy:
    """DreamerV3's module: memory {h, z, a}, and the mode of its action distribution."""

    def __init__(self, module: Any, action_space: gym.Space[Any]):
        self._module, self._action_space = module, action_space

    def initial_state(self, batch_size: int) -> tuple[dict[str, torch.Tensor], float]:
        """The learned initial state, B times, and that an episode starts."""
        state = {
            name: torch.as_tensor(value)[None].repeat(batch_size, *[1] * torch.as_tensor(value).ndim)
            for name, value in self._module.get_initial_state().items()
        }
        return state, 1.0

    @torch.no_grad()
    def act(
        self, observations: np.ndarray, state: tuple[dict[str, torch.Tensor], float]
    ) -> tuple[np.ndarray, tuple[dict[str, torch.Tensor], float]]:
        """One step of every lane; the module wants a time axis, of length 1, on observations alone."""
        from ray.rllib.core.columns import Columns

        memory, is_first = state
        batch = {
            Columns.OBS: torch.as_tensor(np.asarray(observations, np.float32))[:, None],
            Columns.STATE_IN: memory,
            "is_first": torch.full((len(observations),), is_first),
        }
        out = self._module.forward_inference(batch)
        actions = out[Columns.ACTIONS][:, 0].numpy()
        return to_env(actions, self._action_space), (out[Columns.STATE_OUT], 0.0)


def _check(job: Job, values: Mapping[str, Any]) -> None:
    env_spaces(job.env_id, job.env_config, job.pixels)


DREAMERV3 = Contender(
    "rllib-dreamerv3",
    f"RLlib's DreamerV3, size {MODEL_SIZE}, training ratio {TRAINING_RATIO}",
    DreamerV3Trainer,
    _check,
)
