"""Env-to-module connector: raw observations in, the controller's features [z, h] out.

Features are written back into the episode as its observation. The PPO module is then a plain network over a Box, real
and imagined rows have one form, and the bootstrap observation of a cut or truncated episode is right by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from wm_rllib.models.config import WorldModelConfig
from wm_rllib.models.world_model import WorldModel

MAX_HISTORY = 1024
"""Steps of an ongoing episode kept for recomputing h after new weights arrived; older ones no longer shape h much."""


@dataclass
class _Track:
    """One ongoing episode as the world model sees it.

    observations holds o_{t0} .. o_t and actions a_{t0} .. a_{t-1} (policy space); `unflushed` of the observations'
    transitions have not gone to the replay yet.
    """

    state: tuple[torch.Tensor, torch.Tensor]
    observations: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    z: torch.Tensor | None = None


class FeatureConnector(ConnectorV2):
    """Computes [z, h] with the runner's copy of V and M, and remembers the raw observations it replaces.

    Attributes:
        world_model: This process's copy, in eval mode.
        random_actions: Set while the env is driven by ``action_space.sample()``: those actions are in env space.
    """

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        config: WorldModelConfig,
    ):
        self.world_model = WorldModel(config).eval()
        self.random_actions = False
        self._tracks: dict[str, _Track] = {}
        super().__init__(input_observation_space, input_action_space)

    def recompute_output_observation_space(self, *_: Any) -> gym.Space[Any]:
        """The Box of features, [F]."""
        return gym.spaces.Box(-np.inf, np.inf, (self.world_model.feature_dim,), np.float32)

    @torch.no_grad()
    def __call__(self, *, episodes: list[SingleAgentEpisode], batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Advances every env by one step; `batch` passes through."""
        tracks = [self._observe(episode) for episode in episodes]
        raw = torch.as_tensor(np.stack([track.observations[-1] for track in tracks]))
        z = self.world_model.vae.encode(raw)
        moved = [i for i, track in enumerate(tracks) if track.z is not None]
        if moved:
            states = self.world_model.advance(
                torch.stack([tracks[i].z for i in moved]),  # type: ignore[misc]
                torch.as_tensor(np.stack([tracks[i].actions[-1] for i in moved])),
                _stack_states([tracks[i] for i in moved]),
            )
            for row, i in enumerate(moved):
                tracks[i].state = states[0][row], states[1][row]
        for track, latent in zip(tracks, z, strict=True):
            track.z = latent
        features = self.world_model.features(z, _stack_states(tracks)[0]).numpy()
        for episode, row in zip(episodes, features, strict=True):
            self._write(episode, row)
        return batch

    @torch.no_grad()
    def refresh(self, episodes: list[SingleAgentEpisode]) -> dict[int, np.ndarray]:
        """Encodes the last observation of ongoing episodes anew, with h from their own raw history.

        To be called after new weights were loaded: that observation was encoded by the old ones. Returns the features
        [F] by index into `episodes`; episodes not yet reset have none.
        """
        fresh = {}
        for index, episode in enumerate(episodes):
            track = self._tracks.get(episode.id_)
            if track is None or not episode.is_reset:
                continue
            z = self.world_model.vae.encode(torch.as_tensor(np.stack(track.observations)))
            state = self.world_model.mdn_rnn.initial_state(1)
            if track.actions:
                actions = self.world_model.codec.encode(torch.as_tensor(np.stack(track.actions)))
                _, state = self.world_model.mdn_rnn.unroll(z[None, :-1], actions[None], state)
            track.z, track.state = z[-1], (state[0][0], state[1][0])
            fresh[index] = self.world_model.features(z[-1], track.state[0]).numpy()
            self._write(episode, fresh[index])
        return fresh

    def take_raw(
        self, episodes: list[SingleAgentEpisode], ongoing: list[SingleAgentEpisode]
    ) -> list[SingleAgentEpisode]:
        """The raw experience behind sampled chunks, for the replay; forgets what no ongoing episode needs.

        Args:
            episodes: Chunks that `sample` returned, on features.
            ongoing: The runner's ongoing episodes, which continue some of them.
        """
        raw = []
        for episode in episodes:
            track = self._tracks[episode.id_]
            length = len(episode)
            raw.append(
                SingleAgentEpisode(
                    id_=episode.id_,
                    observations=[np.array(o) for o in track.observations[-length - 1 :]],
                    actions=[np.asarray(a) for a in track.actions[-length:]],
                    rewards=[float(r) for r in episode.get_rewards()],
                    infos=[{}] * (length + 1),
                    terminated=episode.is_terminated,
                    truncated=episode.is_truncated,
                    t_started=episode.t_started,
                    len_lookback_buffer=0,
                ).to_numpy()
            )
        keep = {episode.id_ for episode in ongoing}
        self._tracks = {id_: track for id_, track in self._tracks.items() if id_ in keep}
        for track in self._tracks.values():
            del track.observations[: -MAX_HISTORY - 1], track.actions[:-MAX_HISTORY]
        return raw

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing: the world model's weights come from the parameter server, not from runner to runner."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _observe(self, episode: SingleAgentEpisode) -> _Track:
        """Appends the episode's newest raw observation, and the action that led to it, to its track."""
        if episode.t == 0:
            h, c = self.world_model.mdn_rnn.initial_state(1)
            self._tracks[episode.id_] = _Track((h[0], c[0]))
        track = self._tracks[episode.id_]
        track.observations.append(episode.get_observations(-1))
        if episode.t > 0:
            action = np.asarray(episode.get_actions(-1))
            track.actions.append(self.world_model.codec.env_to_policy(action) if self.random_actions else action)
        return track

    def _write(self, episode: SingleAgentEpisode, features: np.ndarray) -> None:
        episode.set_observations(at_indices=-1, new_data=features)
        episode.observation_space = self.observation_space


def _stack_states(tracks: list[_Track]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([track.state[0] for track in tracks]), torch.stack([track.state[1] for track in tracks])
