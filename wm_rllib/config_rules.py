"""What must hold between settings, each of which is right by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from wm_rllib.environments.creation import NO_MULTI_AGENT, ONE_BY_ONE
from wm_rllib.mixing import AUTO, may_dream

_ONLINE = "online_collection = False (data_collection.online in YAML)"


def broken_rule(config: Any) -> str | None:
    """The first rule that a `WorldModelPPOConfig` breaks, with both values and the fix; None if it breaks none."""
    return next(_broken(config), None)


def _broken(config: Any) -> Iterator[str]:
    yield from _of_rllib(config)
    mode = gym.VectorizeMode(config.gym_env_vectorize_mode)
    if mode not in ONE_BY_ONE and not config.pixel_settings.is_neutral:
        yield (
            f"env.pixels and env.frame_skip wrap each environment, but gym_env_vectorize_mode = {mode.value!r} makes a "
            'vector at once. Fix: gym_env_vectorize_mode "sync", or wrap the vector yourself.'
        )
    if config.transfer_frozen and config.transfer_from is None:
        yield (
            "transfer_frozen = True keeps what comes from another run, but transfer_from = None names none. Fix: "
            "transfer_from a checkpoint, or transfer_frozen false."
        )
    yield from _of_replay(config)
    yield from _of_dreams(config)
    if not config.online_collection:
        yield from _of_dreams_alone(config)
    if config.overlap and not config.in_evaluation:  # evaluation env runners have a config of their own
        yield from _of_overlap(config)


def _of_rllib(config: Any) -> Iterator[str]:
    """Settings of RLlib's that would go wrong here, without a word."""
    if config.is_multi_agent:
        yield NO_MULTI_AGENT
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        yield (
            "enable_rl_module_and_learner and enable_env_runner_and_connector_v2 must stay True: this has none of "
            "RLlib's old API. Fix: leave .api_stack() out."
        )
    if config.num_aggregator_actors_per_learner:
        yield "num_aggregator_actors_per_learner must stay 0: with aggregators RLlib computes no GAE."
    yield from _of_connectors(config)
    if config.num_gpus_per_env_runner:
        yield (
            f"num_gpus_per_env_runner = {config.num_gpus_per_env_runner} must be 0: env runners compute V, M and C on "
            "the CPU. Fix: leave it out; num_gpus_per_learner and num_gpus_per_dreamer give GPUs to those who gain."
        )
    yield from _of_gpus(config)
    default = type(config)()
    yield from _of_classes(config, default)
    if config._overrides_of_evaluation.get("explore"):
        yield "evaluation_config explore = True is not supported: evaluations are greedy. Fix: leave it out."
    if config.evaluation_duration_unit != "episodes":
        yield (
            f"evaluation_duration_unit = {config.evaluation_duration_unit!r} must be 'episodes': evaluations play "
            "whole ones. Fix: evaluation_duration in episodes."
        )
    if config.batch_mode != "truncate_episodes" and not config.in_evaluation:  # RLlib's evaluations have it
        yield (
            f"batch_mode = {config.batch_mode!r} must be 'truncate_episodes': env runners are asked for steps, and cut "
            "episodes are bootstrapped. Fix: leave it out."
        )
    for name in ("min_time_s_per_iteration", "min_train_timesteps_per_iteration", "min_sample_timesteps_per_iteration"):
        if getattr(config, name):
            yield (
                f"{name} = {getattr(config, name)} has RLlib run several iterations as one, with the same seeds, and "
                "for ever where what it counts does not grow. Fix: leave it out; train_batch_size_per_learner sets "
                "an iteration's real steps."
            )
    yield from _of_controller(config, default)


