"""The table of settings: each one's YAML path, its attribute on `WorldModelPPOConfig`, and what values it may have.

Defaults are not here: they live in `config.py` and `config_sections.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from wm_rllib.mixing import LARGEST_MIXED_RATIO
from wm_rllib.settings.types import (
    boolean,
    class_path,
    layer_sizes,
    mapping,
    number,
    number_or_infinity,
    number_or_schedule,
    number_or_word,
    number_range,
    one_of,
    or_word,
    resources,
    text,
    whole,
    whole_numbers,
    whole_or_schedule,
)


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        path: Dotted path in YAML, e.g. `world_model.vae.latent_dim`.
        attr: Attribute of `WorldModelPPOConfig`; None for a setting of the run alone (when to stop).
        type: `Annotated` pydantic type from `wm_rllib.settings.types`.
        doc: One line for the user.
    """

    path: str
    attr: str | None
    type: Any
    doc: str

    @property
    def leaf(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Judges values."""
        return TypeAdapter(self.type)


def _section(prefix: str, *rows: tuple[str, str | None, Any, str]) -> tuple[Setting, ...]:
    return tuple(Setting(f"{prefix}{key}", attr, kind, doc) for key, attr, kind, doc in rows)


LARGEST_SEED = 2**31 - 1
"""RLlib adds numbers of workers and a million to it, and numpy takes 32 bits."""

SETTINGS: tuple[Setting, ...] = (
    *_section(
        "",
        ("seed", "seed", whole(0, LARGEST_SEED, optional=True), "Seed of everything random; null draws one."),
        ("device", "device", one_of("auto", "cpu", "cuda"), "Where the learners compute."),
    ),
    *_section(
        "env.",
        ("id", "env", text(), 'Gymnasium id, or "package.module:EnvClass".'),
        ("config", "env_config", mapping(), "Keyword arguments of the environment."),
        ("frame_skip", "frame_skip", whole(1), "Steps of the environment for each action, rewards summed."),
    ),
    *_section(
        "env.pixels.",
        ("key", "pixels_key", text(optional=True), 'Image of a Dict observation to take, e.g. "screen".'),
        (
            "crop",
            "pixels_crop",
            whole_numbers(0, "top", "bottom", "left", "right"),
            "Pixels to cut off the image's sides; null: none.",
        ),
        ("grayscale", "pixels_grayscale", boolean(), "Turn colours into one grey channel."),
        (
            "size",
            "pixels_size",
            whole_numbers(1, "height", "width"),
            "Size of the image that V sees, by area averaging; null: as it is.",
        ),
    ),
    *_section(
        "env_runners.",
        ("num_env_runners", "num_env_runners", whole(0), "Remote env runners; 0 samples in the driver."),
        ("num_envs_per_env_runner", "num_envs_per_env_runner", whole(1), "Environments in each env runner."),
        ("num_cpus_per_env_runner", "num_cpus_per_env_runner", number(0), "CPUs of each env runner."),
        (
            "custom_resources_per_env_runner",
            "custom_resources_per_env_runner",
            resources(),
            "Custom resources of each env runner: on which nodes it may run.",
        ),
        ("sample_timeout_s", "sample_timeout_s", number(above=0), "Longest wait for env runners that do not answer."),
    ),
    *_section(
        "world_model.vae.",
        ("class", "vae_class", class_path(), "Import path of your own V."),
        (
            "latent_dim",
            "latent_dim",
            or_word(whole(1), "auto"),
            "Size of the latent z; auto: as many as a vector has numbers, but 8 to 64, and 32 for images.",
        ),
        ("hidden_dims", "vae_hidden_dims", layer_sizes(), "Hidden layers of the encoder; the decoder mirrors them."),
        ("beta", "beta", number(0), "Weight of the KL term."),
        ("learning_rate", "vae_lr", number_or_schedule(above=0), "Learning rate of V."),
        (
            "online_lr_fraction",
            "vae_online_lr_fraction",
            number(0, 1),
            "V's learning rate in the mixed phase, as a fraction of vae.learning_rate.",
        ),
        (
            "channels",
            "vae_channels",
            layer_sizes(),
            "Channels of V's convolutions on images; each layer halves the frame.",
        ),
        ("change_weight", "vae_change_weight", number(0), "How much more a changed pixel of an image counts."),
        ("compile", "vae_compile", boolean(), "Whether V's gradient steps on images go through torch.compile."),
        ("batch_size", "vae_batch_size", whole(1), "Images of a gradient step of V."),
        ("pretrain_epochs", "vae_pretrain_epochs", number(0), "V's passes over the collected images."),
    ),
    *_section(
        "world_model.mdn_rnn.",
        ("class", "mdn_rnn_class", class_path(), "Import path of your own M."),
        ("hidden_dim", "mdn_hidden_dim", whole(1), "Size of the hidden state h."),
        ("head_hidden_dims", "mdn_head_hidden_dims", layer_sizes(), "Hidden layers between h and the heads."),
        ("num_mixtures", "num_mixtures", whole(1), "Gaussians in the mixture, K."),
        (
            "ends_from",
            "ends_from",
            one_of("transition", "memory"),
            "What tells M that a step ends the episode: the step alone, or h too.",
        ),
        ("mixture", "mdn_mixture", one_of("joint", "per_dimension"), "One mixture over z, or one per dimension."),
        ("residual", "mdn_residual", boolean(), "Predict the change of z instead of the next z."),
        ("temperature", "temperature", number(above=0), "Temperature of the dream."),
        ("learning_rate", "mdn_lr", number_or_schedule(above=0), "Learning rate of M."),
        ("frozen", "mdn_frozen", boolean(), "Keep M's initial weights (an ablation); V still trains."),
        (
            "log_sigma_range",
            "log_sigma_range",
            number_range(),
            "Limits of log sigma: of the predicted change a step or, where residual is false, of the latent.",
        ),
        (
            "input_noise",
            "input_noise",
            number(0),
            "Noise on M's input in training, in the same units; 0: none.",
        ),
        ("reward_loss_coeff", "reward_loss_coeff", number(0), "Weight of the reward loss."),
        ("termination_loss_coeff", "termination_loss_coeff", number(0), "Weight of the termination loss."),
        (
            "termination_positive_weight",
            "termination_positive_weight",
            number(1),
            "How many times an end of an episode counts in the termination loss.",
        ),
        ("shuffled_coeff", "shuffled_coeff", number(0), "Weight of shuffled transitions, which count as no end."),
        ("ensemble_size", "ensemble_size", whole(0), "Networks whose disagreement says where M is unsure; 0: none."),
        ("nll_coeff", "nll_coeff", number(above=0), "Weight of the latent's negative log-likelihood."),
    ),
    *_section(
        "world_model.transfer.",
        ("from", "transfer_from", text(optional=True), "Checkpoint of another run to start with."),
        ("parts", "transfer_parts", one_of("v", "vm", "vmc"), "What to take over of it: V, or V and M, or C too."),
        ("frozen", "transfer_frozen", boolean(), "Keep V and M as they were taken over; false: train them on."),
    ),
    *_section(
        "world_model.training.",
        ("pretrain_epochs", "pretrain_epochs", whole(0), "Passes over the collected sequences."),
        ("updates_per_step", "updates_per_step", number(0), "World-model gradient steps per real step, mixed phase."),
        ("final_lr_fraction", "fit_final_lr_fraction", number(0, 1), "Learning rates at a fit's end, as a fraction."),
        ("sequence_length", "sequence_length", whole(2), "Steps of a training sequence."),
        ("sequence_batch_size", "sequence_batch_size", whole(1), "Sequences of a gradient step."),
        (
            "precision",
            "precision",
            one_of("auto", "float32", "bfloat16"),
            "What learners multiply in; losses stay float32. auto: bfloat16 for V on images, on a GPU, else float32.",
        ),
        ("grad_clip", "world_model_grad_clip", number(above=0, optional=True), "Global gradient norm of V and M."),
        (
            "imagination_ratio",
            "imagination_ratio",
            or_word(number_or_schedule(0, 1), "auto"),
            "Imagined share of the PPO batch; auto: the gate decides, from how well M predicts.",
        ),
        (
            "imagination_ratio_bounds",
            "imagination_ratio_bounds",
            # Some real rows stay in every update: at ratio 1 nothing could tell the gate to close again.
            number_range(0, LARGEST_MIXED_RATIO),
            "Least and largest ratio that auto may choose.",
        ),
        ("imagination_horizon", "imagination_horizon", whole(1), "Longest dream, in steps."),
        ("min_imagination_horizon", "min_imagination_horizon", whole(1), "Shortest horizon that auto may choose."),
        (
            "max_disagreement",
            "max_disagreement",
            number(above=0, optional=True),
            "Dreams are cut where the ensemble disagrees more than this multiple of the usual; null: never.",
        ),
        (
            "exploration_bonus",
            "exploration_bonus",
            number_or_schedule(0),
            "Dreamed reward for trying what M is unsure of, in units of the reward's scale; 0: none.",
        ),
        (
            "optimism",
            "optimism",
            number_or_schedule(0),
            "Dreamed rewards are so many standard deviations, over the ensemble, above what M expects; 0: none.",
        ),
        (
            "num_dream_rounds",
            "num_dream_rounds",
            or_word(whole_or_schedule(1), "auto"),
            "Dream-and-update rounds of an iteration; auto: 6, and once an episode has terminated 18, from 500 to 1500 "
            "real steps falling to 6.",
        ),
        ("dream_batch_size", "dream_batch_size", whole(1), "Rows of a PPO batch when the ratio is 1."),
        ("burn_in", "burn_in", whole(0), "Real steps that set h before a dream starts."),
        ("max_staleness", "max_staleness", whole(0), "Oldest rows that are still learned from, in iterations."),
        (
            "overlap",
            "overlap",
            boolean(),
            "Sample and dream beside the learners' work; needs remote env runners and dreamers.",
        ),
        (
            "max_dreams_in_flight",
            "max_dreams_in_flight",
            whole(1),
            "With overlap, dream batches ordered before they are needed.",
        ),
        ("controller_inputs", "controller_inputs", one_of("zh", "z"), "What the controller sees."),
    ),
    *_section(
        "world_model.data_collection.",
        ("random_collection_steps", "random_collection_steps", whole(1), "Real steps with random actions at first."),
        (
            "online",
            "online_collection",
            boolean(),
            "Real steps in the mixed phase too; false: C learns in the dream alone, of the random phase's steps.",
        ),
        ("replay_capacity", "replay_capacity", whole(1), "Real steps that the replay holds."),
        (
            "replay_max_gigabytes",
            "replay_max_gigabytes",
            number(above=0, optional=True),
            "Most gigabytes of images, as stored, that the replay holds; null: only the capacity limits it.",
        ),
        ("random_hold", "random_hold", whole(1), "Steps that a random action is held for, at most."),
        ("replay_storage", "replay_storage", one_of("memory", "compressed", "disk"), "How images are kept."),
        ("replay_directory", "replay_directory", text(optional=True), "Where the storage disk has its files."),
        (
            "greedy_fraction",
            "greedy_fraction",
            number(0, 1),
            "Share of the environments that act greedily, for V, M and the critic.",
        ),
    ),
    *_section(
        "dreamers.",
        ("num_dreamers", "num_dreamers", whole(0), "Remote dreamers; 0 dreams in the driver."),
        ("num_cpus_per_dreamer", "num_cpus_per_dreamer", number(0), "CPUs of each dreamer."),
        ("num_gpus_per_dreamer", "num_gpus_per_dreamer", number(0), "GPUs of each dreamer."),
        (
            "custom_resources_per_dreamer",
            "custom_resources_per_dreamer",
            resources(),
            "Custom resources of each dreamer: on which nodes it may run.",
        ),
        (
            "precision",
            "dream_precision",
            one_of("float32", "bfloat16"),
            "What dreamers multiply in; bfloat16 pays for large networks, on processors that have it.",
        ),
        ("num_cpus_for_replay", "num_cpus_for_replay", number(0), "CPUs of the replay actor."),
        ("remote_replay", "remote_replay", boolean(optional=True), "Replay in an actor; null: if anything else is."),
        ("dreamer_timeout_s", "dreamer_timeout_s", number(above=0), "Longest wait for lost dreamers."),
    ),
    *_section(
        "ppo.",
        ("num_learners", "num_learners", whole(0), "Remote learners; 0 learns in the driver."),
        ("num_cpus_per_learner", "num_cpus_per_learner", number_or_word(0, "auto"), "CPUs of each learner."),
        ("num_gpus_per_learner", "num_gpus_per_learner", number(0), "GPUs of each learner."),
        (
            "num_cpus_for_main_process",
            "num_cpus_for_main_process",
            number(above=0),
            "CPUs of the main process.",
        ),
        (
            "train_batch_size_per_learner",
            "train_batch_size_per_learner",
            whole(1),
            "Real steps of an iteration, for each learner.",
        ),
        ("minibatch_size", "minibatch_size", whole(1, optional=True), "Rows of a PPO gradient step."),
        ("num_epochs", "num_epochs", whole(1), "Passes over each PPO batch."),
        ("learning_rate", "lr", number_or_schedule(above=0), "Learning rate of the controller."),
        ("gamma", "gamma", number(0, 1), "Discount."),
        ("lambda", "lambda_", number(0, 1), "Lambda of the advantage estimate."),
        ("clip_param", "clip_param", number(above=0), "Clipping of the policy ratio."),
        ("vf_clip_param", "vf_clip_param", number_or_infinity(above=0), "Clipping of the value loss; .inf is none."),
        ("vf_loss_coeff", "vf_loss_coeff", number(0), "Weight of the value loss."),
        ("entropy_coeff", "entropy_coeff", number_or_schedule(0), "Weight of the entropy bonus."),
        ("use_kl_loss", "use_kl_loss", boolean(), "Penalise the KL from the previous policy."),
        ("kl_coeff", "kl_coeff", number(0), "Initial weight of the KL penalty (use_kl_loss)."),
        ("kl_target", "kl_target", number(above=0), "KL at which the weight of the KL penalty stays as it is."),
        ("grad_clip", "grad_clip", number(above=0, optional=True), "Gradient clipping of the controller."),
        ("hidden_dims", "policy_hidden_dims", layer_sizes(), "Hidden layers of the controller."),
    ),
    *_section(
        "evaluation.",
        ("interval", "evaluation_interval_steps", whole(1, optional=True), "Real steps between evaluations."),
        (
            "interval_iterations",
            "evaluation_interval_iterations",
            whole(1, optional=True),
            "Iterations of the mixed phase between evaluations.",
        ),
        ("episodes", "evaluation_duration", whole(1), "Episodes of an evaluation."),
        (
            "max_dream_steps",
            "evaluation_max_dream_steps",
            whole(1, optional=True),
            "Longest dreamed episode of an evaluation in the dream; null: as the environment limits its own.",
        ),
        ("num_env_runners", "evaluation_num_env_runners", whole(0), "Remote evaluation runners; 0: the driver."),
        ("timeout_s", "evaluation_sample_timeout_s", number(above=0), "Longest wait for evaluation runners."),
    ),
    *_section(
        "stop.",
        ("total_timesteps", None, whole(1, optional=True), "Real steps after which the run ends."),
        ("iterations", None, whole(1, optional=True), "Iterations of the mixed phase after which the run ends."),
        ("return", None, number(optional=True), "Evaluation return, confirmed by a second one, that ends the run."),
    ),
    *_section(
        "cluster.",
        ("timeout_s", "cluster_timeout_s", number(0), "How long a cluster may take to have what is asked for."),
    ),
    *_section(
        "checkpoint.",
        ("frequency", "checkpoint_frequency", whole(1), "Iterations between checkpoints."),
    ),
)

BY_PATH: dict[str, Setting] = {setting.path: setting for setting in SETTINGS}
SECTIONS: frozenset[str] = frozenset(
    ".".join(parts[:depth])
    for parts in (setting.path.split(".") for setting in SETTINGS)
    for depth in range(1, len(parts))
)
