"""Configs so small that an algorithm is built and trained in seconds."""

from __future__ import annotations

from typing import Any

from wm_rllib import WorldModelPPOConfig

RANDOM_STEPS = 60
TRAIN_BATCH = 32
HORIZON = 5
ROUNDS = 2


def tiny_config(env: Any = "CartPole-v1", **overrides: Any) -> WorldModelPPOConfig:
    """A single-process config with every network, batch and phase cut down.

    Args:
        env: What `.environment()` takes.
        **overrides: Attributes of the config to set last, whichever section they belong to (`imagination_ratio=0.9`).
    """
    config = (
        WorldModelPPOConfig()
        .environment(env)
        .world_model(
            latent_dim=3,
            vae_hidden_dims=[16],
            mdn_hidden_dim=8,
            mdn_head_hidden_dims=[16],
            num_mixtures=2,
            sequence_length=8,
            sequence_batch_size=4,
            updates_per_step=0.25,
            pretrain_epochs=4,
            random_collection_steps=RANDOM_STEPS,
            replay_capacity=2000,
        )
        .dreamers(imagination_ratio=0.5, imagination_horizon=HORIZON, num_dream_rounds=ROUNDS, burn_in=4)
        .env_runners(num_envs_per_env_runner=1)
        .training(train_batch_size_per_learner=TRAIN_BATCH, minibatch_size=64, num_epochs=2)
        .evaluation(evaluation_duration=2)
        .debugging(seed=0, log_level="ERROR")
    )
    config.policy_hidden_dims = [16]
    config.device = "cpu"
    for name, value in overrides.items():
        if not hasattr(config, name):
            raise AttributeError(f"WorldModelPPOConfig has no {name}")
        setattr(config, name, value)
    return config
