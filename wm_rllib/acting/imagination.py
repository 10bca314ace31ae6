"""What a user gives to imagine from: observations, histories and actions of the environment, checked and encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Everything drawn from torch's global generator inside depends on the seed alone, and nothing outside on it.

    Args:
        seed: None leaves the global generator as it is.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@torch.no_grad()
def start_states(world_model: WorldModel, start_obs: Any, history_actions: Any = None) -> tuple[Tensor, State]:
    """Z [B, Z] and the state of what a dream is to start from.

    Args:
        world_model: V and M, in eval mode.
        start_obs: One observation [*O] or B of them [B, *O]; with `history_actions` one history [L + 1, *O] or B of
            them [B, L + 1, *O], whose last observation is the start.
        history_actions: [L, ...] or [B, L, ...] in env space: what was done between those observations.

    Raises:
        ValueError: A shape or an action does not fit.
    """
    observations = np.asarray(start_obs)
    if history_actions is None:
        observations, _ = _batch(world_model, observations, "start_obs", "one observation")
        z = world_model.vae.encode(torch.as_tensor(observations))
        return z, world_model.mdn_rnn.initial_state(len(z))
    observations, one = _batch(world_model, observations, "start_obs", "one history", time="L + 1")
    batch = observations.shape[0], observations.shape[1] - 1
    actions = checked_actions(world_model.config.action_space, history_actions, batch, "history_actions", one=one)
    policy_actions = torch.as_tensor(world_model.codec.env_to_policy(actions))
    return world_model.burn_in(torch.as_tensor(observations), policy_actions, torch.ones(batch, dtype=torch.bool))


def _batch(
    world_model: WorldModel, array: np.ndarray, name: str, what: str, time: str | None = None
) -> tuple[np.ndarray, bool]:
    """Observations with a batch axis, and whether it had to be added.

    Args:
        world_model: V says what an observation is.
        array: What the user gave.
        name: What the user calls it.
        what: What it holds without a batch axis.
        time: Name of the length of the axis before an observation's own; None where there is none.
    """
    shape = world_model.config.vae.observation_shape
    ndim = len(shape) + (time is not None)
    if array.shape[array.ndim - len(shape) :] == shape and array.ndim in (ndim, ndim + 1) and array.size:
        return (array[None], True) if array.ndim == ndim else (array, False)
    alone = ([time] if time else []) + [str(size) for size in shape]
    raise ValueError(
        f"{name} has shape {list(array.shape)}, but must be {what} [{', '.join(alone)}] or a batch "
        f"[{', '.join(['B', *alone])}]. Fix: give the environment's own observations."
    )


def checked_actions(space: Any, actions: Any, batch: tuple[int, ...], name: str, *, one: bool = False) -> np.ndarray:
    """Actions of the environment [*batch, ...], checked, in the space's own dtype.

    Args:
        space: The environment's action space.
        actions: What the user gave.
        batch: Leading axes that they must have.
        name: What the user calls them.
        one: Whether the first of these axes, of size 1, may be left out.

    Raises:
        ValueError: The shape is another, or discrete actions are not in the space.
    """
    array = np.asarray(actions.cpu() if isinstance(actions, Tensor) else actions)
    if one and array.shape == (*batch[1:], *space.shape):
        array = array[None]
    if array.shape != (*batch, *space.shape):
        raise ValueError(
            f"{name} has shape {list(array.shape)}, but must have {[*batch, *space.shape]}. "
            f"Fix: give one action of {space} for each step."
        )
    if isinstance(space, Box):
        return array.astype(space.dtype)
    assert isinstance(space, Discrete | MultiDiscrete)
    sizes = space.n if isinstance(space, Discrete) else space.nvec
    if not (np.issubdtype(array.dtype, np.integer) and ((array >= 0) & (array < sizes)).all()):
        raise ValueError(f"{name} holds values that are no actions of {space}. Fix: whole numbers within it.")
    return array.astype(space.dtype)


def planned_actions(space: Any, actions: Any, num_starts: int, horizon: int | None) -> np.ndarray:
    """Actions [B, H, ...] of the environment to be dreamed, checked.

    Args:
        space: The environment's action space.
        actions: [B, H, ...]; [H, ...] too if B is 1.
        num_starts: B.
        horizon: H; None: as many as are given.

    Raises:
        ValueError: They do not fit.
    """
    axis = np.ndim(actions) - len(space.shape) - 1
    steps = np.shape(actions)[axis] if horizon is None and axis >= 0 else horizon
    return checked_actions(space, actions, (num_starts, steps or 1), "actions", one=num_starts == 1)


def check_dream_settings(horizon: Any, temperature: Any, num_samples: Any = 1) -> None:
    """Raises ValueError unless a dream of this length, temperature and number can be dreamed."""
    for name, value in (("horizon", horizon), ("num_samples", num_samples)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1.")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature!r}, but must be a number above 0.")
