"""WorldModelPPOConfig: every setting, its default, and what must hold between settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import AddObservationsFromEpisodesToBatch
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

from wm_rllib.config_rules import broken_rule
from wm_rllib.connectors import FeatureConnector
from wm_rllib.env_runner import WorldModelEnvRunner
from wm_rllib.evaluation import MAX_LANES
from wm_rllib.evaluation_runners import evaluate_greedily
from wm_rllib.gate import Bounds
from wm_rllib.learner import WorldModelPPOLearner
from wm_rllib.mixing import Ratio, may_dream
from wm_rllib.models.config import MDNRNNConfig, VAEConfig, WorldModelConfig, load_class
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.vae import VariationalAutoencoder
from wm_rllib.pixels import AS_IT_IS, PixelSettings
from wm_rllib.policy_module import WorldModelPPOModule
from wm_rllib.replay import WORLD_MODEL_MODULE_ID
from wm_rllib.settings import check_attrs
from wm_rllib.spaces import ActionCodec, check_action_space, check_spaces
from wm_rllib.transfer import MDN_RNN, PARTS
from wm_rllib.world_model_module import PIXEL_SETTINGS, WORLD_MODEL_CONFIG, WorldModelRLModule


class WorldModelPPOConfig(PPOConfig):
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

    def _set_world_model_defaults(self) -> None:
        self.controller_inputs = "zh"
        self.vae_class: str | type | None = None
        self.latent_dim = 8
        self.vae_hidden_dims = [64, 64]
        self.beta = 1e-4
        self.vae_lr = 1e-3
        self.vae_online_lr_fraction = 0.3
        self.vae_channels = [32, 64, 128, 256]
        self.vae_change_weight = 3.0
        self.vae_batch_size = 128
        self.vae_pretrain_epochs = 10.0
        self.replay_storage = "memory"
        self.replay_directory: str | None = None
        self.mdn_rnn_class: str | type | None = None
        self.mdn_hidden_dim = 64
        self.mdn_head_hidden_dims = [128]
        self.num_mixtures = 5
        self.mdn_mixture = "joint"
        self.mdn_residual = True
        self.mdn_lr = 2e-3
        self.mdn_frozen = False
        self.log_sigma_range = [-3.0, 1.0]
        self.input_noise = 0.1
        self.nll_coeff = 0.1
        self.reward_loss_coeff = 1.0
        self.termination_loss_coeff = 5.0
        self.shuffled_coeff = 0.1
        self.ensemble_size = 3
        self.transfer_from: str | None = None
        self.transfer_parts = "vm"
        self.transfer_frozen = False
        self.world_model_grad_clip: float | None = 10.0
        self.fit_final_lr_fraction = 0.1
        self.precision = "auto"
        self.sequence_length = 32
        self.sequence_batch_size = 32
        self.updates_per_step = 1.0
        self.pretrain_epochs = 300
        self.random_collection_steps = 300
        self.online_collection = True
        self.replay_capacity = 100_000
        self.greedy_fraction = 0.5

    def _set_dreamer_defaults(self) -> None:
        self.num_dreamers = 0
        self.num_cpus_per_dreamer = 1.0
        self.num_gpus_per_dreamer = 0.0
        self.custom_resources_per_dreamer: dict[str, float] = {}
        self.num_cpus_for_replay = 0.25
        self.remote_replay: bool | None = None
        self.imagination_ratio: Ratio = 0.99
        self.imagination_ratio_bounds = [0.0, 0.99]
        self.imagination_horizon = 50
        self.min_imagination_horizon = 5
        self.max_disagreement: float | None = None
        self.exploration_bonus = 0.1
        self.optimism = 1.0
        self.temperature = 1.0
        self.num_dream_rounds = 6
        self.dream_batch_size = 12_800
        self.burn_in = 15
        self.max_staleness = 1
        self.overlap = False
        self.max_dreams_in_flight = 2
        self.dreamer_timeout_s = 60.0

    def _set_rllib_defaults(self) -> None:
        """Values of RLlib's own settings that fit small real batches; all can be changed as usual."""
        self.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        self.device = "auto"
        self.seed = 0
        self.wm_log_level = "warning"
        self.wm_run_name: str | None = None
        self.cluster_timeout_s = 40.0
        self.checkpoint_frequency = 10
        self.evaluation_interval_steps: int | None = None
        self.evaluation_interval_iterations: int | None = None
        self.evaluation_max_dream_steps: int | None = None
        self.policy_hidden_dims = [64, 64]
        self.env_runners(env_runner_cls=WorldModelEnvRunner, num_env_runners=0, num_envs_per_env_runner=4)
        self.training(
            train_batch_size_per_learner=128,
            minibatch_size=512,
            num_epochs=4,
            lr=1e-3,
            gamma=0.99,
            lambda_=0.95,
            clip_param=0.2,
            vf_clip_param=1e9,  # returns are in the environment's units: a fixed clip would fit one scale only
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

        The agent needs the same done in any other environment: `preprocess(env, policy.pixels)` of `wm_rllib.pixels`.

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

    def world_model(
        self,
        *,
        controller_inputs: str = NotProvided,
        vae_class: str | type | None = NotProvided,
        latent_dim: int = NotProvided,
        vae_hidden_dims: list[int] = NotProvided,
        beta: float = NotProvided,
        vae_lr: float = NotProvided,
        vae_online_lr_fraction: float = NotProvided,
        vae_channels: list[int] = NotProvided,
        vae_change_weight: float = NotProvided,
        vae_batch_size: int = NotProvided,
        vae_pretrain_epochs: float = NotProvided,
        replay_storage: str = NotProvided,
        replay_directory: str | None = NotProvided,
        mdn_rnn_class: str | type | None = NotProvided,
        mdn_hidden_dim: int = NotProvided,
        mdn_head_hidden_dims: list[int] = NotProvided,
        num_mixtures: int = NotProvided,
        mdn_mixture: str = NotProvided,
        mdn_residual: bool = NotProvided,
        mdn_lr: float = NotProvided,
        mdn_frozen: bool = NotProvided,
        log_sigma_range: list[float] = NotProvided,
        input_noise: float = NotProvided,
        nll_coeff: float = NotProvided,
        reward_loss_coeff: float = NotProvided,
        termination_loss_coeff: float = NotProvided,
        shuffled_coeff: float = NotProvided,
        ensemble_size: int = NotProvided,
        transfer_from: str | None = NotProvided,
        transfer_parts: str = NotProvided,
        transfer_frozen: bool = NotProvided,
        world_model_grad_clip: float | None = NotProvided,
        fit_final_lr_fraction: float = NotProvided,
        precision: str = NotProvided,
        sequence_length: int = NotProvided,
        sequence_batch_size: int = NotProvided,
        updates_per_step: float = NotProvided,
        pretrain_epochs: int = NotProvided,
        random_collection_steps: int = NotProvided,
        online_collection: bool = NotProvided,
        replay_capacity: int = NotProvided,
        greedy_fraction: float = NotProvided,
    ) -> WorldModelPPOConfig:
        """Sets V, M, their training and their data.

        Args:
            controller_inputs: "zh": C sees [z, h]; "z": the paper's ablation.
            vae_class: A subclass of `VariationalAutoencoder`, or its import path, in place of the default V.
            latent_dim: Z.
            vae_hidden_dims: Hidden sizes of V's encoder; the decoder mirrors them.
            beta: Weight of V's KL term.
            vae_lr: Learning rate of V.
            vae_online_lr_fraction: V's learning rate in the mixed phase, as a fraction of `vae_lr`: M and C have learnt
                its latents, and should not have to chase them.
            vae_channels: Of V's convolutions on images, each of which halves the frame.
            vae_change_weight: How much more a pixel of an image counts that changed since the frame before.
            vae_batch_size: Frames of a gradient step of V on images; vectors come in M's sequences.
            vae_pretrain_epochs: Passes over the randomly collected frames before the mixed phase; may be a fraction.
            replay_storage: How the replay keeps images: "memory", "compressed" (LZ4, in memory) or "disk".
            replay_directory: Where "disk" puts its files, of which nothing is left after the run; None: where the
                system has its temporary files.
            mdn_rnn_class: A subclass of `MDNRNN`, or its import path, in place of the default M.
            mdn_hidden_dim: D, the LSTM's size.
            mdn_head_hidden_dims: Hidden sizes of M's head.
            num_mixtures: K.
            mdn_mixture: "joint" or "per_dimension" (the paper's code).
            mdn_residual: Whether M predicts z_{t+1} - z_t rather than z_{t+1}.
            mdn_lr: Learning rate of M.
            mdn_frozen: Whether M keeps its initial weights while V trains as ever: the ablation that says what training
                M is worth.
            log_sigma_range: Clip range of the mixture's log sigma, in units of one step's change.
            input_noise: Standard deviation of the noise on M's input in training, in units of a step's change; 0: none.
            nll_coeff: Weight of the latent's likelihood in M's loss.
            reward_loss_coeff: Weight of the reward error.
            termination_loss_coeff: Weight of the termination cross-entropy.
            shuffled_coeff: Weight, in the termination loss, of transitions that are shuffled dimension by dimension and
                count as no termination: M believes in ends where it saw them, and not beyond. 0: none.
            ensemble_size: Members of the ensemble that says where M is unsure; 0 for none.
            transfer_from: Checkpoint of another run, in an environment with the same spaces, whose V and M this one
                starts with, units included.
            transfer_parts: "vm": V and M are taken over; "v": V alone.
            transfer_frozen: Whether they keep those weights; otherwise they are trained on.
            world_model_grad_clip: Global norm to which V's and M's gradients are clipped, each; None for no clipping.
            fit_final_lr_fraction: Learning rates of V and M at each fit's end, as a fraction of those at its start.
            precision: What learners multiply in, in fits and in updates with dreams: "float32"; "bfloat16", by
                torch.autocast, with weights, losses, probabilities and values in float32; "auto": bfloat16 for V on
                images, on a GPU that has it in hardware, float32 elsewhere. An update without dreams is RLlib's own,
                in float32.
            sequence_length: Transitions in a training sequence.
            sequence_batch_size: Sequences in a gradient step.
            updates_per_step: World-model gradient steps for each real env step of the mixed phase.
            pretrain_epochs: Passes over the randomly collected sequences before the mixed phase.
            random_collection_steps: Real env steps with random actions at the beginning.
            online_collection: Whether the mixed phase takes real steps, too. Without, it only dreams and updates: V and
                M stay as pretraining left them, and C never sees a real reward. Needs an `imagination_ratio` of 1.
                Schedules, which go by real steps, then stand still from the end of the random phase on.
            replay_capacity: Env steps the replay holds.
            greedy_fraction: Share of each env runner's environments, rounded down, that act greedily where most of a
                batch is imagined: M has to know where the policy leads that is evaluated and used.
        """
        return self._update(locals())

    def dreamers(
        self,
        *,
        num_dreamers: int = NotProvided,
        num_cpus_per_dreamer: float = NotProvided,
        num_gpus_per_dreamer: float = NotProvided,
        custom_resources_per_dreamer: dict[str, float] = NotProvided,
        num_cpus_for_replay: float = NotProvided,
        remote_replay: bool | None = NotProvided,
        imagination_ratio: Ratio = NotProvided,
        imagination_ratio_bounds: list[float] = NotProvided,
        imagination_horizon: int = NotProvided,
        min_imagination_horizon: int = NotProvided,
        max_disagreement: float | None = NotProvided,
        exploration_bonus: float = NotProvided,
        optimism: float = NotProvided,
        temperature: float = NotProvided,
        num_dream_rounds: int = NotProvided,
        dream_batch_size: int = NotProvided,
        burn_in: int = NotProvided,
        max_staleness: int = NotProvided,
        overlap: bool = NotProvided,
        max_dreams_in_flight: int = NotProvided,
        dreamer_timeout_s: float = NotProvided,
    ) -> WorldModelPPOConfig:
        """Sets imagination: how much, how, and by whom.

        Args:
            num_dreamers: Dreamer actors; 0 dreams in the algorithm's own process.
            num_cpus_per_dreamer: CPUs to reserve for each.
            num_gpus_per_dreamer: Share of a GPU for each.
            custom_resources_per_dreamer: Amounts of Ray's custom resources for each: on which nodes it may run.
            num_cpus_for_replay: CPUs to reserve for the replay actor.
            remote_replay: Whether the replay is an actor; None: when any other part is.
            imagination_ratio: Imagined fraction of the merged batch, a schedule [[timestep, value], ...], or "auto":
                the gate chooses ratio and horizon in each iteration, from how well M predicts fresh experience.
            imagination_ratio_bounds: Least and largest ratio of "auto".
            imagination_horizon: H, steps of a dream; with "auto" the largest.
            min_imagination_horizon: With "auto" the least.
            max_disagreement: Dreams are cut, and bootstrapped, after a step on which the ensemble disagrees more than
                this many times as much as is usual on real steps; None: never.
            exploration_bonus: Dreamed reward for trying what the ensemble disagrees on more than is usual on real
                steps, in units of the reward's scale; 0: none.
            optimism: Dreamed rewards are so many standard deviations, over the ensemble's expectations, above what M
                expects, where those differ more than is usual on real steps; 0: none.
            temperature: tau of M's mixture.
            num_dream_rounds: Dream-and-update rounds for each round of real steps, each with the newest policy.
            dream_batch_size: Rows of an update when the ratio is 1 (there are no real rows to count from).
            burn_in: Real steps before a dream's start that h is computed from.
            max_staleness: Iterations that a fragment's weights may lag; older fragments are dropped and counted.
            overlap: Whether sampling and dreaming run beside the learners' work: an iteration takes as long as its
                slowest process, and learns from real and imagined rows that are an iteration older. Needs remote env
                runners and dreamers.
            max_dreams_in_flight: With `overlap`, dream batches that are ordered before they are needed; an iteration's
                rounds at most. Fewer are fresher, more keep dreamers busy while the world model is fitted.
            dreamer_timeout_s: How long a round waits for lost dreamers before it shrinks its real part instead.
        """
        return self._update(locals())

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

    def resources(self, *, cluster_timeout_s: float = NotProvided, **kwargs: Any) -> WorldModelPPOConfig:
        """RLlib's section, and how long the cluster may take to grow.

        Args:
            cluster_timeout_s: Seconds that a cluster may take to have what is asked for before that is an error, for an
                autoscaler to start nodes; an Algorithm that Ray Tune runs waits as Tune does.
            **kwargs: See RLlib's `AlgorithmConfig.resources`.
        """
        super().resources(**kwargs)
        return self._update({"cluster_timeout_s": cluster_timeout_s})

    def _update(self, arguments: dict[str, Any]) -> WorldModelPPOConfig:
        for name, value in arguments.items():
            if name != "self" and value is not NotProvided:
                setattr(self, name, value)
        return self

    # --- validation --------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Checks every setting alone (`wm_rllib.settings`) and together; raises ValueError before any actor starts."""
        check_attrs(self)
        if broken := broken_rule(self):
            self._value_error(broken)
        load_class(self.vae_class, VariationalAutoencoder, "world_model.vae.class")
        load_class(self.mdn_rnn_class, MDNRNN, "world_model.mdn_rnn.class")
        self._choose_device()
        # PPO wants minibatches no larger than the real rows; ours may be, since dreams fill them. An update's minibatch
        # is never larger than its merged batch (learner_calls.py).
        minibatch_size: int | None = getattr(self, "minibatch_size")  # noqa: B009  (mypy cannot see RLlib's attribute)
        self.minibatch_size = None
        try:
            super().validate()
        finally:
            self.minibatch_size = minibatch_size

    def _choose_device(self) -> None:
        """`device` in RLlib's terms: the learner's GPU. "auto" can only see the GPU of this process."""
        wants = self.device == "cuda" or (
            self.device == "auto" and self.num_learners == 0 and torch.cuda.is_available()
        )
        if wants and not self.num_gpus_per_learner:
            self.learners(num_gpus_per_learner=1)

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
        """What of the world model comes from another run."""
        return PARTS[self.transfer_parts] if self.transfer_from is not None else frozenset()

    @property
    def frozen_parts(self) -> frozenset[str]:
        """What of the world model is never trained."""
        frozen = self.transferred_parts if self.transfer_frozen else frozenset()
        return frozen | {MDN_RNN} if self.mdn_frozen else frozen

    @property
    def is_single_process(self) -> bool:
        """Whether nothing is remote: the deterministic setting."""
        return not (self.num_env_runners or self.num_dreamers_to_place or self.num_learners or self.replay_is_remote)

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

    def world_model_config(self, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> WorldModelConfig:
        """The models' own settings, for these spaces (in env space)."""
        check_action_space(action_space)
        vae = VAEConfig(
            tuple(observation_space.shape or ()),
            self.latent_dim,
            tuple(self.vae_hidden_dims),
            float(self.beta),
            tuple(self.vae_channels),
            float(self.vae_change_weight),
        )
        mdn_rnn = MDNRNNConfig(
            latent_dim=self.latent_dim,
            action_dim=ActionCodec(action_space, normalized=self.normalize_actions).dim,
            hidden_dim=self.mdn_hidden_dim,
            head_hidden_dims=tuple(self.mdn_head_hidden_dims),
            num_mixtures=self.num_mixtures,
            mixture=self.mdn_mixture,  # type: ignore[arg-type]  # checked in settings.py
            residual=self.mdn_residual,
            log_sigma_range=(float(self.log_sigma_range[0]), float(self.log_sigma_range[1])),
            input_noise=float(self.input_noise),
            nll_coeff=self.nll_coeff,
            reward_loss_coeff=self.reward_loss_coeff,
            termination_loss_coeff=self.termination_loss_coeff,
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
            controller_inputs=self.controller_inputs,  # type: ignore[arg-type]  # checked in settings.py
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

    def get_multi_rl_module_spec(
        self, *, env: Any = None, spaces: Any = None, inference_only: bool = False, **kwargs: Any
    ) -> MultiRLModuleSpec:
        """RLlib's spec of C, and the world model as a learner-only module."""
        spec = super().get_multi_rl_module_spec(env=env, spaces=spaces, inference_only=inference_only, **kwargs)
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
            "gamma": self.gamma,  # no layer needs it, but who reads the critic's values does
        }
