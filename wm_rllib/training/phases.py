"""The phases of training, one iteration of each: random collection, pretraining of the world model, mixed training."""

from __future__ import annotations

import logging
import math

import ray
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

from wm_rllib.actors.calling import call
from wm_rllib.env_runners.collection import RealExperience
from wm_rllib.learners.calls import on_learners
from wm_rllib.mixing import imagined_rows
from wm_rllib.models.parts import CONTROLLER, MDN_RNN, VAE, WHOLE
from wm_rllib.spaces import observation_scale, too_far_from_zero
from wm_rllib.training.fit_calls import Instalment
from wm_rllib.training.frame_fit import fit_on_frames
from wm_rllib.training.gating import choose_imagination
from wm_rllib.training.stages import Stages
from wm_rllib.training.state import Phase
from wm_rllib.training.transfer import transferred_policy, transferred_weights, warn_of_other_pictures

logger = logging.getLogger(__name__)

ENOUGH_HELD = 0.9
"""Of the random phase's steps; a few are lost with env runners that died."""
RANDOM_ROUND = 1000
"""Real steps of one iteration of the random phase, at least: they are cheap, and a line each would be noise."""
HOLDS_IN_A_ROUND = 4
"""In each environment, at least, of the longest that a random action is held."""


def collect_randomly(stages: Stages) -> None:
    """Steps the environments with random actions, or by another run's C; ends with `random_collection_steps`."""
    config, state = stages.config, stages.parts.state
    if config.transfer_from is not None and not state.transferred:
        take_over(stages)
    missing = config.random_collection_steps - state.num_env_steps
    chunk = max(RANDOM_ROUND, config.total_train_batch_size)
    if config.random_hold > 1:  # each round draws anew what is held
        num_envs = config.num_envs_per_env_runner * max(1, config.num_env_runners)
        chunk = max(chunk, HOLDS_IN_A_ROUND * config.random_hold * num_envs)
    if missing > 0:  # a resumed run may ask for fewer than there are
        stages.collect(min(missing, chunk), random_actions=CONTROLLER not in config.transferred_parts)
    if state.num_env_steps >= config.random_collection_steps:
        state.phase = Phase.PRETRAIN
        held = call(stages.parts.replay.service, "stats")["num_timesteps"]
        if held < ENOUGH_HELD * state.num_env_steps:
            logger.warning(
                "of %d steps of the random phase the replay holds the newest %d: raise replay_max_gigabytes or "
                "replay_capacity, or lower random_collection_steps",
                state.num_env_steps,
                held,
            )


def take_over(stages: Stages) -> None:
    """Gives V, M and maybe C the weights of another run, before the first real step.

    Raises:
        FileNotFoundError: `transfer_from` is no checkpoint.
        ValueError: It does not fit this run's spaces or sizes.
    """
    config, state = stages.config, stages.parts.state
    with_policy = CONTROLLER in config.transferred_parts
    warn_of_other_pictures(config.transfer_from, config.pixel_settings)
    own = config.world_model_config(*stages.parts.env_runners.get_spaces()[INPUT_ENV_SINGLE_SPACES])
    weights = transferred_weights(config.transfer_from, config.transferred_parts, own)
    policy_ref = None
    if with_policy:
        policy_ref = ray.put(transferred_policy(config.transfer_from, own, config.policy_hidden_dims))
    on_learners(stages.parts.learners, "take_over", weights_ref=ray.put(weights), policy_ref=policy_ref)
    state.transferred = True
    state.world_model_version += 1
    state.policy_version += with_policy
    stages.publish(policy=with_policy, world_model=True)


def pretrain(stages: Stages) -> None:
    """Fixes the units of observations and rewards, then fits V and M to the random experience, by instalments."""
    config, service, state = stages.config, stages.parts.replay.service, stages.parts.state
    if not state.pretraining:
        stats = call(service, "normalisation")
        stats["obs_scale"] = observation_scale(stats["obs_scale"], stages.observation_space)
        if len(lost := too_far_from_zero(stats["obs_mean"], stats["obs_scale"])):
            logger.warning(
                "observations %s change by so little, for how far from 0 they are, that float32 loses it. Fix: less "
                "of what they have in common, taken off in a Gymnasium wrapper.",
                lost.tolist()[:20],
            )
        on_learners(stages.parts.learners, "set_normalisation", stats=stats)
    steps = call(service, "stats")["num_timesteps"]
    sequences = -(-steps // config.sequence_length)
    updates = _updates(config.pretrain_epochs * sequences, config.sequence_batch_size * stages.num_shards)
    total, instalment, is_done = updates, Instalment(state.pretraining), True
    if stages.takes_frames and config.frozen_parts != WHOLE:
        frames = _updates(config.vae_pretrain_epochs * steps, config.vae_batch_size * stages.num_shards)
        total = (VAE not in config.frozen_parts) * frames + (MDN_RNN not in config.frozen_parts) * updates
        is_done = fit_on_frames(stages, frames, updates, 1.0, instalment)
        if is_done:
            stages.publish_world_model()
    elif updates and config.frozen_parts != WHOLE:
        is_done = stages.fit(updates, instalment)
    else:
        stages.publish(policy=False, world_model=True)  # the units
    done = sum(state.pretraining.values())
    stages.report.pretraining = {"done": 1.0 if is_done else done / max(1, total)}
    if is_done:
        state.phase, state.pretraining = Phase.MIXED, {}


def _updates(rows: float, batch_size: int) -> int:
    """Gradient steps in which so many rows are seen."""
    return math.ceil(rows / batch_size)


def train_mixed(stages: Stages) -> None:
    """Samples, fits, then runs `num_dream_rounds` rounds of dreaming and updating, each with the newest policy."""
    config = stages.config
    real = stages.collect(config.total_train_batch_size, random_actions=False)
    ratio, horizon = choose_imagination(stages, real)
    stages.report.configured_ratio = ratio
    stages.fit_owed()
    rows = config.dream_batch_size if ratio == 1.0 else imagined_rows(sum(real.rows), ratio)
    dream_and_update(stages, real, rows, ratio, horizon)


def train_in_dreams(stages: Stages) -> None:
    """The mixed phase without real steps: V and M have nothing new to learn, so that dreams and updates are left."""
    config = stages.config
    real = RealExperience.none(stages.num_shards)
    stages.report.configured_ratio = 1.0
    dream_and_update(stages, real, config.dream_batch_size, 1.0, config.imagination_horizon)


def dream_and_update(stages: Stages, real: RealExperience, rows: int, ratio: float, horizon: int) -> None:
    """`num_dream_rounds` rounds of dreams, `rows` of them in each, and updates."""
    # Without imagined rows a second round would be a second PPO update on the same real ones.
    num_rounds = stages.num_rounds if rows else 1
    for round_index in range(num_rounds):
        if stages.is_cut_short:
            return
        harvest = stages.dream(rows, horizon, round_index) if rows else None
        stages.update(real, harvest, rows, ratio, round_index, num_rounds)