def _of_controller(config: Any, default: Any) -> Iterator[str]:
    if config.model_config.get("use_lstm"):
        yield (
            "use_lstm = True gives C a memory of its own, which dreams do not carry along. M's h is its memory. Fix: "
            "use_lstm False."
        )
    if not config.policy_hidden_dims:
        yield "policy_hidden_dims = [] must have a layer: RLlib builds no controller without one. Fix: [64]."
    ours, theirs = list(config.policy_hidden_dims), list(config.model_config["fcnet_hiddens"])
    if ours != theirs:
        yield (
            f"policy_hidden_dims = {ours} and fcnet_hiddens = {theirs} of rl_module's model_config both give the "
            f"controller's layers, and must be the same. Fix: .training(policy_hidden_dims={theirs}), or "
            "model_config as a dict of what you change (DefaultModelConfig has layers of its own)."
        )
    if config.model != default.model:
        changed = sorted(name for name in config.model if config.model[name] != default.model.get(name))
        yield (
            f"model = {{{', '.join(f'{name!r}: {config.model[name]!r}' for name in changed)}}} is the old API's, and "
            "nothing reads it here. Fix: .training(policy_hidden_dims=...) for layers, .rl_module(model_config={...}) "
            "for the rest."
        )
    if config.clip_rewards:
        yield (
            f"clip_rewards = {config.clip_rewards} is the old API's, and nothing reads it here. Fix: "
            "gymnasium.wrappers.TransformReward around the environment."
        )
    if config.observation_filter != default.observation_filter:
        yield (
            f"observation_filter = {config.observation_filter!r} is the old API's, and nothing reads it here. Fix: "
            "leave it out; V has the units of observations from the random phase."
        )
    if config.train_batch_size != default.train_batch_size:
        yield (
            f"train_batch_size = {config.train_batch_size} is the old API's, and nothing reads it here. Fix: "
            "train_batch_size_per_learner, an iteration's real steps for each learner."
        )
    if config.model_config.get("vf_share_layers"):
        yield (
            "vf_share_layers = True would drown the policy's gradient: value losses are in the environment's units, "
            "and not clipped. (DefaultModelConfig has it, RLlib's PPO does not.) Fix: vf_share_layers=False."
        )


def _of_classes(config: Any, default: Any) -> Iterator[str]:
    """Parts of RLlib's that were exchanged for some that know nothing of V and M, or are never asked."""
    for name, given, own in (
        ("learner_class", config.learner_class, default.learner_class),
        ("env_runner_cls", config.env_runner_cls, default.env_runner_cls),
    ):
        if not (isinstance(given, type) and issubclass(given, own)):
            yield f"{name} = {given} must be a subclass of {own.__module__}.{own.__name__}. Fix: leave it out."
    if config.custom_evaluation_function is not default.custom_evaluation_function:
        yield (
            "custom_evaluation_function is not supported: evaluation env runners get V and M with each evaluation, and "
            "one of your own would play with random ones. Fix: algo.evaluate_return(), or algo.get_policy() in an "
            "environment of yours; callbacks have on_evaluate_end."
        )
    if config.input_ != "sampler" or config.output is not None:
        yield (
            "offline_data(input_=..., output=...) is not supported: the replay is filled by env runners, and raw "
            "episodes are in its checkpoint. Fix: leave it out."
        )


def _of_gpus(config: Any) -> Iterator[str]:
    """What Ray or NCCL would say no to only when actors start."""
    learner, dreamer = config.num_gpus_per_learner, config.num_gpus_per_dreamer
    if config.device == "cpu" and learner and not config.gpu_by_auto:
        yield (
            f"device = 'cpu' has learners compute on the CPU, but num_gpus_per_learner = {learner:g} asks for GPUs. "
            "Fix: num_gpus_per_learner 0, or device auto."
        )
    if config.num_learners > 1 and learner % 1:
        yield (
            f"num_gpus_per_learner = {learner:g} must be whole where num_learners = {config.num_learners}: NCCL has no "
            "two learners on one GPU. Fix: num_gpus_per_learner 1, or num_learners 1."
        )
    for name, amount in (("num_gpus_per_learner", learner), ("num_gpus_per_dreamer", dreamer)):
        if amount > 1 and amount % 1:
            yield f"{name} = {amount:g} must be whole above 1: Ray shares one GPU, not several. Fix: {amount // 1:g}."
    if dreamer and not config.num_dreamers:
        yield (
            f"num_gpus_per_dreamer = {dreamer:g} is for dreamers that are actors, but num_dreamers = 0 dreams in the "
            "algorithm's own process, on the CPU. Fix: num_dreamers of 1 or more, or num_gpus_per_dreamer 0."
        )


