"""Frozen settings of V and M, built from the final algorithm config; models never see the algorithm config itself."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym

IMAGE_LATENTS = 32
"""The paper's, for 64 x 64 x 3."""
VECTOR_LATENTS = (8, 64)
"""Least and most for vectors. More latents than numbers do no harm: those that V does not need stay at their prior."""


def num_latents(observation_shape: tuple[int, ...]) -> int:
    """Z where nothing else is said: as many as a vector has numbers, within `VECTOR_LATENTS`; 32 for images."""
    if len(observation_shape) > 1:
        return IMAGE_LATENTS
    least, most = VECTOR_LATENTS
    return min(max(sum(observation_shape), least), most)


@dataclass(frozen=True)
class VAEConfig:
    """Settings of V. Defaults live in WorldModelPPOConfig."""

    observation_shape: tuple[int, ...]
    latent_dim: int
    hidden_dims: tuple[int, ...]
    beta: float
    """Weight of the KL term (Higgins et al. 2017); 0 makes V a plain autoencoder."""
    channels: tuple[int, ...] = ()
    """Of the convolutional layers, for images."""
    change_weight: float = 0.0
    """How much more a pixel counts that changed since the frame before, for images."""
    compiles: bool = False
    """Whether whoever fits V compiles its losses on images."""


@dataclass(frozen=True)
class MDNRNNConfig:
    """Settings of M. Defaults live in WorldModelPPOConfig."""

    latent_dim: int
    action_dim: int
    hidden_dim: int
    head_hidden_dims: tuple[int, ...]
    num_mixtures: int
    mixture: Literal["joint", "per_dimension"]
    """One mixture over the whole latent, or one per latent dimension as in the paper's code."""
    residual: bool
    """Whether means are predicted as offsets from z_t."""
    log_sigma_range: tuple[float, float]
    input_noise: float
    """Standard deviation of the noise on M's input in training, in units of one step's change, or of z if not
    `residual`."""
    shuffled_coeff: float
    """Weight of made-up transitions that count as no termination, of the real ones."""
    nll_coeff: float
    reward_loss_coeff: float
    termination_loss_coeff: float
    ensemble_size: int
    """Members of the ensemble that says where M is not to be trusted; 0 for none."""
    temperature: float = 1.0
    """What `imagine_rollout` and `DreamEnv` dream at unless they are told; checkpoints from before do not say."""
    termination_positive_weight: float = 1.0
    """How many times a termination counts in the termination loss; checkpoints from before do not say."""
    ends_from: Literal["transition", "memory"] = "transition"
    """What tells M that a step ends the episode: the step alone, or h too; see `MDNRNN`."""


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything needed to build a WorldModel, picklable and small."""

    vae: VAEConfig
    mdn_rnn: MDNRNNConfig
    action_space: gym.Space[Any]
    normalize_actions: bool
    clip_actions: bool
    controller_inputs: Literal["zh", "z"]
    vae_class: str | type | None = None
    mdn_rnn_class: str | type | None = None


def load_class(spec: str | type | None, default: type, setting: str) -> type:
    """Resolves a user's V or M class.

    Args:
        spec: None, a class, or an import path "package.module:Class" ("package.module.Class" works too).
        default: Returned for None; a given class must be a subclass of it.
        setting: Name of the setting, for error messages.

    Raises:
        ValueError: The path cannot be imported or is no subclass of `default`.
    """
    if spec is None:
        return default
    if isinstance(spec, str):
        module_name, _, class_name = spec.replace(":", ".").rpartition(".")
        try:
            loaded = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{setting} = {spec!r} cannot be imported ({error}). It must be an import path like "
                "'my_package.my_module:MyClass', importable in every process (PYTHONPATH or working_dir)."
            ) from error
    else:
        loaded = spec
    if not (isinstance(loaded, type) and issubclass(loaded, default)):
        raise ValueError(f"{setting} = {spec!r} must name a subclass of {default.__module__}.{default.__qualname__}.")
    return loaded
