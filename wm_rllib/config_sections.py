"""The two sections that `WorldModelPPOConfig` adds to RLlib's: `world_model` and `dreamers`, and their defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.rllib.algorithms.algorithm_config import NotProvided

from wm_rllib.mixing import AUTO, Ratio, Schedule
from wm_rllib.models.precision import FLOAT32

if TYPE_CHECKING:
    from wm_rllib.config import WorldModelPPOConfig


class WorldModelSections:
    """What V, M and imagination are configured by; see `wm_rllib.settings.table` for ranges and YAML keys."""

    def _set_world_model_defaults(self) -> None:
        self.controller_inputs = "zh"
        self.vae_class: str | type | None = None
        self.latent_dim: int | str = "auto"
        self.vae_hidden_dims = [64, 64]
        self.beta = 1e-4
        self.vae_lr = 1e-3
        self.vae_online_lr_fraction = 0.3
        self.vae_channels = [32, 64, 128, 256]
        self.vae_change_weight = 3.0
        self.vae_compile = False
        self.vae_batch_size = 128
        self.vae_pretrain_epochs = 10.0
        self.random_hold = 1
        self.replay_storage = "memory"
        self.replay_directory: str | None = None
        self.mdn_rnn_class: str | type | None = None
        self.mdn_hidden_dim = 64
        self.mdn_head_hidden_dims = [128]
        self.num_mixtures = 5
        self.mdn_mixture = "joint"
        self.ends_from = "transition"
        self.mdn_residual = True
        self.mdn_lr = 2e-3
        self.mdn_frozen = False
        self.log_sigma_range = [-3.0, 1.0]
        self.input_noise = 0.1
        self.nll_coeff = 0.1
        self.reward_loss_coeff = 1.0
        self.termination_loss_coeff = 5.0
        self.termination_positive_weight = 1.0
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
        self.random_collection_steps = 150
        self.online_collection = True
        self.replay_capacity = 100_000
        self.replay_max_gigabytes: float | None = None
        self.greedy_fraction = 0.5

    def _set_dreamer_defaults(self) -> None:
        self.num_dreamers = 0
        self.num_cpus_per_dreamer = 1.0
        self.num_gpus_per_dreamer = 0.0
        self.custom_resources_per_dreamer: dict[str, float] = {}
        self.dream_precision = FLOAT32
        self.num_cpus_for_replay = 0.25
        self.remote_replay: bool | None = None
        self.imagination_ratio: Ratio = 0.99
        self.imagination_ratio_bounds = [0.0, 0.99]
        self.imagination_horizon = 50
        self.min_imagination_horizon = 5
        self.max_disagreement: float | None = None
        self.exploration_bonus: float | Schedule = [[0, 0.1], [2000, 0.1], [8000, 0.0]]
        self.optimism: float | Schedule = [[0, 1.0], [2000, 1.0], [8000, 0.0]]
        self.temperature = 1.0
        self.num_dream_rounds: int | Schedule | str = AUTO
        self.dream_batch_size = 12_800
        self.burn_in = 15
        self.max_staleness = 1
        self.overlap = False
        self.max_dreams_in_flight = 2
        self.dreamer_timeout_s = 60.0

    def world_model(
        self,
        *,
        controller_inputs: str = NotProvided,
        vae_class: str | type | None = NotProvided,
        latent_dim: int | str = NotProvided,
        vae_hidden_dims: list[int] = NotProvided,
        beta: float = NotProvided,
        vae_lr: float = NotProvided,
        vae_online_lr_fraction: float = NotProvided,
        vae_channels: list[int] = NotProvided,
        vae_change_weight: float = NotProvided,
        vae_compile: bool = NotProvided,
        vae_batch_size: int = NotProvided,
        vae_pretrain_epochs: float = NotProvided,
        random_hold: int = NotProvided,
        replay_storage: str = NotProvided,
        replay_directory: str | None = NotProvided,
        mdn_rnn_class: str | type | None = NotProvided,
        mdn_hidden_dim: int = NotProvided,
        mdn_head_hidden_dims: list[int] = NotProvided,
        num_mixtures: int = NotProvided,
        mdn_mixture: str = NotProvided,
        ends_from: str = NotProvided,
        mdn_residual: bool = NotProvided,
        mdn_lr: float = NotProvided,
        mdn_frozen: bool = NotProvided,
        log_sigma_range: list[float] = NotProvided,
        input_noise: float = NotProvided,
        nll_coeff: float = NotProvided,
        reward_loss_coeff: float = NotProvided,
        termination_loss_coeff: float = NotProvided,
        termination_positive_weight: float = NotProvided,
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
        replay_max_gigabytes: float | None = NotProvided,
        greedy_fraction: float = NotProvided,
    ) -> WorldModelPPOConfig:
        """Sets V, M, their training and their data.

        Args:
            controller_inputs: "zh": C sees [z, h]; "z": the paper's ablation.
            vae_class: A subclass of `VariationalAutoencoder`, or its import path, in place of the default V.
            latent_dim: Z; "auto": as many as a vector has numbers, but 8 to 64, and 32 for images.
            vae_hidden_dims: Hidden sizes of V's encoder; the decoder mirrors them.
            beta: Weight of V's KL term.
            vae_lr: Learning rate of V.
            vae_online_lr_fraction: V's learning rate in the mixed phase, as a fraction of `vae_lr`: M and C have learnt
                its latents, and should not have to chase them.
            vae_channels: Of V's convolutions on images, each of which halves the frame.
            vae_change_weight: How much more a pixel of an image counts that changed since the frame before.
            vae_compile: Whether V's gradient steps on images go through torch.compile: 1.3 times as fast on an H200,
                for 20 s of compilation in each learner (docs/performance.md).
            vae_batch_size: Frames of a gradient step of V on images; vectors come in M's sequences.
            vae_pretrain_epochs: Passes over the randomly collected frames before the mixed phase; may be a fraction.
            random_hold: Steps that a random action is held for, drawn from 1 to this: held actions lead farther than
                fresh ones at every step, which cancel out.
            replay_storage: How the replay keeps images: "memory", "compressed" (LZ4, in memory) or "disk".
            replay_directory: Where "disk" puts its files, of which nothing is left after the run; None: where the
                system has its temporary files.
            mdn_rnn_class: A subclass of `MDNRNN`, or its import path, in place of the default M.
            mdn_hidden_dim: D, the LSTM's size.
            mdn_head_hidden_dims: Hidden sizes of M's head.
            num_mixtures: K.
            mdn_mixture: "joint" or "per_dimension" (the paper's code).
            ends_from: "transition": M reads ends off (z_t, a_t, z_{t+1}); "memory": off (h_{t+1}, z_t, a_t), as in the
                paper, for blank last observations or dangers out of sight, where thousands of ends were seen.
            mdn_residual: Whether M predicts z_{t+1} - z_t rather than z_{t+1}.
            mdn_lr: Learning rate of M.
            mdn_frozen: Whether M keeps its initial weights while V trains as ever: the ablation that says what training
                M is worth.
            log_sigma_range: Clip range of the mixture's log sigma, in units of one step's change (of a latent itself
                without `mdn_residual`).
            input_noise: Standard deviation of the noise on M's input in training, in the same units; 0: none.
            nll_coeff: Weight of the latent's likelihood in M's loss.
            reward_loss_coeff: Weight of the reward error.
            termination_loss_coeff: Weight of the termination cross-entropy.
            termination_positive_weight: How many times a terminating transition counts in it: more than 1 helps where
                ends are rare; predicted probabilities stay what they are.
            shuffled_coeff: Weight, in the termination loss, of transitions that are shuffled dimension by dimension and
                count as no termination: M believes in ends where it saw them, and not beyond. 0: none.
            ensemble_size: Members of the ensemble that says where M is unsure; 0 for none.
            transfer_from: Checkpoint of another run, in an environment with the same spaces, whose V and M this one
                starts with, units included.
            transfer_parts: "vm": V and M are taken over; "v": V alone; "vmc": C too, which then acts in the first
                `random_collection_steps` in place of random actions.
            transfer_frozen: Whether V and M keep those weights; otherwise they are trained on.
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
                Schedules of learning rates and entropy then go by imagined rows; others stand still from the end of the
                random phase on.
            replay_capacity: Env steps the replay holds.
            replay_max_gigabytes: What images may take (10^9 bytes), as they are stored: whole episodes leave, oldest
                first, but for the newest. None: as much as `replay_capacity` steps take.
            greedy_fraction: Share of each env runner's environments, rounded down, that act greedily where most of a
                batch is imagined: M has to know where the policy leads that is evaluated and used. The policy learns
                nothing from their steps, the critic and the world model do.
        """
        return self._update(locals())

    def dreamers(
        self,
        *,
        num_dreamers: int = NotProvided,
        num_cpus_per_dreamer: float = NotProvided,
        num_gpus_per_dreamer: float = NotProvided,
        custom_resources_per_dreamer: dict[str, float] = NotProvided,
        dream_precision: str = NotProvided,
        num_cpus_for_replay: float = NotProvided,
        remote_replay: bool | None = NotProvided,
        imagination_ratio: Ratio = NotProvided,
        imagination_ratio_bounds: list[float] = NotProvided,
        imagination_horizon: int = NotProvided,
        min_imagination_horizon: int = NotProvided,
        max_disagreement: float | None = NotProvided,
        exploration_bonus: float | Schedule = NotProvided,
        optimism: float | Schedule = NotProvided,
        temperature: float = NotProvided,
        num_dream_rounds: int | Schedule | str = NotProvided,
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
            dream_precision: What dreamers multiply in: "float32", or "bfloat16", for processors with AVX512-BF16 or
                AMX and GPUs from Ampere on. It pays for large networks, an LSTM of some 256 units and more.
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
                steps, in units of the reward's scale; 0: none. Or a schedule.
            optimism: Dreamed rewards are so many standard deviations, over the ensemble's expectations, above what M
                expects, where those differ more than is usual on real steps; 0: none. Or a schedule.
            temperature: tau of M's mixture.
            num_dream_rounds: Dream-and-update rounds for each round of real steps, each with the newest policy; or a
                schedule [[timestep, value], ...], rounded. "auto": 6, and once an episode has terminated 18, from 500
                to 1,500 real steps falling to 6.
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

    def _update(self, arguments: dict[str, Any]) -> WorldModelPPOConfig:
        for name, value in arguments.items():
            if name != "self" and value is not NotProvided:
                setattr(self, name, value)
        return self  # type: ignore[return-value]