def _of_connectors(config: Any) -> Iterator[str]:
    """Connectors of the user's, which not all that acts or learns would go through."""
    if config._env_to_module_connector is not None:
        yield (
            "env_to_module_connector is not supported: evaluation and load_policy give V the environment's own "
            "observations. Preprocess them in a Gymnasium wrapper instead (examples/custom_env.py)."
        )
    if config._module_to_env_connector is not None:
        yield (
            "module_to_env_connector is not supported: dreams, evaluation and load_policy act without it. Change "
            "actions in a Gymnasium wrapper instead (gymnasium.ActionWrapper)."
        )
    if config._learner_connector is not None:
        yield (
            "learner_connector is not supported: only real rows would go through it, not imagined ones. Change rewards "
            "and observations in a Gymnasium wrapper instead (examples/custom_env.py)."
        )


def _of_replay(config: Any) -> Iterator[str]:
    if config.random_collection_steps > config.replay_capacity:
        yield (
            f"random_collection_steps = {config.random_collection_steps} must not exceed replay_capacity = "
            f"{config.replay_capacity}: the first random steps would be gone before V and M are fitted to them. Fix: "
            "raise replay_capacity, or lower random_collection_steps."
        )
    folder = config.replay_directory
    if folder is None:
        return
    if config.replay_storage != "disk":
        yield (
            f"replay_directory = {folder!r} is where replay_storage disk has its files, but replay_storage = "
            f"{config.replay_storage!r}. Fix: replay_storage disk, or replay_directory null."
        )
    elif not config.in_evaluation and not _is_writable(folder):
        yield f"replay_directory = {folder!r} is no folder that can be written to here. Fix: make it, or name another."


def _is_writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _of_dreams(config: Any) -> Iterator[str]:
    if config.imagination_ratio == AUTO and config.min_imagination_horizon > config.imagination_horizon:
        yield (
            f"min_imagination_horizon = {config.min_imagination_horizon} must not exceed imagination_horizon = "
            f"{config.imagination_horizon}. Fix: lower the one or raise the other."
        )
    if config.max_disagreement is not None and config.ensemble_size in (0, 1):
        yield (
            f"max_disagreement = {config.max_disagreement} cuts dreams where an ensemble disagrees, but "
            f"ensemble_size = {config.ensemble_size}. Fix: ensemble_size of 2 or more, or max_disagreement null."
        )


def _of_dreams_alone(config: Any) -> Iterator[str]:
    if config.imagination_ratio != 1.0:
        yield (
            f"{_ONLINE} leaves no real rows to learn from, but imagination_ratio = "
            f"{config.imagination_ratio} asks for them. Fix: imagination_ratio 1.0, or online_collection true."
        )
    if config.overlap and not config.in_evaluation:
        yield (
            f"{_ONLINE} takes no real steps beside which anything could run, but overlap = True. Fix: "
            "overlap false, or online_collection true."
        )
    if config.evaluation_interval_steps is not None and config.evaluation_interval_iterations is None:
        yield (
            f"evaluation_interval_steps = {config.evaluation_interval_steps} counts real steps, of which "
            f"{_ONLINE} takes no more after the random phase. Fix: evaluation_interval_iterations "
            "(evaluation.interval_iterations in YAML)."
        )


def _of_overlap(config: Any) -> Iterator[str]:
    if not config.num_env_runners:
        yield (
            "overlap = True has sampling run beside the learners, but num_env_runners = 0 samples in the algorithm's "
            "own process. Fix: num_env_runners of 1 or more, or overlap false."
        )
    if may_dream(config.imagination_ratio) and not config.num_dreamers:
        yield (
            "overlap = True has dreams run beside the learners, but num_dreamers = 0 dreams in the algorithm's own "
            "process. Fix: num_dreamers of 1 or more, or overlap false."
        )
    if not config.max_staleness:
        yield (
            "overlap = True learns from rows that are one iteration old, but max_staleness = 0 drops them. Fix: "
            "max_staleness of 1 or more, or overlap false."
        )
