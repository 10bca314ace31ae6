"""Which Gymnasium spaces are supported, and how actions are written for the world model.

Three forms of an action appear in this package:

* *env space*: what ``env.step`` takes;
* *policy space*: what the policy's distribution samples and RLlib stores in episodes. It equals env space except for a
  bounded Box under ``normalize_actions=True``, where [-1, 1] stands for [low, high] and RLlib unsquashes (and clips) on
  the way to the env. Replay and dreams hold actions in policy space;
* *model input*: a flat float vector, one-hot for discrete parts. Only `ActionCodec.encode` makes it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from torch import Tensor

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete or Box with one axis"
SUPPORTED_OBSERVATIONS = "Box"

MAX_CHANNELS = 16
"""Of an image; more are a height or a width, in an image with its channels first."""

LEAST_OF_BOUNDS = 0.1
"""Of what bounds suggest a unit may be, by what was measured: [-1000, 1000] for what stays within 1 is a way to write
"any number", and in units of 100 V would not see it."""

LARGEST_BOUND = 1e4
"""Bounds beyond this are a way to write "none" (CartPole's velocities have 3.4e38)."""


def check_spaces(observation_space: gym.Space[Any], action_space: gym.Space[Any], *, default_v: bool = True) -> None:
    """Raises ValueError, in one clear message, unless the world model can handle both spaces.

    Args:
        observation_space: What V gets.
        action_space: In env space.
        default_v: Whether V is one of ours.
    """
    if isinstance(observation_space, Dict) and (images := _images_of(observation_space)):
        raise ValueError(
            f"observation space {observation_space} is not supported: it must be {SUPPORTED_OBSERVATIONS}. Fix: "
            f"env.pixels.key={images[0]} (pixels_key in Python) takes the image out of the Dict."
        )
    if not isinstance(observation_space, Box):
        raise ValueError(
            f"observation space {observation_space} is not supported: it must be {SUPPORTED_OBSERVATIONS}. Fix: wrap "
            "the environment in a Gymnasium wrapper that gives a Box observation, for example "
            "gymnasium.wrappers.FlattenObservation (Dict, Tuple, Discrete)."
        )
    shape = observation_space.shape
    if default_v and len(shape) == 2 and observation_space.dtype == np.uint8:
        raise ValueError(
            f"observation space of shape {shape} is not supported: the default V takes images as [H, W, C]. Fix: "
            "env.pixels.grayscale=true (pixels_grayscale in Python) gives them their channel."
        )
    if default_v and len(shape) == 3 and shape[0] in (1, 3, 4) and shape[1] == shape[2] > 4:
        raise ValueError(
            f"images of shape {shape} are not supported: their channels seem to come first, and V takes [H, W, C]. "
            "Fix: channels last, in a wrapper; or your own V (world_model.vae.class)."
        )
    if default_v and len(shape) not in (1, 3):
        raise ValueError(
            f"observation space of shape {shape} is not supported: the default V takes vectors (one axis) and images "
            "[H, W, C]. Fix: flatten the observation, or give your own V (world_model.vae.class) for this shape."
        )
    if default_v and len(shape) == 3 and observation_space.dtype != np.uint8:
        raise ValueError(
            f"images of {observation_space.dtype} are not supported: the default V takes uint8 in [0, 255]. Fix: a "
            "wrapper that gives whole numbers, or your own V (world_model.vae.class)."
        )
    if default_v and len(shape) == 3 and shape[-1] > MAX_CHANNELS:
        raise ValueError(
            f"images of shape {shape} are not supported: the default V takes [H, W, C], and {shape[-1]} channels are "
            f"more than {MAX_CHANNELS}. Fix: channels last, in a wrapper; or your own V (world_model.vae.class)."
        )
    check_action_space(action_space)


def _images_of(space: Dict) -> list[str]:
    """Names of what looks like an image in a Dict."""
    return [
        name
        for name, one in space.spaces.items()
        if isinstance(one, Box) and one.dtype == np.uint8 and len(one.shape) in (2, 3)
    ]


def check_action_space(action_space: gym.Space[Any]) -> None:
    """Raises ValueError unless dreams can be made with actions of this space."""
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    multi = isinstance(action_space, MultiDiscrete) and action_space.nvec.ndim == 1 and not action_space.start.any()
    box = (
        isinstance(action_space, Box)
        and len(action_space.shape) == 1
        and np.issubdtype(action_space.dtype, np.floating)
    )
    if not (discrete or multi or box):
        raise ValueError(
            f"action space {action_space} is not supported: it must be {SUPPORTED_ACTIONS} (discrete parts starting at "
            "0, Box of floats). Fix: wrap the environment with an ActionWrapper that maps to one of these."
        )
    if isinstance(action_space, Box):
        _check_bounds(action_space)


def _check_bounds(space: Box) -> None:
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    if (space.bounded_below & space.bounded_above & ~np.isfinite(width)).any():
        raise ValueError(
            f"action space {space} is not supported: the distance between its bounds is no number in float32. Fix: "
            "bounds that actions reach, in a wrapper (gymnasium.wrappers.TransformAction)."
        )


def is_half_bounded(space: gym.Space[Any]) -> bool:
    """Whether a Box has some bounds, but not all."""
    return (
        isinstance(space, Box)
        and bool((space.bounded_below | space.bounded_above).any())
        and not bool((space.bounded_below & space.bounded_above).all())
    )


def observation_scale(measured: np.ndarray, observation_space: gym.Space[Any]) -> np.ndarray:
    """Units of observations: as measured, but no less than the bounds suggest, up to ten times as much.

    A dimension that has not changed yet has the range of its bounds, and 1 at most: with 1 a sensor that stays within
    0.01 would never be seen, with a tenth of half its range the first touch of a leg, 0 or 1, would be 20 units away.

    Args:
        measured: [*O]; 0 where nothing has changed.
        observation_space: A Box.
    """
    suggested = scale_from_bounds(observation_space)
    unchanged = np.where(suggested > 0, np.minimum(20.0 * suggested, 1.0), 1.0)
    least = np.where(measured > 0, np.minimum(suggested, measured / LEAST_OF_BOUNDS), suggested)
    return np.maximum(np.where(measured > 0, measured, unchanged), least).astype(np.float32)


def too_far_from_zero(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Dimensions whose changes are lost in float32, which V computes in: indices into the flat observation.

    Args:
        mean: [*O], in float64.
        scale: [*O], units of observations.
    """
    return np.flatnonzero(np.abs(mean) * np.finfo(np.float32).eps > 0.01 * scale)


def scale_from_bounds(observation_space: gym.Space[Any]) -> np.ndarray:
    """The least scale, in each dimension, that a Box's bounds suggest: a tenth of half its range; 0 where it has none.

    Random actions visit a small part of most spaces: CartPole's cart stays within 0.4 of 4.8. A scale from that data
    alone would put what the policy reaches later dozens of standard deviations away from all that V has seen. But many
    bounds are never reached: LunarLander's speeds are below 1 and may be 10 by its space. With a third in place of a
    tenth, C hardly saw them, and the lander hovered.
    """
    assert isinstance(observation_space, Box)
    low, high = observation_space.low.astype(np.float64), observation_space.high.astype(np.float64)
    bounded = (np.abs(low) < LARGEST_BOUND) & (np.abs(high) < LARGEST_BOUND)
    return np.where(bounded, (np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)) / 20.0, 0.0).astype(
        np.float32
    )


class ActionCodec:
    """Writes actions of one space for the world model.

    Args:
        action_space: A Discrete, MultiDiscrete or one-axis Box space.
        normalized: RLlib's `normalize_actions`: whether policy space is [-1, 1] in a Box with bounds in all dimensions.
        clipped: RLlib's `clip_actions`, by which actions are clipped on their way to the environment where they are not
            normalised. Those that are normalised always are.

    Attributes:
        dim: A, the width of the model input.
        sizes: Categories of each discrete part; empty for a Box.
    """

    def __init__(self, action_space: gym.Space[Any], *, normalized: bool, clipped: bool = True):
        check_action_space(action_space)
        self.action_space = action_space
        self.sizes: tuple[int, ...] = ()
        if isinstance(action_space, Box):
            self.dim = int(action_space.shape[0])
            bounded = np.asarray(action_space.bounded_below & action_space.bounded_above)
            low = np.where(bounded, action_space.low, -1.0).astype(np.float32)
            high = np.where(bounded, action_space.high, 1.0).astype(np.float32)
            self._bounded, self._low, self._high = bounded, low, high
            # Of a dimension with one value alone, as of an actuator that is switched off, 1: it is divided by.
            self._width = np.where(high > low, high - low, 1.0).astype(np.float32)
            self._bounds_on: dict[torch.device, tuple[Tensor, ...]] = {}
            # RLlib unsquashes all dimensions or, if one of them has no bound, none.
            self._normalized = normalized and bool(bounded.all())
            self._clipped = self._normalized or (clipped and not normalized)
        else:
            sizes = [action_space.n] if isinstance(action_space, Discrete) else action_space.nvec  # type: ignore[attr-defined]
            self.sizes = tuple(int(size) for size in sizes)
            self.dim = int(sum(self.sizes))

    def env_to_policy(self, actions: np.ndarray) -> np.ndarray:
        """Maps env-space actions [..., A] (random ones, say) into policy space."""
        if self.sizes or not self._normalized:
            return actions
        unit = 2.0 * (actions - self._low) / self._width - 1.0
        return np.where(self._bounded, unit, actions).astype(np.float32)

    def encode(self, actions: Tensor) -> Tensor:
        """Model input of policy-space actions.

        Box actions are clipped where RLlib clips what the environment gets: the policy's Gaussian is unbounded, the
        env's reaction is not.

        Args:
            actions: Discrete [...] integers; MultiDiscrete [..., N] integers; Box [..., A] floats.

        Returns:
            [..., A] float32; in [-1, 1] on bounded Box dimensions, unless actions that are not clipped leave them.
        """
        if len(self.sizes) == 1 and isinstance(self.action_space, Discrete):
            return torch.nn.functional.one_hot(actions.long(), self.sizes[0]).float()
        if self.sizes:
            parts = [torch.nn.functional.one_hot(actions[..., i].long(), n) for i, n in enumerate(self.sizes)]
            return torch.cat(parts, dim=-1).float()
        low, _, width, bounded = self._bounds(actions.device)
        unit = actions.float()
        if not self._normalized:
            unit = torch.where(bounded, 2.0 * (unit - low) / width - 1.0, unit)
        return torch.where(bounded, unit.clamp(-1.0, 1.0), unit) if self._clipped else unit

    def decode(self, encoded: Tensor) -> Tensor:
        """Policy-space actions of model input [..., A]; the inverse of `encode` on what that returns."""
        if self.sizes:
            chosen = [part.argmax(-1) for part in torch.split(encoded, list(self.sizes), -1)]
            return chosen[0] if isinstance(self.action_space, Discrete) else torch.stack(chosen, -1)
        if self._normalized:
            return encoded
        low, high, _, bounded = self._bounds(encoded.device)
        return torch.where(bounded, low + 0.5 * (encoded + 1.0) * (high - low), encoded)

    def encode_into(self, actions: Tensor, out: Tensor) -> None:
        """As `encode`, for actions [B, ...], into out [B, A]; nothing in it waits for the device."""
        if not self.sizes:
            out.copy_(self.encode(actions))
            return
        chosen = actions.unsqueeze(-1) if isinstance(self.action_space, Discrete) else actions
        out.zero_()
        for part, index in zip(torch.split(out, list(self.sizes), -1), chosen.unbind(-1), strict=True):
            part.scatter_(-1, index.long().unsqueeze(-1), 1.0)

    def _bounds(self, device: torch.device) -> tuple[Tensor, ...]:
        """Low, high, width and which of them hold, [A] each: copied to a device once, as every copy waits for it."""
        if device not in self._bounds_on:
            arrays = (self._low, self._high, self._width, self._bounded)
            with torch.inference_mode(False):  # else a dream's would be refused by whoever wants gradients later
                self._bounds_on[device] = tuple(torch.as_tensor(array, device=device) for array in arrays)
        return self._bounds_on[device]
