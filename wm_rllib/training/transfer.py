"""Another run's V, M and C as the start of a run: what is taken over, and whether it fits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gymnasium.spaces import Box
from torch import Tensor

from wm_rllib.acting.policy import load_module, load_world_model
from wm_rllib.environments.pixels import AS_IT_IS, PixelSettings
from wm_rllib.models.config import WorldModelConfig
from wm_rllib.models.conv_vae import is_image
from wm_rllib.models.parts import MDN_RNN
from wm_rllib.models.world_model import WorldModel
from wm_rllib.rl_modules.world_model_module import PIXEL_SETTINGS

logger = logging.getLogger(__name__)

FROM = "world_model.transfer.from"


def transferred_weights(checkpoint: str | Path, parts: frozenset[str], own: WorldModelConfig) -> dict[str, Tensor]:
    """Weights and units of the chosen parts of another run's world model, by their names in `WorldModel`.

    Args:
        checkpoint: Folder of the other run's checkpoint.
        parts: Of `VAE` and `MDN_RNN`; what else is in it is not looked at.
        own: The settings of this run's world model.

    Raises:
        FileNotFoundError: The folder is no checkpoint of WorldModelPPO.
        ValueError: The spaces or sizes are others; the message names both.
    """
    try:
        source: WorldModel = load_world_model(checkpoint).world_model
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{FROM}: {error}") from None
    for what, theirs, ours in _differences(source.config, own, parts):
        raise ValueError(_does_not_fit(checkpoint, what, theirs, ours))
    weights = {name: value for name, value in source.state_dict().items() if name.partition(".")[0] in parts}
    expected = {name: value for name, value in WorldModel(own).state_dict().items() if name.partition(".")[0] in parts}
    if {name: value.shape for name, value in weights.items()} != {name: v.shape for name, v in expected.items()}:
        raise ValueError(
            f"{FROM} = {str(checkpoint)!r} does not fit: its networks have other layers than this run's. Fix: the same "
            "V and M classes (world_model.vae.class, world_model.mdn_rnn.class) in the same version."
        )
    return weights


def transferred_policy(checkpoint: str | Path, own: WorldModelConfig, hidden_dims: list[int]) -> dict[str, Tensor]:
    """Weights and units of another run's C, by their names in its module.

    Args:
        checkpoint: Folder of the other run's checkpoint.
        own: The settings of this run's world model.
        hidden_dims: Of this run's C.

    Raises:
        FileNotFoundError: The folder is no checkpoint of WorldModelPPO.
        ValueError: C's inputs, actions or layers are others; the message names both.
    """
    theirs, module = load_world_model(checkpoint).world_model.config, load_module(checkpoint)
    layers = list(module.model_config["fcnet_hiddens"])
    pairs = (
        ("world_model.controller_inputs", theirs.controller_inputs, own.controller_inputs),
        ("ppo.hidden_dims", layers, list(hidden_dims)),
    )
    for what, there, here in pairs:
        if there != here:
            raise ValueError(_does_not_fit(checkpoint, what, there, here))
    return dict(module.state_dict())


def warn_of_other_pictures(checkpoint: str | Path, own: PixelSettings) -> None:
    """Warns where the other run's V and M saw pictures that were made otherwise: of one size, they fit all the same."""
    theirs = load_world_model(checkpoint).model_config.get(PIXEL_SETTINGS, AS_IT_IS)
    if theirs != own:
        logger.warning("%s = %r saw pictures made by %s, this run's are made by %s", FROM, str(checkpoint), theirs, own)


def _does_not_fit(checkpoint: str | Path, what: str, theirs: Any, ours: Any) -> str:
    return (
        f"{FROM} = {str(checkpoint)!r} does not fit: {what} is {theirs!r} there and {ours!r} in this run. "
        "Fix: make them equal, or name another checkpoint."
    )


def _differences(
    theirs: WorldModelConfig, ours: WorldModelConfig, parts: frozenset[str]
) -> Iterator[tuple[str, Any, Any]]:
    """What does not fit: its name, there and here."""
    pairs = [
        ("the shape of observations", theirs.vae.observation_shape, ours.vae.observation_shape),
        ("world_model.vae.latent_dim", theirs.vae.latent_dim, ours.vae.latent_dim),
    ]
    layers = "channels" if is_image(ours.vae.observation_shape) else "hidden_dims"
    pairs.append((f"world_model.vae.{layers}", list(getattr(theirs.vae, layers)), list(getattr(ours.vae, layers))))
    if MDN_RNN in parts:
        pairs.append(("the action space", _actions(theirs), _actions(ours)))
        for name in (
            "hidden_dim",
            "head_hidden_dims",
            "num_mixtures",
            "mixture",
            "residual",
            "ensemble_size",
            "ends_from",
        ):
            pairs.append((f"world_model.mdn_rnn.{name}", getattr(theirs.mdn_rnn, name), getattr(ours.mdn_rnn, name)))
    return ((what, there, here) for what, there, here in pairs if there != here)


def _actions(config: WorldModelConfig) -> Any:
    """What must be equal of the action space: a Box's bounds may differ, as M sees actions in units of them."""
    space = config.action_space
    return f"Box of shape {space.shape}" if isinstance(space, Box) else space
