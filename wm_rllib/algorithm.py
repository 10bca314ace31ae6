"""WorldModelPPO: set-up, phases, resources, checkpoint."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune import PlacementGroupFactory

from wm_rllib.acting.planning import Plan
from wm_rllib.actors.failures import FailureCounter
from wm_rllib.actors.nodes import NodeWatch
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.dreamers.dreamer import Dreamer, DreamerSpec
from wm_rllib.dreamers.pool import DreamerPool
from wm_rllib.env_runners.collection import EnvRunnerError, end_env_runners
from wm_rllib.environments.creation import EnvCreator, env_creator
from wm_rllib.logs import set_log_level
from wm_rllib.mixing import may_dream
from wm_rllib.replay.client import ReplayClient, holds_replay
from wm_rllib.training import placement
from wm_rllib.training.environment_check import check_environment
from wm_rllib.training.evaluated_ppo import EvaluatedPPO
from wm_rllib.training.gauges import Gauges
from wm_rllib.training.iteration import IterationReport
from wm_rllib.training.overlap import OverlappingTraining
from wm_rllib.training.phases import collect_randomly, pretrain, train_in_dreams, train_mixed
from wm_rllib.training.publishing import Publisher
from wm_rllib.training.stages import Parts, Stages
from wm_rllib.training.state import Phase, TrainingState

logger = logging.getLogger(__name__)

COMPONENT_REPLAY = "replay"
TRAINING_STATE = "training_state"
COUNTED = "counted"
"""Restarts and faults so far, in the training state."""
HALF_PLAYED = "half_played_episodes"


class WorldModelPPO(EvaluatedPPO):
    """PPO on [z, h] that learns from real and imagined experience at once.

    Phases: random collection, pretraining of the world model, mixed training. An iteration of the last one samples real
    steps, fits V and M to the replay, publishes them, and runs `num_dream_rounds` rounds of dreaming and updating, each
    with the newest policy.
    """

    config: WorldModelPPOConfig

    dreamer_class: type[Dreamer] = Dreamer
    """What a remote dreamer is made of; a subclass's may be another."""

    @classmethod
    def get_default_config(cls) -> WorldModelPPOConfig:
        """RLlib's hook."""
        return WorldModelPPOConfig()

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """RLlib's bundles, the replay's CPUs, and a bundle for each dreamer."""
        request = super().default_resource_request(config)
        return placement.add_own_bundles(request, cls.get_default_config().update_from_dict(config))

    # --- set-up ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _get_env_id_and_creator(env_specifier: Any, config: Any) -> tuple[Any, EnvCreator]:
        return EvaluatedPPO._get_env_id_and_creator(env_specifier, config)[0], env_creator(env_specifier, config)

    def setup(self, config: WorldModelPPOConfig) -> None:
        """Builds RLlib's parts, then the parameter server, the replay and the dreamers."""
        set_log_level(config.wm_log_level)
        placement.check_own_gpu(config)
        unmade = check_environment(config, self.env_creator)
        request = self.default_resource_request(config)
        placement.check_cluster(request, config)
        try:
            super().setup(config)
        except IndexError as error:
            if unmade is None:
                raise
            raise unmade from error  # RLlib says no more than that no env runner came up
        self._state = TrainingState(phase=Phase.RANDOM)
        self._nodes = NodeWatch()
        self._evaluation_failures = FailureCounter("evaluation env runner", EnvRunnerError)
        self._gauges = Gauges(self.config.wm_run_name or self.trial_name)
        remote = not self.config.is_single_process
        self._server = placement.make_server(remote=remote)
        self._replay = ReplayClient(placement.make_replay(self.config, self.config.seed))
        self._publisher = Publisher(self._server, self.learner_group, self._state)
        self._pool = self._make_pool(request)
        parts = Parts(
            self.env_runner_group,
            self.learner_group,
            self._server,
            self._replay,
            self._publisher,
            self._pool,
            self._state,
            self.metrics,
        )
        self._stages = Stages(self.config, parts, lambda: self.iteration)
        self._overlap = OverlappingTraining(self._stages) if self.config.overlap else None
        self._publisher.publish(0, policy=True, world_model=True)

    def _make_pool(self, request: PlacementGroupFactory) -> DreamerPool | None:
        """The dreamers, or None when the ratio never asks for them: contract 1 places none at r = 0."""
        if not may_dream(self.config.imagination_ratio):
            return None
        spec = self._dreamer_spec()
        place = functools.partial(placement.make_dreamer, self.dreamer_class, config=self.config, request=request)
        make = functools.partial(place, spec=spec, server=self._server)
        return DreamerPool(
            spec,
            self._server,
            self._replay.service,
            num_dreamers=self.config.num_dreamers_to_place,
            make_actor=make,
            push_again=self._publisher.push,
            timeout_s=self.config.dreamer_timeout_s,
        )

    def _dreamer_spec(self) -> DreamerSpec:
        spaces = self.env_runner_group.get_spaces()
        features = self.config._feature_connector(None, spaces)
        policy = self.config.get_rl_module_spec(spaces=spaces, inference_only=True)
        policy.observation_space, policy.action_space = spaces[DEFAULT_MODULE_ID]
        remote = bool(self.config.num_dreamers_to_place)
        return DreamerSpec(
            world_model=features.world_model.config,
            policy=policy,
            log_level=self.config.wm_log_level,
            num_threads=max(1, int(self.config.num_cpus_per_dreamer)) if remote else 0,
            device="cuda" if remote and self.config.num_gpus_per_dreamer else "cpu",
            precision=self.config.dream_precision,
        )

    # --- one iteration -----------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Any]:
        """RLlib's iteration, with this algorithm's report and its evaluation at fixed intervals."""
        self._stages.report = IterationReport()
        self._report.dropped_rows += self._rows_lost_by_resuming()
        phase = self._state.phase
        results = super().step()
        if self._evaluation_is_due():
            self._evaluate_periodically()
        if self._report.evaluation:
            # RLlib's metrics repeat the last evaluation in every iteration, under env_runners; keys beside that are
            # there only when it is new. What is evaluated after RLlib's iteration its metrics have in the next one.
            figures, before = self._report.evaluation, results.get(EVALUATION_RESULTS, {})
            by_env_runners = {**before.get(ENV_RUNNER_RESULTS, {}), **figures}
            results[EVALUATION_RESULTS] = {**before, **figures, ENV_RUNNER_RESULTS: by_env_runners}
        results.update(self._report.as_dict())
        results.update(
            {
                "phase": phase.value,
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self._state.num_env_steps,
                "world_model": {"version": self._state.world_model_version},
                "policy": {"version": self._state.policy_version},
                "restarts": self._restarts(),
                "faults": self._faults(),
            }
        )
        if self._state.phase is Phase.MIXED:  # pretraining has ended
            results["mixed_iterations"] = self._state.mixed_iterations
        self._gauges.show(results)
        self._stages.is_cut_short = False
        return results

    def cut_short(self) -> None:
        """Ends this iteration after its present stage, for a process that has seconds left to write its checkpoint.

        What a stage would have done is not lost: a later fit makes up for one that is left out, and an evaluation stays
        due. Only this iteration's real rows may miss their policy updates. A signal handler may call it.
        """
        self._stages.is_cut_short = True

    def training_step(self) -> None:
        """One iteration of the current phase."""
        if self._state.phase is Phase.MIXED:
            self._state.mixed_iterations += 1
        if self._overlap is not None and self._state.phase is Phase.MIXED:
            self._overlap.train_mixed()
            return
        mixed = train_mixed if self.config.online_collection else train_in_dreams
        phases = {Phase.RANDOM: collect_randomly, Phase.PRETRAIN: pretrain, Phase.MIXED: mixed}
        phases[self._state.phase](self._stages)

    # --- use of the dream --------------------------------------------------------------------------------------------

    def plan(self, start_obs: np.ndarray, planner: str = "cem", **how: Any) -> Plan:
        """The first action and the plan for one observation, searched for in the dream with the newest weights.

        Args:
            start_obs: See `WorldModelPolicy.plan`, which `load_policy` gives without Ray.
            planner: "random", "cem" or "mppi".
            **how: history_actions, memory, previous, seed and settings of the search; the same.
        """
        with torch.random.fork_rng(devices=[]):  # new networks draw weights, though theirs are overwritten
            policy = self.get_policy()
        return policy.plan(start_obs, planner, **how)

    def _rows_lost_by_resuming(self) -> int:
        """Real rows that a checkpoint counts, whose features went with the process that wrote it."""
        lost = self._state.banked_rows - (self._overlap.num_banked_rows if self._overlap else 0)
        if lost:
            logger.warning("%d real rows from before the checkpoint are in the replay, but not in a PPO batch", lost)
            self._state.banked_rows -= lost
        return lost

    def _restarts(self) -> dict[str, int]:
        counts = self._counts()
        return {
            "env_runners": counts["env_runner_restarts"],
            "dreamers": counts["dreamer_restarts"],
            "parameter_server": self._state.server_restarts,
        }

    def _faults(self) -> dict[str, int]:
        self._nodes.look()
        counts = {name: count for name, count in self._counts().items() if not name.endswith("_restarts")}
        return {**counts, "nodes": self._nodes.num_alive, "resumes": self._state.resumes}

    def _counts(self) -> dict[str, int]:
        """Restarts and faults of the whole run."""
        return {name: count + self._state.counted.get(name, 0) for name, count in self._counts_of_process().items()}

    def _counts_of_process(self) -> dict[str, int]:
        sampling, pool = self._stages.sampling, self._pool
        return {
            "env_runner_restarts": sampling.num_restarts,
            "dreamer_restarts": pool.num_restarts if pool else 0,
            "env_runner_errors": sampling.num_failures,
            "env_runners_late": sampling.num_late,
            "evaluation_errors": self._evaluation_failures.total,
            "dreamer_errors": pool.num_failures if pool else 0,
            "dreamers_late": pool.num_late if pool else 0,
            "nodes_lost": self._nodes.num_lost,
        }

    # --- checkpoint --------------------------------------------------------------------------------------------------

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """RLlib's components and the replay."""
        components = super().get_checkpointable_components()
        # on_algorithm_init, where weights may be restored, comes before the replay is made.
        return [*components, (COMPONENT_REPLAY, self._replay)] if hasattr(self, "_replay") else components

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, the training state, and (if not asked for by name alone) the replay's contents.

        `save_to_path` asks for components by name and hands each its state: the replay writes itself, so it gets none.
        Real steps in flight are waited for first, and counted.
        """
        if self._overlap is not None:
            self._overlap.settle()
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_REPLAY, components, not_components):
            state[COMPONENT_REPLAY] = None if components == COMPONENT_REPLAY else self._replay.get_state()
        state[TRAINING_STATE] = {**self._state.to_dict(), COUNTED: self._counts()}
        if components is None:  # not a call that picks one component's state out of the rest
            state[HALF_PLAYED] = self.env_runner.get_half_played() if self.config.is_deterministic else None
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores `get_state`, and publishes what was restored under a sequence number newer than any before."""
        self._stages.sampling.discard()
        if self._overlap is not None:
            self._overlap.discard()
        super().set_state(state)
        if state.get(COMPONENT_REPLAY) is not None:
            self._replay.set_state(state[COMPONENT_REPLAY])
        if TRAINING_STATE in state:
            self._state.restore(state[TRAINING_STATE])
            self._state.resumes += 1
            # This process counts on from where it is.
            before = Counter(state[TRAINING_STATE].get(COUNTED, {}))
            before.subtract(self._counts_of_process())
            self._state.counted = {name: count for name, count in before.items() if count}
        self._publisher.publish(self.iteration, policy=True, world_model=True)
        if self.config.is_deterministic and TRAINING_STATE in state:
            self.env_runner.connect(self._server)
            self.env_runner.set_half_played(state.get(HALF_PLAYED))

    def restore_from_path(
        self, path: Any, *, component: str | None = None, filesystem: Any = None, **kwargs: Any
    ) -> None:
        """RLlib's own, of a whole checkpoint or of one component.

        Raises:
            FileNotFoundError: A whole checkpoint has no replay. RLlib would go on without, and V and M would be fitted
                to the newest steps alone.
        """
        folder = f"{str(path).rstrip('/')}/{COMPONENT_REPLAY}"
        if component is None and not holds_replay(folder, filesystem):
            raise FileNotFoundError(
                f"{folder} has no replay, so that training cannot go on as it was. Fix: another checkpoint, or a new "
                "run that starts with this one's V, M and C and collects a replay of its own "
                "(world_model.transfer.from, world_model.transfer.parts vmc)."
            )
        more = {} if component is None else {"component": component}
        super().restore_from_path(path, filesystem=filesystem, **more, **kwargs)

    def cleanup(self) -> None:
        """Ends all actors, those that hang too."""
        for name in ("env_runner_group", "eval_env_runner_group"):
            group = getattr(self, name, None)
            if group is not None:
                end_env_runners(group)
        super().cleanup()
        pool: DreamerPool | None = getattr(self, "_pool", None)
        if pool is not None:
            pool.stop()
        if getattr(self, "_replay", None):
            self._replay.stop()
        if getattr(self, "_server", None) is not None and not self.config.is_single_process:
            ray.kill(self._server)
