"""Real states that a dream may start from: the replay of a checkpoint, or fresh episodes where it has none."""

from __future__ import annotations

import bisect
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from wm_rllib.dreamers.starts import read_replay
from wm_rllib.look.episodes import Episode, windows_at
from wm_rllib.models.stepping import Place
from wm_rllib.models.world_model import WorldModel
from wm_rllib.runs.errors import CommandError


class Starts:
    """Every step of some real episodes, by one number.

    Args:
        episodes: At least one of them with a step.
    """

    def __init__(self, episodes: Sequence[Episode]):
        self.episodes = [episode for episode in episodes if len(episode)]
        self._ends = list(itertools.accumulate(len(episode) for episode in self.episodes))

    def __len__(self) -> int:
        """How many steps there are."""
        return self._ends[-1]

    def at(self, index: int) -> tuple[int, int]:
        """The episode that a step belongs to, and its number in that one."""
        episode = bisect.bisect_right(self._ends, index)
        return episode, index - (self._ends[episode] - len(self.episodes[episode]))

    @torch.no_grad()
    def place(self, index: int, world_model: WorldModel, burn_in: int) -> Place:
        """Where a dream from that step starts, h from the real steps before it."""
        episode, t = self.at(index)
        z, state = windows_at([(self.episodes[episode], t)], burn_in, 1).start(world_model)
        return Place(z, state)


def stored_episodes(checkpoint: Path) -> list[Episode]:
    """The episodes that a checkpoint's replay holds; none if it has no replay.

    Raises:
        CommandError: If it cannot be read.
    """
    try:
        replay = read_replay(checkpoint)
    except FileNotFoundError:
        return []
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, AttributeError, ValueError) as error:
        raise CommandError(f"the replay of {checkpoint} cannot be read: {error}. Fix: another checkpoint.") from None
    return [
        Episode(
            replay.observations_of(episode), episode.actions.data, episode.rewards.data, bool(episode.is_terminated)
        )
        for episode in replay.episodes
    ]
