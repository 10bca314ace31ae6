"""PPO that gives out its agent, and whose evaluations are greedy, due at real steps, and of one pair of versions."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_context import EnvContext

from wm_rllib.acting.evaluation import EvaluationResult
from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.actors.calling import call
from wm_rllib.actors.failures import FailureCounter
from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.dreamers.dreamer import DreamerSpec
from wm_rllib.dreamers.evaluation import DreamScore, dream_step_limit, evaluate_in_dream
from wm_rllib.env_runners.evaluation_runners import evaluate_on
from wm_rllib.models.world_model import WorldModel
from wm_rllib.replay.client import ReplayClient
from wm_rllib.training.iteration import IterationReport
from wm_rllib.training.publishing import Publisher
from wm_rllib.training.stages import Stages
from wm_rllib.training.state import TrainingState


class EvaluatedPPO(PPO):
    """The evaluation half of `WorldModelPPO`, which sets what is declared here."""

    _stages: Stages
    _state: TrainingState
    _publisher: Publisher
    _replay: ReplayClient
    _evaluation_failures: FailureCounter

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        intervals = eval_config.evaluation_interval_steps, eval_config.evaluation_interval_iterations
        return intervals != (None, None) or super()._should_create_evaluation_env_runners(eval_config)

    @property
    def _report(self) -> IterationReport:
        return self._stages.report

    def _dreamer_spec(self) -> DreamerSpec:
        raise NotImplementedError

    def _evaluation_is_due(self) -> bool:
        if self._stages.is_cut_short or not self._state.policy_version:
            return False
        config = self.config
        return self._state.evaluation_is_due(config.evaluation_interval_steps, config.evaluation_interval_iterations)

    def _evaluate_periodically(self) -> None:
        """The evaluation that is due and, where C learns in the dream alone, what it is worth there."""
        self._state.note_evaluation()
        self._run_one_evaluation()
        if not self.config.online_collection:
            with self._report.stage("evaluate_dream"):
                self._report.take_dream_score(self.evaluate_dream())

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
            failures=self._evaluation_failures,
        )

    def evaluate_dream(
        self, num_episodes: int | None = None, *, temperature: float | None = None, max_steps: int | None = None
    ) -> DreamScore | None:
        """Dreams whole greedy episodes from first observations in the replay; the same ones again in one iteration.

        Args:
            num_episodes: How many; None: `evaluation_duration`.
            temperature: tau of M's mixture; None: that of training.
            max_steps: Steps after which a dream is given up; None: `evaluation_max_dream_steps`, else the
                environment's time limit, else 1,000.

        Returns:
            What came of it; None if no stored episode has its beginning any more.
        """
        seed = self._stages.seed("dream_evaluation")
        count = num_episodes or self.config.evaluation_duration
        first = call(self._replay.service, "first_observations", count, seed)
        if not len(first):
            return None
        with torch.random.fork_rng(devices=[]):  # new networks draw weights, though theirs are overwritten
            policy = self.get_policy()
        return evaluate_in_dream(
            policy,
            first,
            temperature=self.config.temperature if temperature is None else temperature,
            max_steps=self._dream_step_limit if max_steps is None else max_steps,
            seed=seed,
        )

    @cached_property
    def _dream_step_limit(self) -> int:
        def make_env() -> Any:
            return self.env_creator(EnvContext(self.config.env_config, worker_index=0))

        return dream_step_limit(self.config.evaluation_max_dream_steps, make_env)

    def get_policy(self, policy_id: str = DEFAULT_MODULE_ID) -> WorldModelPolicy:
        """A copy of the agent as it acts now, and of its critic: V, M and C as the learners have them.

        Args:
            policy_id: RLlib's; there is one.
        """
        spec = self._dreamer_spec()
        # What is published for acting has no critic.
        weights = self.learner_group.get_weights()
        world_model, module = WorldModel(spec.world_model).eval(), replace(spec.policy, inference_only=False).build()
        module.set_state(weights[DEFAULT_MODULE_ID])
        holder = weights[WORLD_MODEL_MODULE_ID]
        prefix = "world_model."
        world_model.load_state_dict({name.removeprefix(prefix): torch.as_tensor(holder[name]) for name in holder})
        return WorldModelPolicy(world_model, module, self.config.gamma, self.config.pixel_settings)

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> Any:
        """C alone, as RLlib's module of the local env runner, with the learners' newest weights; it acts on [z, h].

        Args:
            module_id: RLlib's; there is one.
        """
        module = super().get_module(module_id)
        module.set_state(self.learner_group.get_weights(module_ids=[DEFAULT_MODULE_ID])[DEFAULT_MODULE_ID])
        return module

    def compute_single_action(self, *_: Any, **__: Any) -> NoReturn:
        """RLlib's old API, which knows nothing of V and M.

        Raises:
            NotImplementedError: Always; it says what to call instead.
        """
        raise NotImplementedError(
            "compute_single_action is the old API's. Fix: policy = algo.get_policy(); policy.reset() at the beginning "
            "of each episode; policy.compute_action(observation)."
        )

    def imagine_rollout(self, start_obs: Any, horizon: int | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Imagines what the agent would do and meet from some observations on.

            trajectory = algo.imagine_rollout(observation, horizon=20)
            (trajectory["rewards"] * trajectory["valid"]).sum(dim=1)

        Args:
            start_obs: See `WorldModelPolicy.imagine_rollout`, which `load_policy` gives without Ray.
            horizon: The same.
            **kwargs: The same.
        """
        return self.get_policy().imagine_rollout(start_obs, horizon, **kwargs)
