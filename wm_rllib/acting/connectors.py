"""Env-to-module connector: raw observations in, the controller's features [z, h] out.

Features are written back into the episode as its observation. The PPO module is then a plain network over a Box, real
and imagined rows have one form, and the bootstrap observation of a cut or truncated episode is right by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from wm_rllib.environments.errors import EnvironmentContractError
from wm_rllib.models.config import WorldModelConfig
from wm_rllib.models.conv_vae import FRAMES_AT_ONCE
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel
from wm_rllib.replay.fresh import Fresh

MAX_HISTORY = 1024
"""Steps of an ongoing episode kept for recomputing h after new weights arrived; older ones no longer shape h much."""


@dataclass
class Track:
    """One ongoing episode as the world model sees it, in the environment number `row`.

    observations holds o_{t0} .. o_t and actions a_{t0} .. a_{t-1} (policy space). latents holds z_{t0} .. z_t,
    [Z] each, of images: their V takes longer than all else.
    """

    row: int
    observations: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Ongoing:
    """What a connector remembers of ongoing episodes.

    Attributes:
        tracks: By the episode's id.
        z: [B, Z], all episodes' latents as of the last step.
        state: M's state then.
        needs_refresh: Whether images were left without latents.
    """

    tracks: dict[str, Track]
    z: torch.Tensor
    state: State
    needs_refresh: bool


class FeatureConnector(ConnectorV2):
    """Computes [z, h] with the runner's copy of V and M, and remembers the raw observations it replaces.

    It expects what RLlib's env runner gives: all ongoing episodes at every step, always in the order of their envs.

    Attributes:
        world_model: This process's copy, in eval mode.
        random_actions: Set while the env is driven by ``action_space.sample()``: those actions are in env space.
        fills_batch: Whether the batch gets the features [B, F] from here, and not from RLlib's pieces after this one.
        needs_refresh: Whether images were left without latents, since random actions need none.
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
        self.fills_batch = False
        self.needs_refresh = False
        self._tracks: dict[str, Track] = {}
        # All episodes' latents and states, a row each, as of the last step.
        self._z = torch.empty(0)
        self._state: State = self.world_model.mdn_rnn.initial_state(0)
        super().__init__(input_observation_space, input_action_space)

    def recompute_output_observation_space(self, *_: Any) -> gym.Space[Any]:
        """The Box of features, [F]."""
        return gym.spaces.Box(-np.inf, np.inf, (self.world_model.feature_dim,), np.float32)

    @torch.no_grad()
    def __call__(
        self,
        *,
        episodes: list[SingleAgentEpisode],
        batch: dict[str, Any],
        shared_data: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Advances every env by one step; `batch` gets the features if `fills_batch`."""
        started = [row for row, episode in enumerate(episodes) if episode.t == 0]
        tracks = [self._observe(row, episode) for row, episode in enumerate(episodes)]
        z = self._encode_newest(tracks)
        self._state = self._next_state(tracks, started)
        self._z = z
        features = self.world_model.features(z, self._state[0])
        for row in started:
            episodes[row].observation_space = self.observation_space
        for episode, values in zip(episodes, features.numpy(), strict=True):
            _replace_last_observation(episode, values)
        if self.fills_batch:
            batch[Columns.OBS] = features
            if shared_data is not None:
                # By it RLlib's module-to-env pieces tell which row is whose.
                shared_data["memorized_map_structure"] = [episode.id_ for episode in episodes]
        return batch

    def _encode_newest(self, tracks: list[Track]) -> torch.Tensor:
        """Latents [B, Z] of each episode's newest observation."""
        takes_frames = self.world_model.takes_frames
        if takes_frames and self.random_actions:
            self.needs_refresh = True
            z = torch.zeros(len(tracks), self.world_model.config.vae.latent_dim)
        else:
            newest = np.stack([track.observations[-1] for track in tracks])
            if not np.isfinite(newest).all():
                raise _not_finite("an observation", newest[~np.isfinite(newest)][0])
            z = self.world_model.vae.encode(torch.as_tensor(newest))
        if takes_frames:
            for track, latent in zip(tracks, z, strict=True):
                track.latents.append(latent)
        return z

    def _encode_all(self, track: Track, *, vae_changed: bool) -> torch.Tensor:
        """Latents [T + 1, Z] of an episode so far."""
        if self.world_model.takes_frames and not (vae_changed or self.needs_refresh):
            return torch.stack(track.latents)
        vae, observations = self.world_model.vae, torch.as_tensor(np.stack(track.observations))
        if not self.world_model.takes_frames:
            return vae.encode(observations)
        latents = torch.cat([vae.encode(part) for part in torch.split(observations, FRAMES_AT_ONCE)])
        track.latents = list(latents)
        return latents

    def _next_state(self, tracks: list[Track], started: list[int]) -> State:
        """The state after each episode's last action; of those that `started`, the initial one."""
        if len(started) == len(tracks):
            return self.world_model.mdn_rnn.initial_state(len(tracks))
        newest = [track.actions[-1] if track.actions else None for track in tracks]
        # Rows of episodes that started go through M with somebody else's action, and are overwritten.
        stand_in = next(action for action in newest if action is not None)
        actions = np.stack([stand_in if action is None else action for action in newest])
        h, c = self.world_model.advance(self._z, torch.as_tensor(actions), self._state)
        if started:
            h[started], c[started] = self.world_model.mdn_rnn.initial_state(len(started))
        return h, c

    @torch.no_grad()
    def refresh(self, episodes: list[SingleAgentEpisode], *, vae_changed: bool = True) -> torch.Tensor:
        """Encodes the last observation of ongoing episodes anew, with h from their own raw history.

        To be called after new weights were loaded: that observation was encoded by the old ones. Returns the features
        [B, F]; those of episodes not yet reset mean nothing.

        Args:
            episodes: The ongoing ones.
            vae_changed: Whether V is another one than before; if not, images keep their latents.
        """
        z, (h, c) = self._z.clone(), (self._state[0].clone(), self._state[1].clone())
        for row, episode in enumerate(episodes):
            if not episode.is_reset:
                continue
            track = self._tracks[episode.id_]
            latents = self._encode_all(track, vae_changed=vae_changed)
            state = self.world_model.mdn_rnn.initial_state(1)
            if track.actions:
                actions = self.world_model.codec.encode(torch.as_tensor(np.stack(track.actions)))
                _, state = self.world_model.mdn_rnn.unroll(latents[None, :-1], actions[None], state)
            z[row], h[row], c[row] = latents[-1], state[0][0], state[1][0]
        self._z, self._state = z, (h, c)
        self.needs_refresh = False
        features = self.world_model.features(z, h)
        for episode, values in zip(episodes, features.numpy(), strict=True):
            if episode.is_reset:
                _replace_last_observation(episode, values)
        return features

    def take_raw(
        self, episodes: list[SingleAgentEpisode], ongoing: list[SingleAgentEpisode], num_greedy: int = 0
    ) -> list[SingleAgentEpisode]:
        """The raw experience behind sampled chunks, for the replay; forgets what no ongoing episode needs.

        Its `custom_data`, and that of the chunks on features, says how it came about (`wm_rllib.replay.fresh.Fresh`).

        Args:
            episodes: Chunks that `sample` returned, on features, those of one environment in order.
            ongoing: The runner's ongoing episodes, which continue some of them.
            num_greedy: So many of the environments, the first ones, acted greedily.
        """
        raw = []
        steps_after: dict[int, int] = {}
        for episode in reversed(episodes):
            track = self._tracks[episode.id_]
            fresh = Fresh(len(episode), steps_after.get(track.row, 0), is_greedy=track.row < num_greedy)
            steps_after[track.row] = fresh.steps_after + fresh.length + 1  # and one for the reset before it
            raw.append(fresh.attach(_raw_chunk(episode, track)))
            fresh.attach(episode)
        raw.reverse()
        keep = {episode.id_ for episode in ongoing}
        self._tracks = {id_: track for id_, track in self._tracks.items() if id_ in keep}
        for track in self._tracks.values():
            del track.observations[: -MAX_HISTORY - 1], track.actions[:-MAX_HISTORY], track.latents[: -MAX_HISTORY - 1]
        return raw

    def get_ongoing(self) -> Ongoing:
        """What is remembered of the ongoing episodes, apart from the rest of this connector."""
        # Latents are views of whole batches, and each would be pickled with the whole.
        tracks = {
            id_: replace(track, latents=[z.clone() for z in track.latents]) for id_, track in self._tracks.items()
        }
        return Ongoing(tracks, self._z, self._state, self.needs_refresh)

    def set_ongoing(self, ongoing: Ongoing) -> None:
        """Goes on with them."""
        self._tracks, self._z, self._state = dict(ongoing.tracks), ongoing.z, ongoing.state
        self.needs_refresh = ongoing.needs_refresh

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing: the world model's weights come from the parameter server, not from runner to runner."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _observe(self, row: int, episode: SingleAgentEpisode) -> Track:
        """Appends the episode's newest raw observation, and the action that led to it, to its track."""
        if episode.t == 0:
            self._tracks[episode.id_] = Track(row)
        track = self._tracks[episode.id_]
        # Straight to the data: the episode's own getters cost some microseconds each.
        track.observations.append(episode.observations.data[-1])
        if episode.t > 0:
            action = np.asarray(episode.actions.data[-1])
            track.actions.append(self.world_model.codec.env_to_policy(action) if self.random_actions else action)
        return track


def _raw_chunk(episode: SingleAgentEpisode, track: Track) -> SingleAgentEpisode:
    """A sampled chunk on features, with the raw observations instead and without infos.

    Raises:
        ValueError: A reward is not a finite number.
    """
    length = len(episode)
    rewards = [float(r) for r in episode.get_rewards()]
    if not np.isfinite(rewards).all():
        raise _not_finite("a reward", next(r for r in rewards if not np.isfinite(r)))
    return SingleAgentEpisode(
        id_=episode.id_,
        observations=[np.array(o) for o in track.observations[-length - 1 :]],
        actions=[np.asarray(a) for a in track.actions[-length:]],
        rewards=rewards,
        infos=[{}] * (length + 1),
        terminated=episode.is_terminated,
        truncated=episode.is_truncated,
        t_started=episode.t_started,
        len_lookback_buffer=0,
    ).to_numpy()


def _not_finite(what: str, value: float) -> EnvironmentContractError:
    return EnvironmentContractError(
        f"the environment returned {what} of {value}, and nothing computed with it could be learned from. Fix: the "
        "environment, or a wrapper around it."
    )


def _replace_last_observation(episode: SingleAgentEpisode, features: np.ndarray) -> None:
    episode.observations.data[-1] = features
