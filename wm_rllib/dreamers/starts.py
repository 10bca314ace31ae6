"""Where dreams start: real steps, burned in; those of a `DreamEnv` from a checkpoint's replay."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow.fs
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from wm_rllib.columns import LATENTS, MASK
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel
from wm_rllib.replay.frame_store import FrameStore
from wm_rllib.replay.replay import Arrays, SequenceReplay
from wm_rllib.replay.service import REPLAY_FILE, read_into

Start = Literal["replay", "episode_start"]


class DreamStarts:
    """Draws start states for dreams.

    Args:
        checkpoint: Folder of a checkpoint.
        start: "replay": steps drawn evenly from all that is stored, with h from the real steps before them.
            "episode_start": the first observations of stored episodes, with h = 0.
        burn_in: Real steps that h is computed from, at most.

    Raises:
        ValueError: `start` is another word, or `burn_in` no whole number of at least 0; or no stored episode has its
            beginning any more.
        FileNotFoundError: The checkpoint has no replay.
    """

    def __init__(self, checkpoint: str | Path, start: Start, burn_in: int):
        if start not in get_args(Start):
            raise ValueError(f"start is {start!r}, but must be one of {', '.join(map(repr, get_args(Start)))}.")
        if isinstance(burn_in, bool) or not isinstance(burn_in, int) or burn_in < 0:
            raise ValueError(f"burn_in is {burn_in!r}, but must be a whole number of at least 0.")
        self._burn_in = burn_in
        self._replay = read_replay(checkpoint)
        self._first: np.ndarray | None = None
        if start == "episode_start":
            first = self._replay.first_observations()
            if not len(first):
                raise ValueError(
                    f"{checkpoint}: the replay holds no episode's beginning. Fix: start='replay', or a checkpoint "
                    "whose replay_capacity held whole episodes."
                )
            self._first = first

    def draw(self, world_model: WorldModel, count: int, rng: np.random.Generator) -> tuple[Tensor, State]:
        """Z [count, Z] and the states, [count, D] each, of starts drawn with `rng`."""
        with torch.no_grad():
            if self._first is not None:
                chosen = self._first[rng.integers(len(self._first), size=count)]
                return world_model.vae.encode(torch.as_tensor(chosen)), world_model.mdn_rnn.initial_state(count)
            self._replay.rng = rng
            arrays = self._replay.sample_starts(count, self._burn_in)
            return burned_in(world_model, arrays)


def burned_in(world_model: WorldModel, arrays: Arrays, dtype: torch.dtype = torch.float32) -> tuple[Tensor, State]:
    """Z [N, Z] and the state at the last step of each row of `SequenceReplay.sample_starts`.

    Args:
        world_model: V and M.
        arrays: Those rows.
        dtype: See `WorldModel.burn_in`.
    """
    device = world_model.device
    actions, mask = (torch.as_tensor(arrays[name]).to(device) for name in (Columns.ACTIONS, MASK))
    if LATENTS in arrays:
        return world_model.burn_in_latents(torch.as_tensor(arrays[LATENTS]).to(device), actions, mask, dtype)
    return world_model.burn_in(torch.as_tensor(arrays[Columns.OBS]).to(device), actions, mask, dtype)


def read_replay(checkpoint: str | Path) -> SequenceReplay:
    """The real experience that a checkpoint holds, to look at: its frames are read as they are asked for.

    Raises:
        FileNotFoundError: It holds none, or is no checkpoint.
    """
    path = Path(checkpoint) / "replay" / REPLAY_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{checkpoint} has no replay ({path.relative_to(checkpoint)}), and a dream needs real observations to "
            "start from. Fix: a whole checkpoint, as `train`, Tune or save_to_path write it."
        )
    replay = SequenceReplay(capacity=1, seed=None)
    read_into(replay, str(path.parent.resolve()), pyarrow.fs.LocalFileSystem(), FrameStore(), mapped=True)
    return replay
