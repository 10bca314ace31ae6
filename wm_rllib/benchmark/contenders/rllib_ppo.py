"""RLlib's PPO on raw observations, with the hyperparameters of rl-baselines3-zoo."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_rllib.acting.evaluation import GreedyPolicy
from wm_rllib.benchmark.contenders.zoo import MAX_GRAD_NORM, VF_COEF, ZooSettings, zoo_settings
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.trainer import Contender
from wm_rllib.environments.names import env_spaces

NO_COUNTERPART = (
    "clip range stays constant (RLlib has no schedule for it)",
    "no state-dependent exploration",
    "observations are normalised, rewards are not",
    "advantages are standardised over the batch, not over each minibatch",
    "RLlib's initialisation and Adam epsilon",
)
"""Where RLlib cannot follow the zoo's settings."""


class RLlibPPOTrainer:
    """PPO in this process alone.

    Args:
        job: What to measure.
        values: Nothing: it takes no settings.
    """

    def __init__(self, job: Job, values: Mapping[str, Any]):
        zoo = zoo_settings(job.env_id)
        config = make_config(job, zoo)
        self.settings: Mapping[str, Any] = {
            "zoo": asdict(zoo),
            "differs": list(NO_COUNTERPART),
            "rllib": _shown(config),
        }
        self._algorithm = config.build_algo()
        self._normalises = zoo.normalize
        with suppress(OSError):
            Path(self._algorithm.logdir).rmdir()

    def train(self) -> int:
        """One rollout and its update."""
        return int(self._algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])

    def policy(self) -> GreedyPolicy:
        """The newest weights, and the statistics of the observations as they are now."""
        runner = self._algorithm.env_runner
        filters = _filters_of(runner) if self._normalises else None
        return RLlibPolicy(self._algorithm.get_module(), runner.env.single_action_space, filters)

    def stop(self) -> None:
        """Ends the algorithm."""
        self._algorithm.stop()


def make_config(job: Job, zoo: ZooSettings) -> Any:
    """Return RLlib's config of the zoo's settings."""
    from ray.rllib.algorithms.ppo import PPOConfig

    from wm_rllib.runs.plan import register_env

    register_env(job.env_id, job.pixels)
    rate = zoo.learning_rate
    return (
        PPOConfig()
        .environment(job.env_id, env_config=dict(job.env_config))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=zoo.n_envs,
            rollout_fragment_length=zoo.n_steps,
            env_to_module_connector=_normaliser if zoo.normalize else None,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=zoo.n_envs * zoo.n_steps,
            minibatch_size=zoo.batch_size,
            num_epochs=zoo.n_epochs,
            lr=[[0, rate], [zoo.n_timesteps, 0.0]] if zoo.linear else rate,
            gamma=zoo.gamma,
            lambda_=zoo.gae_lambda,
            clip_param=zoo.clip_range,
            vf_clip_param=float("inf"),
            vf_loss_coeff=VF_COEF,
            entropy_coeff=zoo.ent_coef,
            use_kl_loss=False,
            grad_clip=MAX_GRAD_NORM,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=_networks(job))
        .debugging(seed=job.seed, log_level="ERROR")
    )


def _networks(job: Job) -> Any:
    """Stable-Baselines3's: two tanh layers for policy and value each, a log std that does not see the state."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    _, action_space = env_spaces(job.env_id, job.env_config, job.pixels)
    return DefaultModelConfig(
        fcnet_hiddens=[64, 64],
        fcnet_activation="tanh",
        vf_share_layers=False,
        free_log_std=isinstance(action_space, gym.spaces.Box),
    )


def _normaliser(env: Any, spaces: Any, device: Any) -> Any:
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    return MeanStdFilter()


def _filters_of(runner: Any) -> Any:
    """Return the running statistics that the env runner normalises with, as a function of one observation."""
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    connector = next(piece for piece in runner._env_to_module.connectors if isinstance(piece, MeanStdFilter))
    return connector._filters[None]


class RLlibPolicy:
    """An RLModule without memory, on raw observations.

    Args:
        module: The module.
        action_space: Of one environment.
        observation_filter: Normalises one observation; None for none.
    """

    def __init__(self, module: Any, action_space: gym.Space[Any], observation_filter: Any = None):
        self._module, self._action_space, self._filter = module, action_space, observation_filter

    def initial_state(self, batch_size: int) -> None:
        """No memory."""

    @torch.no_grad()
    def act(self, observations: np.ndarray, state: None) -> tuple[np.ndarray, None]:
        """The distribution's mode, in env space as RLlib's pipeline maps it."""
        from ray.rllib.core.columns import Columns

        if self._filter is not None:
            observations = np.stack([self._filter(row, update=False) for row in observations])
        batch = {Columns.OBS: torch.as_tensor(np.asarray(observations, np.float32))}
        logits = self._module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
        actions = self._module.get_inference_action_dist_cls().from_logits(logits).to_deterministic().sample()
        return to_env(actions.numpy(), self._action_space), None


def to_env(actions: np.ndarray, action_space: gym.Space[Any]) -> np.ndarray:
    """Return actions in env space: RLlib's policies act on Boxes scaled to [-1, 1]."""
    from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unsquash_action

    return np.asarray(unsquash_action(actions, get_base_struct_from_space(action_space)))


def _shown(config: Any) -> dict[str, Any]:
    names = (
        "num_envs_per_env_runner",
        "rollout_fragment_length",
        "train_batch_size_per_learner",
        "minibatch_size",
        "num_epochs",
        "lr",
        "gamma",
        "lambda_",
        "clip_param",
        "vf_clip_param",
        "vf_loss_coeff",
        "entropy_coeff",
        "use_kl_loss",
        "grad_clip",
        "grad_clip_by",
        "normalize_actions",
    )
    return {name: getattr(config, name) for name in names} | {"networks": asdict(config._model_config)}


def _check(job: Job, values: Mapping[str, Any]) -> None:
    env_spaces(job.env_id, job.env_config, job.pixels)


RLLIB_PPO = Contender(
    "rllib-ppo", "RLlib's PPO on raw observations, hyperparameters of rl-baselines3-zoo", RLlibPPOTrainer, _check
)
