"""Tiny V and M, and batches for them. No Ray."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_rllib.models import MDNRNNConfig, VAEConfig, WorldModel, WorldModelConfig
from wm_rllib.models.world_model import SequenceBatch
from wm_rllib.spaces import ActionCodec

OBSERVATION_DIM = 4
LATENT_DIM = 3
HIDDEN_DIM = 6


def vae_config(**changes: Any) -> VAEConfig:
    """V's settings, with some changed."""
    config = VAEConfig(observation_shape=(OBSERVATION_DIM,), latent_dim=LATENT_DIM, hidden_dims=(16,), beta=0.1)
    return dataclasses.replace(config, **changes)


def mdn_config(**changes: Any) -> MDNRNNConfig:
    """M's settings, with some changed."""
    config = MDNRNNConfig(
        latent_dim=LATENT_DIM,
        action_dim=2,
        hidden_dim=HIDDEN_DIM,
        head_hidden_dims=(16,),
        num_mixtures=4,
        mixture="joint",
        residual=True,
        log_sigma_range=(-6.0, 1.0),
        input_noise=0.0,
        nll_coeff=0.1,
        reward_loss_coeff=1.0,
        termination_loss_coeff=5.0,
        shuffled_coeff=0.0,
        ensemble_size=0,
    )
    return dataclasses.replace(config, **changes)


def world_model(
    action_space: gym.Space[Any] | None = None, *, mdn: dict[str, Any] | None = None, **changes: Any
) -> WorldModel:
    """V and M for an action space, Discrete(2) by default; `mdn` changes M's settings, the rest the model's own."""
    space = action_space or gym.spaces.Discrete(2)
    width = ActionCodec(space, normalized=True).dim
    config = WorldModelConfig(
        vae=vae_config(),
        mdn_rnn=mdn_config(**{"action_dim": width, **(mdn or {})}),
        action_space=space,
        normalize_actions=True,
        clip_actions=False,
        controller_inputs="zh",
    )
    return WorldModel(dataclasses.replace(config, **changes))


def sequences(lengths: list[int], time: int, *, seed: int = 0) -> SequenceBatch:
    """A random batch of rows with `lengths` real transitions out of `time`; each row's last one terminates."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    mask = np.arange(time)[None] < np.array(lengths)[:, None]
    terminateds = np.arange(time)[None] == np.array(lengths)[:, None] - 1
    return SequenceBatch(
        observations=torch.as_tensor(rng.normal(size=(rows, time + 1, OBSERVATION_DIM)).astype(np.float32)),
        actions=torch.as_tensor(rng.integers(2, size=(rows, time))),
        rewards=torch.as_tensor(rng.normal(size=(rows, time)).astype(np.float32)),
        terminateds=torch.as_tensor(terminateds),
        mask=torch.as_tensor(mask),
    )
