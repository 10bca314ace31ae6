"""Every setting that YAML files, `--set` and the fluent config share: one table, one set of rules.

The table names each setting's YAML path, its attribute on `WorldModelPPOConfig` and what values it may have.
Defaults are not here: they live in `config.py` alone. Nothing here imports Ray, so that a mistake in a YAML
file is reported at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from wm_rllib.setting_types import (
    boolean,
    class_path,
    layer_sizes,
    mapping,
    number,
    number_or_infinity,
    number_or_schedule,
    number_or_schedule_or_word,
    number_or_word,
    number_range,
    one_of,
    resources,
    rule_of,
    text,
    whole,
    whole_numbers,
)

MAX_AUTO_RATIO = 0.999
"""With "auto" some real rows stay in every update: at ratio 1 nothing could tell the gate to close again."""


class SettingError(ValueError):
    """A setting that does not exist or has a value that is not allowed; the message is meant for the user."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        path: Dotted path in YAML, e.g. `world_model.vae.latent_dim`.
        attr: Attribute of `WorldModelPPOConfig`; None for a setting of the run alone (when to stop).
        type: `Annotated` pydantic type from `setting_types`.
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


SETTINGS: tuple[Setting, ...] = (
    *_section(
        "",
        ("seed", "seed", whole(0, optional=True), "Seed of everything random; null draws one."),
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
        ("latent_dim", "latent_dim", whole(1), "Size of the latent z."),
        ("hidden_dims", "vae_hidden_dims", layer_sizes(), "Hidden layers of the encoder; the decoder mirrors them."),
        ("beta", "beta", number(0), "Weight of the KL term."),
        ("learning_rate", "vae_lr", number_or_schedule(above=0), "Learning rate of V."),
        (
            "online_lr_fraction",
            "vae_online_lr_fraction",
            number(0, 1),
            "V's learning rate in the mixed phase, of that.",
        ),
        ("channels", "vae_channels", layer_sizes(), "Of V's convolutions on images; each halves the frame."),
        ("change_weight", "vae_change_weight", number(0), "How much more a changed pixel of an image counts."),
        ("batch_size", "vae_batch_size", whole(1), "Images of a gradient step of V."),
        ("pretrain_epochs", "vae_pretrain_epochs", number(0), "V's passes over the collected images."),
    ),
    *_section(
        "world_model.mdn_rnn.",
        ("class", "mdn_rnn_class", class_path(), "Import path of your own M."),
        ("hidden_dim", "mdn_hidden_dim", whole(1), "Size of the hidden state h."),
        ("head_hidden_dims", "mdn_head_hidden_dims", layer_sizes(), "Hidden layers between h and the heads."),
        ("num_mixtures", "num_mixtures", whole(1), "Gaussians in the mixture, K."),
        ("mixture", "mdn_mixture", one_of("joint", "per_dimension"), "One mixture over z, or one per dimension."),
        ("residual", "mdn_residual", boolean(), "Predict the change of z instead of the next z."),
        ("temperature", "temperature", number(above=0), "Temperature of the dream."),
        ("learning_rate", "mdn_lr", number_or_schedule(above=0), "Learning rate of M."),
        ("frozen", "mdn_frozen", boolean(), "Keep M's initial weights (an ablation); V still trains."),
        ("log_sigma_range", "log_sigma_range", number_range(), "Limits of log sigma."),
        ("input_noise", "input_noise", number(0), "Noise on M's input in training, of one step's change; 0: none."),
        ("reward_loss_coeff", "reward_loss_coeff", number(0), "Weight of the reward loss."),
        ("termination_loss_coeff", "termination_loss_coeff", number(0), "Weight of the termination loss."),
        ("shuffled_coeff", "shuffled_coeff", number(0), "Weight of shuffled transitions, which count as no end."),
        ("ensemble_size", "ensemble_size", whole(0), "Networks whose disagreement says where M is unsure; 0: none."),
        ("nll_coeff", "nll_coeff", number(above=0), "Weight of the latent's negative log-likelihood."),
    ),
    *_section(
        "world_model.transfer.",
        ("from", "transfer_from", text(optional=True), "Checkpoint of another run whose V and M to start with."),
        ("parts", "transfer_parts", one_of("v", "vm"), "What to take over of it: V alone, or V and M."),
        ("frozen", "transfer_frozen", boolean(), "Keep what was taken over as it is; false: train it on."),
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
            number_or_schedule_or_word(0, 1, "auto"),
            "Imagined share of the PPO batch; auto: the gate decides, from how well M predicts.",
        ),
        (
            "imagination_ratio_bounds",
            "imagination_ratio_bounds",
            number_range(0, MAX_AUTO_RATIO),
            "Least and largest ratio that auto may choose.",
        ),
        ("imagination_horizon", "imagination_horizon", whole(1), "Longest dream, in steps."),
        ("min_imagination_horizon", "min_imagination_horizon", whole(1), "Shortest horizon that auto may choose."),
        (
            "max_disagreement",
            "max_disagreement",
            number(above=0, optional=True),
            "Disagreement, of what is usual on real steps, above which dreams are cut; null: never.",
        ),
        (
            "exploration_bonus",
            "exploration_bonus",
            number(0),
            "Dreamed reward for trying what M is unsure of, in units of the reward's scale; 0: none.",
        ),
        (
            "optimism",
            "optimism",
            number(0),
            "Dreamed rewards are so many standard deviations, over the ensemble, above what M expects; 0: none.",
        ),
        ("num_dream_rounds", "num_dream_rounds", whole(1), "Dream-and-update rounds of an iteration."),
        ("dream_batch_size", "dream_batch_size", whole(1), "Rows of a PPO batch when the ratio is 1."),
        ("burn_in", "burn_in", whole(0), "Real steps that set h before a dream starts."),
        ("max_staleness", "max_staleness", whole(0), "Oldest dream that is still learned from, in iterations."),
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
        ("replay_storage", "replay_storage", one_of("memory", "compressed", "disk"), "How images are kept."),
        ("replay_directory", "replay_directory", text(optional=True), "Where the storage disk has its files."),
        ("greedy_fraction", "greedy_fraction", number(0, 1), "Share of the environments that act greedily."),
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
        ("train_batch_size_per_learner", "train_batch_size_per_learner", whole(1), "Real steps of an iteration."),
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
        ("kl_coeff", "kl_coeff", number(0), "First weight of that penalty."),
        ("kl_target", "kl_target", number(above=0), "KL at which its weight stays as it is."),
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


def _plain(value: Any) -> Any:
    """Return the value with numpy scalars and tuples, which Python callers use, as YAML would have them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _hint(setting: Setting, value: Any) -> str:
    """Return what to do about a wrong value."""
    adapter = setting.adapter
    if isinstance(value, float) and value.is_integer() and _allowed(adapter, int(value)):
        return f"write {int(value)}"
    if isinstance(value, str):
        for read in (int, float):
            try:
                if _allowed(adapter, read(value)):
                    return "write it without quotes"
            except ValueError:
                continue
    if not isinstance(value, list | dict) and _allowed(adapter, [value]):
        return f"write [{value}]"
    return f"correct {setting.path}, or remove it to get the default"


def _allowed(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def check_value(setting: Setting, value: Any, name: str | None = None) -> Any:
    """Return the value in the form in which YAML has it, or raise.

    Args:
        setting: The row of the table.
        value: What the user gave.
        name: What the user calls the setting; the YAML path if None.

    Raises:
        SettingError: Naming the key, the value, the rule and the fix.
    """
    value = _plain(value)
    try:
        return setting.adapter.validate_python(value)
    except ValidationError:
        rule, hint = rule_of(setting.type), _hint(setting, value)
        raise SettingError(f"{name or setting.path} is {value!r}, but must be {rule}. Fix: {hint}.") from None


def _is_search_space(value: Any) -> bool:
    # Tune puts its own objects where values will be; each trial's values are checked when it is built.
    return hasattr(value, "sample") or (isinstance(value, dict) and "grid_search" in value)


def check_attrs(config: Any) -> None:
    """Check every setting of a `WorldModelPPOConfig`; search spaces of Ray Tune are left alone.

    The environment is RLlib's to check: in Python it may also be a class or None. V and M may be classes as well.

    Raises:
        SettingError: For the first attribute that breaks its rule.
    """
    for setting in SETTINGS:
        if setting.attr is None or setting.attr == "env":
            continue
        value = getattr(config, setting.attr)
        if not _is_search_space(value) and not isinstance(value, type):
            name = setting.path if setting.attr == setting.leaf else f"{setting.attr} ({setting.path} in YAML)"
            check_value(setting, value, name)


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in BY_PATH:
            yield path, value
        elif path not in SECTIONS:
            raise SettingError(_unknown_message(path))
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif value is not None:  # an empty section is a section whose keys are commented out
            raise SettingError(f"{path} is {value!r}, but must be a section. Fix: {_children(path)}.")


def _children(section: str) -> str:
    keys = sorted({path[len(section) + 1 :].split(".")[0] for path in BY_PATH if path.startswith(f"{section}.")})
    return f"give it keys of its own ({', '.join(keys)})"


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def nearest_path(unknown: str) -> str | None:
    """Return the valid path or section that an unknown one most likely means, if there is one.

    A known name in the wrong section counts for more than letters in common, and RLlib's name of a setting
    (`lr`) leads to its path (`ppo.learning_rate`).
    """
    leaf = unknown.rpartition(".")[2]

    def score(path: str) -> tuple[float, float]:
        setting = BY_PATH.get(path)
        names = {path.rpartition(".")[2]} | ({setting.attr} if setting and setting.attr else set())
        return max(_similarity(leaf, name) for name in names), _similarity(unknown, path)

    best = max((*BY_PATH, *sorted(SECTIONS)), key=lambda path: (sum(score(path)), path in BY_PATH))
    return best if max(score(best)) >= 0.6 else None


def _unknown_message(path: str) -> str:
    nearest = nearest_path(path)
    if nearest:
        return f"unknown setting {path}. Fix: did you mean {nearest}?"
    top = sorted({setting.path.split(".")[0] for setting in SETTINGS})
    return f"unknown setting {path}. Fix: use one of the sections {', '.join(top)}."


def find_setting(path: str) -> Setting:
    """Return the setting of a dotted path.

    Raises:
        SettingError: If there is none; suggests the nearest.
    """
    if path in SECTIONS:
        raise SettingError(f"{path} is a section, not a setting. Fix: {_children(path)}.")
    if path not in BY_PATH:
        raise SettingError(_unknown_message(path))
    return BY_PATH[path]


def flat_tree(tree: Any) -> dict[str, Any]:
    """Return the values of a YAML tree by dotted path, not checked yet.

    Args:
        tree: What `yaml.safe_load` returns; None (an empty file) is an empty tree.

    Raises:
        SettingError: For an unknown key, or one that is given twice.
    """
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise SettingError(f"the settings are {tree!r}, but must be sections with keys. Fix: see tune_configs/.")
    values: dict[str, Any] = {}
    for path, value in _leaves(tree, ""):
        if path in values:
            raise SettingError(f"{path} is given twice. Fix: remove one of the two.")
        values[path] = value
    return values


def parse_tree(tree: Any) -> dict[str, Any]:
    """Return the checked values of a YAML tree by dotted path.

    Args:
        tree: What `yaml.safe_load` returns; None (an empty file) is an empty tree.

    Raises:
        SettingError: For an unknown key, a wrong type or a value out of range.
    """
    return {path: check_value(BY_PATH[path], value) for path, value in flat_tree(tree).items()}


def to_tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted path as a nested tree, in the order of the table; the inverse of `parse_tree`."""
    return to_nested({setting.path: values[setting.path] for setting in SETTINGS if setting.path in values})


def to_nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted path as a nested tree."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
