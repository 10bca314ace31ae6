"""Stable-Baselines3's PPO, with the hyperparameters of rl-baselines3-zoo; an optional extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from wm_rllib.acting.evaluation import GreedyPolicy
from wm_rllib.benchmark.contenders.zoo import MAX_GRAD_NORM, VF_COEF, ZooSettings, zoo_settings
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.trainer import Contender
from wm_rllib.environments.names import env_spaces, make_env
from wm_rllib.runs.errors import CommandError


class SB3Trainer:
    """PPO of Stable-Baselines3 in this process.

    Args:
        job: What to measure.
        values: Nothing: it takes no settings.
    """

    def __init__(self, job: Job, values: Mapping[str, Any]):
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

        zoo = zoo_settings(job.env_id)
        self.settings: Mapping[str, Any] = {"zoo": asdict(zoo), "vf_coef": VF_COEF, "max_grad_norm": MAX_GRAD_NORM}
        self._rollout = zoo.n_envs * zoo.n_steps
        self._envs: Any = make_vec_env(
            partial(make_env, job.env_id, job.env_config, job.pixels), zoo.n_envs, seed=job.seed
        )
        if zoo.normalize:
            self._envs = VecNormalize(self._envs, gamma=zoo.gamma)
        self._normalize = self._envs.normalize_obs if zoo.normalize else None
        self._model = self._make_model(zoo, job.seed)

    def _make_model(self, zoo: ZooSettings, seed: int) -> Any:
        from stable_baselines3 import PPO

        names = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "use_sde", "sde_sample_freq")
        return PPO(
            "MlpPolicy",
            self._envs,
            learning_rate=self._schedule(zoo, zoo.learning_rate),
            clip_range=self._schedule(zoo, zoo.clip_range),
            vf_coef=VF_COEF,
            max_grad_norm=MAX_GRAD_NORM,
            seed=seed,
            device="cpu",
            **{name: getattr(zoo, name) for name in names},
        )

    def _schedule(self, zoo: ZooSettings, start: float) -> float | Callable[[float], float]:
        """Return a value, or how it falls over the zoo's own run: `learn` is called a rollout at a time."""
        if not zoo.linear:
            return start

        def value(_: float) -> float:
            model = getattr(self, "_model", None)  # asked for once before there is a model
            done = model.num_timesteps / zoo.n_timesteps if model else 0.0
            return start * max(0.0, 1.0 - done)

        return value

    def train(self) -> int:
        """One rollout and its update."""
        self._model.learn(self._rollout, reset_num_timesteps=False)
        return int(self._model.num_timesteps)

    def policy(self) -> GreedyPolicy:
        """The newest weights, and the statistics of the observations as they are now."""
        return _SB3Policy(self._model, self._normalize)

    def stop(self) -> None:
        """Closes the environments."""
        self._envs.close()


class _SB3Policy:
    """A model of Stable-Baselines3, deterministic."""

    def __init__(self, model: Any, normalize: Callable[[np.ndarray], np.ndarray] | None):
        self._model, self._normalize = model, normalize

    def initial_state(self, batch_size: int) -> None:
        """No memory."""

    def act(self, observations: np.ndarray, state: None) -> tuple[np.ndarray, None]:
        """The distribution's mode, clipped to the action space."""
        if self._normalize is not None:
            observations = self._normalize(observations)
        actions, _ = self._model.predict(observations, deterministic=True)
        return np.asarray(actions), None


def _check(job: Job, values: Mapping[str, Any]) -> None:
    if importlib.util.find_spec("stable_baselines3") is None:
        raise CommandError(
            "contender 'sb3-ppo' needs stable-baselines3, which is not installed. "
            'Fix: pip install "wm_rllib[benchmark]", or leave the contender out.'
        )
    env_spaces(job.env_id, job.env_config, job.pixels)


SB3_PPO = Contender(
    "sb3-ppo",
    "Stable-Baselines3's PPO, hyperparameters of rl-baselines3-zoo (needs the extra [benchmark])",
    SB3Trainer,
    _check,
    needs_ray=False,
)
