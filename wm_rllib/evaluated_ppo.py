"""PPO whose evaluations are greedy, due at real steps, and made with exactly one pair of versions."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPO

from wm_rllib.dreamer import DreamerSpec
from wm_rllib.evaluation import EvaluationResult
from wm_rllib.evaluation_runners import evaluate_on
from wm_rllib.iteration import IterationReport
from wm_rllib.models.world_model import WorldModel
from wm_rllib.parameter_server import ParameterClient
from wm_rllib.policy import WorldModelPolicy
from wm_rllib.publishing import Publisher
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
        """A copy of the agent as it acts now: V, M and C of the newest published record."""
        spec = self._dreamer_spec()
        weights = ParameterClient(None).take(self._publisher.record)
        assert weights.world_model is not None and weights.policy is not None
        world_model, module = WorldModel(spec.world_model).eval(), spec.policy.build()
        world_model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.world_model.items()})
        module.set_state(weights.policy)
        return WorldModelPolicy(world_model, module)
