"""WorldModelPPOConfig: every setting, its default, and what must hold between settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import AddObservationsFromEpisodesToBatch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.tune.result import STDERR_FILE, STDOUT_FILE, TRIAL_INFO
from ray.util import log_once

from wm_rllib.acting.connectors import FeatureConnector
from wm_rllib.acting.evaluation import MAX_LANES
from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.config_rules import broken_rule
from wm_rllib.config_sections import WorldModelSections
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.env_runners.evaluation_runners import evaluate_greedily
from wm_rllib.environments.pixels import AS_IT_IS, PixelSettings
from wm_rllib.learners.gate import Bounds
from wm_rllib.learners.learner import WorldModelPPOLearner
from wm_rllib.logs import QUIET, current_log_level
from wm_rllib.mixing import may_dream
from wm_rllib.models.config import MDNRNNConfig, VAEConfig, WorldModelConfig, load_class, num_latents
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.parts import CONTROLLER, MDN_RNN, PARTS
from wm_rllib.models.vae import VariationalAutoencoder
from wm_rllib.rl_modules.policy_module import NORMALIZE_ACTIONS, WorldModelPPOModule
from wm_rllib.rl_modules.world_model_module import PIXEL_SETTINGS, WORLD_MODEL_CONFIG, WorldModelRLModule
from wm_rllib.settings.settings import check_attrs, check_names
from wm_rllib.spaces import ActionCodec, check_action_space, check_spaces

NOT_SETTINGS = frozenset({TRIAL_INFO, STDOUT_FILE, STDERR_FILE, "_enable_new_api_stack", "multiagent", "class"})
"""Keys of RLlib's dicts, and of Tune's, that are no attributes."""


class WorldModelPPOConfig(WorldModelSections, PPOConfig):
    """Config of WorldModelPPO: RLlib's fluent config with two more sections.

    Everything of PPOConfig is there; ``.world_model()`` sets V, M and their data, ``.dreamers()`` imagination. Ranges
    are in `wm_rllib.settings`, which also maps the YAML keys to these attributes. The defaults are chosen for few real
    env steps on vector observations.
    """

    def __init__(self, algo_class: type | None = None):
        from wm_rllib.algorithm import WorldModelPPO  # the algorithm imports this module

        self._set_pixel_defaults()
        self._set_world_model_defaults()
        self._set_dreamer_defaults()
        super().__init__(algo_class=algo_class or WorldModelPPO)
        self._set_rllib_defaults()

    def _set_pixel_defaults(self) -> None:
        self.pixels_key = AS_IT_IS.key
        self.pixels_crop: Sequence[int] | None = AS_IT_IS.crop
        self.pixels_grayscale = AS_IT_IS.grayscale
        self.pixels_size: Sequence[int] | None = AS_IT_IS.size
        self.frame_skip = AS_IT_IS.frame_skip

    def _set_rllib_defaults(self) -> None:
        """Values of RLlib's own settings that fit small real batches; all can be changed as usual."""
        self.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        self.device = "auto"
        self.gpu_by_auto = False
        self.seed = 0
        self.wm_log_level = QUIET
        self.wm_run_name: str | None = None
        self.cluster_timeout_s = 40.0
        self.checkpoint_frequency = 10
        self.evaluation_interval_steps: int | None = None
        self.evaluation_interval_iterations: int | None = None
        self.evaluation_max_dream_steps: int | None = None
        self.policy_hidden_dims = [64, 64]
        self.env_runners(env_runner_cls=WorldModelEnvRunner, num_env_runners=0, num_envs_per_env_runner=4)
        self.training(
            train_batch_size_per_learner=64,
            minibatch_size=512,
            num_epochs=4,
            lr=1e-3,
            gamma=0.99,
            lambda_=0.95,
            clip_param=0.2,
            vf_clip_param=float("inf"),  # returns are in the environment's units: a clip would fit one scale only
            vf_loss_coeff=1.0,
            entropy_coeff=0.01,
            use_kl_loss=False,
        )
        self.learners(num_learners=0)
        self.evaluation(
            evaluation_duration=20,
            evaluation_duration_unit="episodes",
            custom_evaluation_function=evaluate_greedily,
            evaluation_config={"explore": False, "num_envs_per_env_runner": MAX_LANES},
        )
        self.resources(num_cpus_for_main_process=0.25)  # with remote learners it waits most of the time
        # RLlib would ask every env runner for its connectors' states after each iteration, and wait for one that hangs
        # or samples ahead. There is nothing in them: the weights come from the parameter server.
        self._dont_auto_sync_env_runner_states = True
        # 30 s would be paid in every iteration while a node is unreachable.
        self.fault_tolerance(
            restart_failed_env_runners=True,
            env_runner_health_probe_timeout_s=5.0,
            env_runner_restore_timeout_s=60.0,  # for one that hangs when it has just come back; RLlib's are 30 minutes
            delay_between_env_runner_restarts_s=1.0,
        )

    # --- sections ----------------------------------------------------------------------------------------------------

    def environment(
        self,
        env: Any = NotProvided,
        *,
        pixels_key: str | None = NotProvided,
        pixels_crop: Sequence[int] | None = NotProvided,
        pixels_grayscale: bool = NotProvided,
        pixels_size: Sequence[int] | None = NotProvided,
        frame_skip: int = NotProvided,
        **kwargs: Any,
    ) -> WorldModelPPOConfig:
        """RLlib's section, and what is done to the environment before V sees it, wherever it is made.

        The agent needs the same done in any other environment: `preprocess(env, policy.pixels)` of
        `wm_rllib.environments.pixels`.

        Args:
            env: See RLlib's `AlgorithmConfig.environment`; also an import path "package.module:EnvClass".
            pixels_key: Which image of a Dict observation to take, as ViZDoom's "screen"; None where observations are
                images.
            pixels_crop: Pixels to cut off the images, [top, bottom, left, right].
            pixels_grayscale: Whether to turn colours into one grey channel.
            pixels_size: [height, width] of the image that V sees, by area averaging; None to keep it.
            frame_skip: Steps of the environment for each action; rewards are summed, and an end stops it. A real step
                is then one action. For environments without such a setting of their own in `env_config`.
            **kwargs: See RLlib's `AlgorithmConfig.environment`.
        """
        super().environment(env, **kwargs)
        return self._update(
            {
                "pixels_key": pixels_key,
                "pixels_crop": pixels_crop,
                "pixels_grayscale": pixels_grayscale,
                "pixels_size": pixels_size,
                "frame_skip": frame_skip,
            }
        )

    def evaluation(
        self,
        *,
        evaluation_interval_steps: int | None = NotProvided,
        evaluation_interval_iterations: int | None = NotProvided,
        evaluation_max_dream_steps: int | None = NotProvided,
        **kwargs: Any,
    ) -> WorldModelPPOConfig:
        """RLlib's section, with intervals of this algorithm's own in place of `evaluation_interval`.

        Args:
            evaluation_interval_steps: Real env steps between evaluations in the mixed phase; None for none.
            evaluation_interval_iterations: Iterations of the mixed phase between evaluations; None for none. With both,
                an evaluation is due when either says so.
            evaluation_max_dream_steps: Longest dreamed episode of `evaluate_dream`; None: the environment's time limit
                where it has one.
            **kwargs: See RLlib's `AlgorithmConfig.evaluation`.
        """
        super().evaluation(**kwargs)
        return self._update(
            {
                "evaluation_interval_steps": evaluation_interval_steps,
                "evaluation_interval_iterations": evaluation_interval_iterations,
                "evaluation_max_dream_steps": evaluation_max_dream_steps,
            }
        )

    def training(self, *, policy_hidden_dims: list[int] = NotProvided, **kwargs: Any) -> WorldModelPPOConfig:
        """RLlib's section, and the controller's layers.

        Args:
            policy_hidden_dims: Hidden layers of the policy, and of the critic.
            **kwargs: See RLlib's `PPOConfig.training`.
        """
        super().training(**kwargs)
        return self._update({"policy_hidden_dims": policy_hidden_dims})

    def learners(self, *, device: str = NotProvided, **kwargs: Any) -> WorldModelPPOConfig:
        """RLlib's section, and where learners compute.

        Args:
            device: "cpu"; "cuda": a GPU for each learner; "auto": a GPU where this process sees one and learns itself
                (`num_learners=0`), else what `num_gpus_per_learner` says.
            **kwargs: See RLlib's `AlgorithmConfig.learners`.
        """
        super().learners(**kwargs)
        return self._update({"device": device})

    def resources(self, *, cluster_timeout_s: float = NotProvided, **kwargs: Any) -> WorldModelPPOConfig:
        """RLlib's section, and how long the cluster may take to grow.

        Args:
            cluster_timeout_s: Seconds that a cluster may take to have what is asked for before that is an error, for an
                autoscaler to start nodes; an Algorithm that Ray Tune runs waits as Tune does.
            **kwargs: See RLlib's `AlgorithmConfig.resources`.
        """
        super().resources(**kwargs)
        return self._update({"cluster_timeout_s": cluster_timeout_s})

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> WorldModelPPOConfig:
        """RLlib's method, which Ray Tune sets a trial's values by; a name that does not exist is an error here.

        RLlib would set it in silence, and a sweep over a name with a slip in it would compare equal trials.

        Raises:
            SettingError: For a setting that does not exist.
        """
        if not isinstance(config_dict, AlgorithmConfig):  # RLlib gives whole configs, too
            self._check_names(config_dict)
        updated: WorldModelPPOConfig = super().update_from_dict(config_dict)
        return updated

    def _check_names(self, given: Mapping[str, Any]) -> None:
        names = (self._translate_special_keys(name, warn_deprecated=False) for name in given)
        check_names(self, (name for name in names if name not in NOT_SETTINGS))

    # --- validation --------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Checks every setting alone (`wm_rllib.settings`) and together; raises ValueError before any actor starts."""
        check_attrs(self)
        if broken := broken_rule(self):
            self._value_error(broken)
        self._check_names(self._overrides_of_evaluation)
        load_class(self.vae_class, VariationalAutoencoder, "world_model.vae.class")
        load_class(self.mdn_rnn_class, MDNRNN, "world_model.mdn_rnn.class")
        self._choose_device()
        self._choose_lanes()
        if self.wm_log_level == QUIET:  # all other processes are told what this one's logger was
            self.wm_log_level = current_log_level()
        # RLlib would advise to leave the new API stack, which would be an error here.
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")
        # PPO wants minibatches no larger than the real rows; ours may be, since dreams fill them. An update's minibatch
        # is never larger than its merged batch (learners/calls.py).
        minibatch_size: int | None = getattr(self, "minibatch_size")  # noqa: B009  (mypy cannot see RLlib's attribute)
        self.minibatch_size = None
        try:
            super().validate()
        finally:
            self.minibatch_size = minibatch_size

    @property
    def _overrides_of_evaluation(self) -> dict[str, Any]:
        given: Any = getattr(self, "evaluation_config")  # noqa: B009  (mypy cannot see RLlib's attribute)
        return given if isinstance(given, dict) else {}  # RLlib also takes a whole config

    def _choose_lanes(self) -> None:
        """No more evaluation environments than an evaluation runner has episodes: some take long to step."""
        overrides = self._overrides_of_evaluation
        if overrides.get("num_envs_per_env_runner") == MAX_LANES:
            share = -(-self.evaluation_duration // max(1, self.evaluation_num_env_runners))
            self.evaluation_config = {**overrides, "num_envs_per_env_runner": min(MAX_LANES, share)}

    def _choose_device(self) -> None:
        """`device` in RLlib's terms: the learner's GPU. "auto" can only see the GPU of this process.

        A checkpoint may have come from a machine on which "auto" found one.
        """
        sees_one = self.device == "auto" and self.num_learners == 0 and torch.cuda.is_available()
        if self.gpu_by_auto and not sees_one:
            self.learners(num_gpus_per_learner=0)
            self.gpu_by_auto = False
        if (self.device == "cuda" or sees_one) and not self.num_gpus_per_learner:
            self.learners(num_gpus_per_learner=1)
            self.gpu_by_auto = sees_one

    @property
    def pixel_settings(self) -> PixelSettings:
        """What is done to the environment before V sees it."""
        return PixelSettings(
            self.pixels_key, self.pixels_crop, self.pixels_grayscale, self.pixels_size, self.frame_skip
        )

    @property
    def num_dreamers_to_place(self) -> int:
        """Dreamer actors that will exist: none when the ratio never asks for imagined rows."""
        return self.num_dreamers if may_dream(self.imagination_ratio) else 0

    @property
    def gate_bounds(self) -> Bounds:
        """What the gate may choose from."""
        low, high = self.imagination_ratio_bounds
        return Bounds(low, high, self.min_imagination_horizon, self.imagination_horizon)

    @property
    def transferred_parts(self) -> frozenset[str]:
        """What comes from another run."""
        return PARTS[self.transfer_parts] if self.transfer_from is not None else frozenset()

    @property
    def frozen_parts(self) -> frozenset[str]:
        """What of the world model is never trained."""
        frozen = self.transferred_parts - {CONTROLLER} if self.transfer_frozen else frozenset()
        return frozen | {MDN_RNN} if self.mdn_frozen else frozen

    @property
    def is_single_process(self) -> bool:
        """Whether nothing is remote."""
        return not (self.num_env_runners or self.num_dreamers_to_place or self.num_learners or self.replay_is_remote)

    @property
    def is_deterministic(self) -> bool:
        """Whether a run can be had twice: nothing is remote, and there is a seed."""
        return self.is_single_process and self.seed is not None

    @property
    def replay_is_remote(self) -> bool:
        """Whether the replay is an actor of its own."""
        if self.remote_replay is not None:
            return self.remote_replay
        return bool(self.num_env_runners or self.num_dreamers_to_place or self.num_learners)

    # --- what RLlib builds from this config --------------------------------------------------------------------------

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib's hook."""
        return RLModuleSpec(module_class=WorldModelPPOModule)

    def get_default_learner_class(self) -> type:
        """RLlib's hook."""
        return WorldModelPPOLearner

    def latent_dim_for(self, observation_space: gym.Space[Any]) -> int:
        """Z for this space, as configured or, with "auto", as `num_latents` has it."""
        if self.latent_dim == "auto":
            return num_latents(tuple(observation_space.shape or ()))
        return int(self.latent_dim)

    def world_model_config(self, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> WorldModelConfig:
        """The models' own settings, for these spaces (in env space)."""
        check_action_space(action_space)
        latent_dim = self.latent_dim_for(observation_space)
        vae = VAEConfig(
            tuple(observation_space.shape or ()),
            latent_dim,
            tuple(self.vae_hidden_dims),
            float(self.beta),
            tuple(self.vae_channels),
            float(self.vae_change_weight),
            self.vae_compile,
        )
        mdn_rnn = MDNRNNConfig(
            latent_dim=latent_dim,
            action_dim=ActionCodec(action_space, normalized=self.normalize_actions).dim,
            hidden_dim=self.mdn_hidden_dim,
            head_hidden_dims=tuple(self.mdn_head_hidden_dims),
            num_mixtures=self.num_mixtures,
            mixture=self.mdn_mixture,  # type: ignore[arg-type]  # checked in settings/settings.py
            residual=self.mdn_residual,
            ends_from=self.ends_from,  # type: ignore[arg-type]  # checked in settings/settings.py
            log_sigma_range=(float(self.log_sigma_range[0]), float(self.log_sigma_range[1])),
            input_noise=float(self.input_noise),
            nll_coeff=self.nll_coeff,
            reward_loss_coeff=self.reward_loss_coeff,
            termination_loss_coeff=self.termination_loss_coeff,
            termination_positive_weight=float(self.termination_positive_weight),
            shuffled_coeff=float(self.shuffled_coeff),
            ensemble_size=self.ensemble_size,
            temperature=float(self.temperature),
        )
        return WorldModelConfig(
            vae=vae,
            mdn_rnn=mdn_rnn,
            action_space=action_space,
            normalize_actions=bool(self.normalize_actions),
            clip_actions=bool(self.clip_actions),
            controller_inputs=self.controller_inputs,  # type: ignore[arg-type]  # checked in settings/settings.py
            vae_class=self.vae_class,
            mdn_rnn_class=self.mdn_rnn_class,
        )

    def build_env_to_module_connector(self, env: Any = None, spaces: Any = None, device: Any = None) -> Any:
        """RLlib's pipeline, with [z, h] computed first."""
        pipeline: ConnectorPipelineV2 = super().build_env_to_module_connector(env, spaces, device)
        observation_space, action_space = pipeline.input_observation_space, pipeline.input_action_space
        check_spaces(observation_space, action_space, default_v=self.vae_class is None)
        features = FeatureConnector(
            observation_space, action_space, config=self.world_model_config(observation_space, action_space)
        )
        pipeline.insert_before(AddObservationsFromEpisodesToBatch, features)
        return pipeline

    def get_rl_module_spec(self, *args: Any, **kwargs: Any) -> RLModuleSpec:
        """RLlib's spec of C."""
        return self._with_latents(super().get_rl_module_spec(*args, **kwargs))

    def _with_latents(self, controller: RLModuleSpec) -> RLModuleSpec:
        """C's spec, whose model config says how many of the inputs [z, h] are z."""
        if self.latent_dim == "auto" and controller.observation_space is not None:
            num_memory = self.mdn_hidden_dim if self.controller_inputs == "zh" else 0
            latent_dim = controller.observation_space.shape[0] - num_memory
            controller.model_config = {**controller.model_config, "latent_dim": latent_dim}
        return controller

    def get_multi_rl_module_spec(
        self, *, env: Any = None, spaces: Any = None, inference_only: bool = False, **kwargs: Any
    ) -> MultiRLModuleSpec:
        """RLlib's spec of C, and the world model as a learner-only module."""
        spec = super().get_multi_rl_module_spec(env=env, spaces=spaces, inference_only=inference_only, **kwargs)
        self._with_latents(spec.rl_module_specs[DEFAULT_MODULE_ID])
        if not inference_only:
            features = self._feature_connector(env, spaces)
            spec.add_modules(
                {
                    WORLD_MODEL_MODULE_ID: RLModuleSpec(
                        module_class=WorldModelRLModule,
                        observation_space=features.input_observation_space,
                        action_space=features.input_action_space,
                        model_config={
                            WORLD_MODEL_CONFIG: features.world_model.config,
                            PIXEL_SETTINGS: self.pixel_settings,
                        },
                        learner_only=True,
                    )
                }
            )
        return spec

    def _feature_connector(self, env: Any, spaces: Any) -> FeatureConnector:
        """The feature connector that env runners will have, for the spaces it was given."""
        known = spaces if spaces and INPUT_ENV_SINGLE_SPACES in spaces else None
        pipeline = self.build_env_to_module_connector(env=None if known else env, spaces=known)
        return next(piece for piece in pipeline.connectors if isinstance(piece, FeatureConnector))

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return super()._model_config_auto_includes | {
            "fcnet_hiddens": list(self.policy_hidden_dims),
            "latent_dim": self.latent_dim,
            NORMALIZE_ACTIONS: self.normalize_actions,
            "gamma": self.gamma,  # no layer needs it, but who reads the critic's values does
        }
