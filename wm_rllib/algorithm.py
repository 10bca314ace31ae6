"""WorldModelPPO: phases, one iteration, evaluation, resources, checkpoint."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from ray.tune import PlacementGroupFactory

from wm_rllib import placement
from wm_rllib.calling import call
from wm_rllib.collection import RealExperience, collect, combine
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.dreamer import Dreamed, DreamerSpec
from wm_rllib.dreamer_pool import DreamerPool, DreamHarvest, DreamOrder
from wm_rllib.env_runner import CollectRequest, WorldModelEnvRunner
from wm_rllib.environment_check import check_environment
from wm_rllib.evaluation import EvaluationResult
from wm_rllib.evaluation_runners import evaluate_on
from wm_rllib.gate import Judgement
from wm_rllib.gauges import Gauges
from wm_rllib.iteration import IterationReport
from wm_rllib.learner_calls import fit_world_model, on_learners, update_policy
from wm_rllib.logs import set_log_level
from wm_rllib.mixing import AUTO, imagined_rows, may_dream, ratio_at, real_rows_for, split_evenly
from wm_rllib.models.world_model import WorldModel
from wm_rllib.parameter_server import ParameterClient
from wm_rllib.policy import WorldModelPolicy
from wm_rllib.publishing import Publisher
from wm_rllib.replay_client import ReplayClient
from wm_rllib.seeding import stage_seed
from wm_rllib.spaces import scale_from_bounds
from wm_rllib.training_state import Phase, TrainingState

logger = logging.getLogger(__name__)

COMPONENT_REPLAY = "replay"
TRAINING_STATE = "training_state"
NUM_WINDOWS = 128
"""Windows of fresh experience that a judgement of M rests on."""
LAST_ROUND_LR = 0.3
"""C's learning rate in an iteration's last dream round, as a fraction of that in its first: what acts next in the real
environment, and is evaluated, should be a settled policy."""
RANDOM_ROUND = 1000
"""Real steps of one iteration of the random phase, at least: they are cheap, and a line each would be noise."""


class WorldModelPPO(PPO):
    """PPO on [z, h] that learns from real and imagined experience at once.

    Phases: random collection, pretraining of the world model, mixed training. An iteration of the last one samples real
    steps, fits V and M to the replay, publishes them, and runs `num_dream_rounds` rounds of dreaming and updating, each
    with the newest policy.
    """

    config: WorldModelPPOConfig

    @classmethod
    def get_default_config(cls) -> WorldModelPPOConfig:
        """RLlib's hook."""
        return WorldModelPPOConfig()

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """RLlib's bundles, the replay's CPUs, and a bundle for each dreamer."""
        request = super().default_resource_request(config)
        return placement.add_own_bundles(request, cls.get_default_config().update_from_dict(config))

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        wanted = eval_config.evaluation_interval_steps is not None
        return wanted or super()._should_create_evaluation_env_runners(eval_config)

    # --- set-up ------------------------------------------------------------------------------------------------------

    def setup(self, config: WorldModelPPOConfig) -> None:
        """Builds RLlib's parts, then the parameter server, the replay and the dreamers."""
        set_log_level(config.wm_log_level)
        check_environment(config, self.env_creator)
        request = self.default_resource_request(config)
        placement.check_cluster(request, config)
        super().setup(config)
        self._state = TrainingState(phase=Phase.RANDOM)
        self._report = IterationReport()
        self._is_cut_short = False
        self._gauges = Gauges(self.config.wm_run_name or self.trial_name)
        self._horizon = self.config.imagination_horizon
        remote = not self.config.is_single_process
        self._server = placement.make_server(remote=remote)
        self._replay = ReplayClient(placement.make_replay(self.config, self.config.seed))
        self._publisher = Publisher(self._server, self.learner_group, self._state)
        self._pool = self._make_pool(request)
        self._connect(self.env_runner_group)
        self._publisher.publish(0, policy=True, world_model=True)

    def _make_pool(self, request: PlacementGroupFactory) -> DreamerPool | None:
        """The dreamers, or None when the ratio never asks for them: contract 1 places none at r = 0."""
        if not may_dream(self.config.imagination_ratio):
            return None
        spec = self._dreamer_spec()
        make = functools.partial(
            placement.make_dreamer, config=self.config, spec=spec, server=self._server, request=request
        )
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
        )

    def _connect(self, group: Any, ids: list[int] | None = None) -> None:
        """Tells env runners where the parameter server is."""
        group.foreach_env_runner(
            functools.partial(_connect_runner, server=self._server), remote_worker_ids=ids, local_env_runner=ids is None
        )

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """RLlib's restoration; a restarted env runner also has to learn where the parameter server is."""
        restored = super().restore_env_runners(env_runner_group)
        if restored:
            logger.warning("env runners %s are back", restored)
            self._connect(env_runner_group, restored)
        return restored

    # --- one iteration -----------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Any]:
        """RLlib's iteration, with this algorithm's report and its evaluation at a fixed interval of real steps."""
        self._report = IterationReport()
        phase = self._state.phase
        results = super().step()
        if self._evaluation_is_due():
            self._state.evaluated_at = self._state.num_env_steps
            self._run_one_evaluation()
        if self._report.evaluation:
            # RLlib's metrics repeat the last evaluation in every iteration; these keys are there only when it is new.
            results[EVALUATION_RESULTS] = {**results.get(EVALUATION_RESULTS, {}), **self._report.evaluation}
        results.update(self._report.as_dict())
        results.update(
            {
                "phase": phase.value,
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self._state.num_env_steps,
                "world_model": {"version": self._state.world_model_version},
                "policy": {"version": self._state.policy_version},
                "restarts": self._restarts(),
            }
        )
        self._gauges.show(results)
        return results

    def cut_short(self) -> None:
        """Ends this iteration after its present stage, for a process that has seconds left to write its checkpoint.

        What a stage would have done is not lost: a later fit makes up for one that is left out, and an evaluation stays
        due. Only this iteration's real rows may miss their policy updates. A signal handler may call it.
        """
        self._is_cut_short = True

    def training_step(self) -> None:
        """One iteration of the current phase."""
        stages = {Phase.RANDOM: self._collect_randomly, Phase.PRETRAIN: self._pretrain, Phase.MIXED: self._train_mixed}
        stages[self._state.phase]()

    def _collect_randomly(self) -> None:
        missing = self.config.random_collection_steps - self._state.num_env_steps
        chunk = max(RANDOM_ROUND, self.config.total_train_batch_size)
        self._collect(min(missing, chunk), random_actions=True)
        if self._state.num_env_steps >= self.config.random_collection_steps:
            self._state.phase = Phase.PRETRAIN

    def _pretrain(self) -> None:
        """Fixes the units of observations and rewards, then fits V and M to the random experience."""
        stats = call(self._replay.service, "normalisation")
        observation_space = self.env_runner_group.get_spaces()[INPUT_ENV_SINGLE_SPACES][0]
        stats["obs_scale"] = np.maximum(stats["obs_scale"], scale_from_bounds(observation_space))
        on_learners(self.learner_group, "set_normalisation", stats=stats)
        steps = call(self._replay.service, "stats")["num_timesteps"]
        sequences = -(-steps // self.config.sequence_length)
        learners = max(1, self.config.num_learners)
        updates = -(-self.config.pretrain_epochs * sequences // (self.config.sequence_batch_size * learners))
        self._fit(updates)
        self._publish(policy=False, world_model=True)
        self._state.phase = Phase.MIXED

    def _train_mixed(self) -> None:
        real = self._collect(self.config.total_train_batch_size, random_actions=False)
        ratio, self._horizon = self._choose_imagination(real)
        self._report.configured_ratio = ratio
        self._state.pending_updates += self.config.updates_per_step * real.num_timesteps
        updates = int(self._state.pending_updates)
        if updates and not self._is_cut_short:
            self._state.pending_updates -= updates
            self._fit(updates)
            self._publish(policy=False, world_model=True)
        # Without imagined rows a second round would be a second PPO update on the same real ones.
        dreams = ratio == 1.0 or imagined_rows(sum(real.rows), ratio) > 0
        for round_index in range(self.config.num_dream_rounds if dreams else 1):
            if not self._is_cut_short:
                self._dream_and_update(real, ratio, round_index)

    def _choose_imagination(self, real: RealExperience) -> tuple[float, int]:
        """Ratio and horizon of this iteration: as configured, or the gate's choice.

        The gate judges M on experience that it has not been fitted to yet: that of this iteration.
        """
        if self.config.imagination_ratio != AUTO:
            # The ratio of a schedule is that of the step at which the iteration began.
            before = self._state.num_env_steps - real.num_timesteps
            return ratio_at(self.config.imagination_ratio, before), self.config.imagination_horizon
        gate, bounds = self._state.gate, self.config.gate_bounds
        judgement = self._judge() if real.raw_refs else None
        if judgement is not None:
            gate.judge(judgement)
        ratio, horizon = gate.ratio(bounds), gate.horizon(bounds)
        self._report.add_judgement(judgement, gate, horizon)
        return ratio, horizon

    def _judge(self) -> Judgement | None:
        """Learner 0's judgement of M on the newest experience; None if that was lost with its env runner."""
        seed = self._seed("judge")
        with self._report.stage("judge"):
            if seed is not None:
                call(self._replay.service, "reseed", seed)
            length = self.config.burn_in, self.config.imagination_horizon
            windows_ref = call(self._replay.service, "newest_windows", NUM_WINDOWS, *length)
            if windows_ref is None:
                return None
            judgements = on_learners(self.learner_group, "judge", windows_ref=windows_ref, seed=seed)
        return next(judgement for judgement in judgements if judgement is not None)

    def _dream_and_update(self, real: RealExperience, ratio: float, round_index: int) -> None:
        """One round: dreams with the newest policy, the exact merge, one PPO update, and its publication."""
        real_rows = [0] * len(real.rows) if ratio == 1.0 else real.rows
        rows = self.config.dream_batch_size if ratio == 1.0 else imagined_rows(sum(real_rows), ratio)
        harvest = self._dream(rows, round_index) if rows else None
        imagined = harvest.rows if harvest else [0] * len(real_rows)
        keep: list[int] | None = None
        if sum(imagined) < rows:
            # Fewer dreams came than asked for: the real part shrinks with them, so that the ratio holds.
            keep = split_evenly(real_rows_for(sum(imagined), ratio), len(real_rows))
            real_rows = [min(limit, have) for limit, have in zip(keep, real_rows, strict=True)]
        if not sum(real_rows) + sum(imagined) or (rows and not sum(imagined)):
            self._report.updates_skipped += 1
            logger.warning("update skipped: %d real and %d imagined rows", sum(real_rows), sum(imagined))
            return
        with self._report.stage("update"):
            results = update_policy(
                self.learner_group,
                episodes_refs=self._episode_refs(real if sum(real_rows) else None),
                imagined=harvest.shard_refs if harvest else None,
                ratio=ratio if sum(imagined) else None,
                real_rows=keep,
                rows=list(zip(real_rows, imagined, strict=True)),
                lr_scale=1.0 - (1.0 - LAST_ROUND_LR) * round_index / max(1, self.config.num_dream_rounds - 1),
                timesteps=self._timesteps(),
                seed=self._seed(f"update/{round_index}"),
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._report.add_update(self.metrics, len(real_rows), harvest)
        self._report.take_update_losses(self.metrics)
        self._state.policy_version += 1
        self._publish(policy=True, world_model=False)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _collect(self, num_timesteps: int, *, random_actions: bool) -> RealExperience:
        """Real env steps: features to the learners, raw experience to the replay."""
        request = CollectRequest(
            num_timesteps=num_timesteps,
            num_shards=max(1, self.config.num_learners),
            random_actions=random_actions,
            fresh_envs=self._is_after_checkpoint(),
            seed=self._seed("collect"),
        )
        with self._report.stage("sample"):
            parts = collect(self.env_runner_group, request, timeout_s=self.config.sample_timeout_s)
        ages = [self._state.staleness(part.sequence) for part in parts]
        real = combine(parts, request.num_shards, ages, self.config.max_staleness)
        with self._report.stage("replay"):
            if real.raw_refs:
                call(self._replay.service, "add", real.raw_refs)
        self.metrics.aggregate(real.metrics, key=ENV_RUNNER_RESULTS)
        self._state.num_env_steps += real.num_timesteps
        self._report.num_env_steps += real.num_timesteps
        self._report.staleness = max(self._report.staleness, real.staleness)
        self._report.dropped_rows += real.dropped_rows
        return real

    def _fit(self, num_updates: int) -> None:
        """Gradient steps on V and M, in one call to the learners."""
        seed = self._seed("fit")
        with self._report.stage("replay"):
            if seed is not None:
                call(self._replay.service, "reseed", seed)
            refs = call(
                self._replay.service,
                "fit_batches",
                num_updates,
                self.config.sequence_batch_size,
                self.config.sequence_length,
                max(1, self.config.num_learners),
            )
        with self._report.stage("fit"):
            results = fit_world_model(
                self.learner_group,
                refs,
                batch_size=self.config.sequence_batch_size,
                vae_lr_scale=1.0 if self._state.phase is Phase.PRETRAIN else self.config.vae_online_lr_fraction,
                timesteps=self._timesteps(),
                seed=seed,
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._report.fit_updates += num_updates
        self._report.take_fit_losses(self.metrics)
        self._state.world_model_version += 1

    def _dream(self, rows: int, round_index: int) -> DreamHarvest:
        assert self._pool is not None
        order = DreamOrder(
            rows=split_evenly(rows, max(1, self.config.num_learners)),
            horizon=self._horizon,
            temperature=self.config.temperature,
            max_disagreement=self.config.max_disagreement,
            exploration_bonus=self.config.exploration_bonus,
            optimism=self.config.optimism,
            burn_in=self.config.burn_in,
        )
        with self._report.stage("dream"):
            harvest = self._pool.dream(
                order, lambda attempt: self._seed(f"dream/{round_index}/{attempt}"), self._is_stale
            )
        self._report.dropped_rows += harvest.dropped_rows
        return harvest

    def _is_stale(self, part: Dreamed) -> bool:
        age = self._state.staleness(part.sequence)
        self._report.staleness = max(self._report.staleness, age)
        return age > self.config.max_staleness

    def _publish(self, *, policy: bool, world_model: bool) -> None:
        with self._report.stage("publish"):
            self._publisher.publish(self.iteration, policy=policy, world_model=world_model)

    def _episode_refs(self, real: RealExperience | None) -> list[ray.ObjectRef]:
        """References for `LearnerGroup.update`: equally many for each learner, learner 0's first."""
        if real is None:
            return [ray.put([])] * max(1, self.config.num_learners)
        return [ref for refs in real.shard_refs for ref in refs]

    def _timesteps(self) -> dict[str, int]:
        return {NUM_ENV_STEPS_SAMPLED_LIFETIME: self._state.num_env_steps}

    def _seed(self, stage: str) -> int | None:
        return None if self.config.seed is None else stage_seed(self.config.seed, self.iteration, stage)

    def _is_after_checkpoint(self) -> bool:
        """Whether envs are reset now so that a run resumed here equals one that was never killed (contract 7)."""
        deterministic = self.config.is_single_process and self.config.seed is not None
        return deterministic and self.iteration % self.config.checkpoint_frequency == 0

    def _restarts(self) -> dict[str, int]:
        return {
            "env_runners": int(self.env_runner_group.num_remote_worker_restarts()),
            "dreamers": self._pool.num_restarts if self._pool else 0,
            "parameter_server": self._state.server_restarts,
        }

    # --- evaluation --------------------------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        interval = self.config.evaluation_interval_steps
        if interval is None or self._state.phase != Phase.MIXED or not self._state.policy_version:
            return False
        if self._is_cut_short:
            return False
        return self._state.num_env_steps // interval > self._state.evaluated_at // interval

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """RLlib's evaluation: `evaluation_duration` greedy episodes, with exactly one pair of versions."""
        with self._report.stage("evaluate"):
            return {**super().evaluate(parallel_train_future), **self._report.evaluation}

    def evaluate_return(self, num_episodes: int | None = None) -> EvaluationResult:
        """Plays greedy episodes, new ones at each call, on the evaluation env runners.

        Args:
            num_episodes: How many; None: `evaluation_duration`.

        Raises:
            RuntimeError: No evaluation env runner answered.
        """
        seed = self._seed(f"evaluation/{self._state.num_evaluations}")
        self._state.num_evaluations += 1
        group = self.eval_env_runner_group or self.env_runner_group
        episodes = num_episodes or self.config.evaluation_duration
        timeout_s = self.config.evaluation_sample_timeout_s
        return evaluate_on(group, self._publisher.record, episodes, seed, timeout_s)

    def get_policy(self) -> WorldModelPolicy:
        """A copy of the agent as it acts now: V, M and C of the newest published record."""
        spec = self._dreamer_spec()
        weights = ParameterClient(None).take(self._publisher.record)
        assert weights.world_model is not None and weights.policy is not None
        world_model, module = WorldModel(spec.world_model).eval(), spec.policy.build()
        world_model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.world_model.items()})
        module.set_state(weights.policy)
        return WorldModelPolicy(world_model, module)

    # --- checkpoint --------------------------------------------------------------------------------------------------

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """RLlib's components and the replay."""
        return [*super().get_checkpointable_components(), (COMPONENT_REPLAY, self._replay)]

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, the training state, and (if not asked for by name alone) the replay's contents.

        `save_to_path` asks for components by name and hands each its state: the replay writes itself, so it gets none.
        """
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_REPLAY, components, not_components):
            state[COMPONENT_REPLAY] = None if components == COMPONENT_REPLAY else self._replay.get_state()
        state[TRAINING_STATE] = self._state.to_dict()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores `get_state`, and publishes what was restored under a sequence number newer than any before."""
        super().set_state(state)
        if state.get(COMPONENT_REPLAY) is not None:
            self._replay.set_state(state[COMPONENT_REPLAY])
        if TRAINING_STATE in state:
            self._state.restore(state[TRAINING_STATE])
        self._publisher.publish(self.iteration, policy=True, world_model=True)

    def cleanup(self) -> None:
        """Ends all actors."""
        super().cleanup()
        pool: DreamerPool | None = getattr(self, "_pool", None)
        if pool is not None:
            pool.stop()
        if getattr(self, "_replay", None):
            self._replay.stop()
        if getattr(self, "_server", None) is not None and not self.config.is_single_process:
            ray.kill(self._server)


def _connect_runner(runner: WorldModelEnvRunner, server: Any) -> None:
    runner.connect(server)
