"""PPO whose evaluations are greedy, due at real steps, and made with exactly one pair of versions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import DEFAULT_MODULE_ID

from wm_rllib.dreamer import DreamerSpec
from wm_rllib.evaluation import EvaluationResult
from wm_rllib.evaluation_runners import evaluate_on
from wm_rllib.iteration import IterationReport
from wm_rllib.models.world_model import WorldModel
from wm_rllib.policy import WorldModelPolicy
from wm_rllib.publishing import Publisher
from wm_rllib.replay import WORLD_MODEL_MODULE_ID
from wm_rllib.stages import Stages
from wm_rllib.training_state import TrainingState


class EvaluatedPPO(PPO):
    """The evaluation half of `WorldModelPPO`, which sets what is declared here."""

    _stages: Stages
    _state: TrainingState
    _publisher: Publisher

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        wanted = eval_config.evaluation_interval_steps is not None
        return wanted or super()._should_create_evaluation_env_runners(eval_config)

    @property
    def _report(self) -> IterationReport:
        return self._stages.report

    def _dreamer_spec(self) -> DreamerSpec:
        raise NotImplementedError

    def _evaluation_is_due(self) -> bool:
        if self._stages.is_cut_short or not self._state.policy_version:
            return False
        return self._state.evaluation_is_due(self.config.evaluation_interval_steps)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """RLlib's evaluation: `evaluation_duration` greedy episodes, with exactly one pair of versions."""
        with self._report.stage("evaluate"):
            return {**super().evaluate(parallel_train_future), **self._report.evaluation}

    def evaluate_return(self, num_episodes: int | None = None) -> EvaluationResult:
        """Plays greedy episodes, new ones at each call, on the evaluation env runners.

        Args:
            num_episodes: How many; None: `evaluation_duration`.

        Raises:
            EnvRunnerError: No evaluation env runner answered in time, or one failed several times in a row.
        """
        seed = self._stages.seed(f"evaluation/{self._state.num_evaluations}")
        self._state.num_evaluations += 1
        group = self.eval_env_runner_group or self.env_runner_group
        episodes = num_episodes or self.config.evaluation_duration
        return evaluate_on(
            group,
            self._publisher.record,
            episodes,
            seed,
            restore=lambda: self.restore_env_runners(group),
            timeout_s=self.config.evaluation_sample_timeout_s,
        )

    def get_policy(self) -> WorldModelPolicy:
        """A copy of the agent as it acts now, and of its critic: V, M and C as the learners have them."""
        spec = self._dreamer_spec()
        # What is published for acting has no critic.
        weights = self.learner_group.get_weights()
        world_model, module = WorldModel(spec.world_model).eval(), replace(spec.policy, inference_only=False).build()
        module.set_state(weights[DEFAULT_MODULE_ID])
        holder = weights[WORLD_MODEL_MODULE_ID]
        prefix = "world_model."
        world_model.load_state_dict({name.removeprefix(prefix): torch.as_tensor(holder[name]) for name in holder})
        return WorldModelPolicy(world_model, module, self.config.gamma, self.config.pixel_settings)

    def imagine_rollout(self, start_obs: Any, horizon: int | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Imagines what the agent would do and meet from some observations on.

            trajectory = algo.imagine_rollout(observation, horizon=20)
            trajectory["values"].sum(dim=1)

        Args:
            start_obs: See `WorldModelPolicy.imagine_rollout`, which `load_policy` gives without Ray.
            horizon: The same.
            **kwargs: The same.
        """
        return self.get_policy().imagine_rollout(start_obs, horizon, **kwargs)
