"""Which keys stand for which actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

from wm_rllib.look.names import action_names
from wm_rllib.spaces import ActionCodec

ARROWS = {2: ("ArrowLeft", "ArrowRight"), 3: ("ArrowLeft", "ArrowDown", "ArrowRight")}
"""Keys of action 0, 1, ... in small discrete spaces."""
LANDER = ("ArrowDown", "ArrowLeft", "ArrowUp", "ArrowRight")
"""Of four actions, as LunarLander has them: nothing, left, main and right engine."""
AXES = (("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"))
"""Least and most of a Box's first two dimensions."""
DIGITS = "0123456789"


class KeyMap:
    """Actions by the keys that are held.

    In a Discrete space a digit is its action, and arrows stand for the first few. In a MultiDiscrete one digits choose
    its first part's. In a Box arrows push the first two dimensions to their ends. The policy does the rest.

    Args:
        env_id: For names.
        codec: Of the action space.
    """

    def __init__(self, env_id: str, codec: ActionCodec):
        self._space = codec.action_space
        self._discrete: dict[str, int] = {}
        self._pushes: dict[str, tuple[int, float]] = {}
        self.help: list[tuple[str, str]] = []
        if isinstance(self._space, Box):
            self._take_box(self._space, codec)
        else:
            self._take_discrete(env_id, self._space)

    def _take_discrete(self, env_id: str, space: Any) -> None:
        size = int(space.n if isinstance(space, Discrete) else space.nvec[0])
        arrows = LANDER if size == 4 else ARROWS.get(size, ())
        for action, name in enumerate(action_names(env_id, size)):
            keys = [*arrows[action : action + 1], *DIGITS[action : action + 1]]
            self._discrete |= dict.fromkeys(keys, action)
            if keys:
                self.help.append((" or ".join(keys), name))

    def _take_box(self, space: Box, codec: ActionCodec) -> None:
        low = codec.env_to_policy(np.where(np.isfinite(space.low), space.low, -1.0).astype(np.float32))
        high = codec.env_to_policy(np.where(np.isfinite(space.high), space.high, 1.0).astype(np.float32))
        for dimension, (less, more) in enumerate(AXES[: space.shape[0]]):
            self._pushes[less] = dimension, float(low[dimension])
            self._pushes[more] = dimension, float(high[dimension])
            self.help.append((f"{less} and {more}", f"action {dimension} to its least and its most"))

    def action(self, keys: Sequence[str], choice: Tensor) -> Tensor | None:
        """The action in policy space that the keys ask for; None if they ask for nothing.

        Args:
            keys: Held keys, as browsers name them, the newest last.
            choice: The policy's own action, for what keys do not say.
        """
        if isinstance(self._space, Box):
            pushes = [self._pushes[key] for key in keys if key in self._pushes]
            action = choice.clone()
            for dimension, value in pushes:
                action[dimension] = value
            return action if pushes else None
        wanted = [self._discrete[key] for key in keys if key in self._discrete]
        if not wanted:
            return None
        if isinstance(self._space, MultiDiscrete):
            action = choice.clone()
            action[0] = wanted[-1]
            return action
        return torch.as_tensor(wanted[-1])
