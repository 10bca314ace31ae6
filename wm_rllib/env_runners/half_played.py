"""Episodes that a checkpoint finds under way, for the run that goes on from there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from wm_rllib.acting.connectors import Ongoing
from wm_rllib.environments.replayable import EpisodeSoFar


def without_features(chunk: SingleAgentEpisode) -> SingleAgentEpisode:
    """A delivered chunk without what would fill checkpoints: features, and what C said about them.

    RLlib's metrics ask for its length, return and duration, callbacks (`prev_episode_chunks`) for anything.
    """
    lean = copy.copy(chunk)
    lean.observations = InfiniteLookbackBuffer(np.zeros((len(chunk) + 1, 0), np.float32))
    lean.extra_model_outputs = {}
    return lean


@dataclass(frozen=True)
class HalfPlayed:
    """All that an env runner holds between two samples, but weights.

    Attributes:
        envs: How each environment came to where it is.
        episodes: RLlib's, on features, one an environment.
        earlier_chunks: What was delivered of them before, by the episode's id, without features.
        to_module: The next batch for C.
        shared_data: What RLlib's connectors tell each other.
        features: What the feature connector remembers.
    """

    envs: Sequence[EpisodeSoFar]
    episodes: Sequence[SingleAgentEpisode]
    earlier_chunks: dict[str, list[SingleAgentEpisode]]
    to_module: Any
    shared_data: Any
    features: Ongoing

    def shows(self, observations: np.ndarray) -> bool:
        """Whether environments that show `observations` [B, *O] are where these episodes are."""
        return all(
            np.array_equal(self.features.tracks[episode.id_].observations[-1], now)
            for episode, now in zip(self.episodes, observations, strict=True)
            if episode.is_reset
        )
