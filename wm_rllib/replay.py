"""Replay of raw sequences: what V and M are fitted to, and where dreams start."""

from __future__ import annotations

import logging
import pickle
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

from wm_rllib.logs import set_log_level

logger = logging.getLogger(__name__)

WORLD_MODEL_MODULE_ID = "world_model"
MASK = "mask"
REPLAY_FILE = "replay.pkl"

MAX_WINDOW_NUMBERS, MIN_WINDOWS = 2**24, 8
"""Numbers in the observations of newest windows, beyond which there are fewer of them, and how few: whoever judges M on
them copies them several times, and windows of pictures would take gigabytes."""

Arrays = dict[str, np.ndarray]


class SequenceReplay(EpisodeReplayBuffer):
    """RLlib's `EpisodeReplayBuffer` of raw (not encoded) episodes, with the draws this algorithm needs.

    Bounded by `capacity` env steps: whole episodes leave, oldest first. Actions are in policy space (wm_rllib.spaces).
    RLlib leaves its generator unseeded and outside the checkpoint; here it is seeded and saved.
    """

    def __init__(self, capacity: int, seed: int | None):
        super().__init__(capacity=capacity)
        self.rng = np.random.default_rng(seed)
        self._newest: dict[str, int] = {}

    def add(self, episodes: list[SingleAgentEpisode]) -> None:
        """Adds chunks; one that does not go on where its episode's held part ended becomes a sequence of its own.

        Such a gap is left by a fragment that was lost with its env runner, or came after the sampling timeout.
        """
        self._newest = {}
        for episode in episodes:
            index = self.episode_id_to_index.get(episode.id_)
            if index is not None and self.episodes[index - self._num_episodes_evicted].t != episode.t_started:
                episode.id_ = f"{episode.id_}/{episode.t_started}"
            super().add(episode)
            self._newest[episode.id_] = self._newest.get(episode.id_, 0) + len(episode)

    def normalisation(self) -> dict[str, np.ndarray]:
        """Units of observations (*O) and rewards (scalars) from all that is held.

        An observation's scale is twice its standard deviation, so that most of it lies in [-1, 1]; a constant
        dimension, or constant reward, has scale 1. Rewards that end an episode have a scale of their own, their root
        mean square.
        """
        observations = np.concatenate([np.asarray(episode.get_observations()) for episode in self.episodes])
        rewards = np.concatenate([np.asarray(episode.get_rewards()) for episode in self.episodes])
        ends = np.cumsum([len(episode) for episode in self.episodes])
        last = np.zeros(len(rewards), bool)
        last[[end - 1 for end, episode in zip(ends, self.episodes, strict=True) if episode.is_terminated]] = True
        # In float64: sums in float32 give a constant dimension a spread of their rounding, far above the threshold.
        obs_mean, obs_scale = observations.mean(0, dtype=np.float64), 2.0 * observations.std(0, dtype=np.float64)
        usual = rewards[~last] if (~last).any() else rewards
        reward_scale = _positive(usual.std(dtype=np.float64))
        last_scale = np.sqrt(np.square(rewards[last], dtype=np.float64).mean()) if last.any() else reward_scale
        return {
            "obs_mean": obs_mean.astype(np.float32),
            "obs_scale": np.where(obs_scale > 1e-6, obs_scale, 1.0).astype(np.float32),
            "reward_mean": np.float32(usual.mean(dtype=np.float64)),
            "reward_scale": np.float32(reward_scale),
            "last_reward_scale": np.float32(_positive(last_scale)),
            # A hundredth of a termination more than were seen: none seen is no proof that there are none.
            "termination_rate": np.float32((last.sum() + 0.01) / (len(rewards) + 1.0)),
        }

    def sample_sequences(self, num_sequences: int, length: int) -> Arrays:
        """Sequences of up to `length` transitions, each within one episode, padded at the end.

        A sequence lies at random around a stored step drawn evenly; steps near either end of an episode are in somewhat
        fewer of them. Ends are not drawn more often than they come: M would believe in more of them than there are.

        Returns:
            obs [N, length + 1, *O], actions [N, length, ...], rewards, terminateds and mask [N, length].
        """
        windows = [self._window_around_random_step(length) for _ in range(num_sequences)]
        return self._gather(windows, length, align_end=False)

    def sample_starts(self, num_starts: int, burn_in: int) -> Arrays:
        """Observations to start dreams from, drawn evenly over all stored steps, with up to `burn_in` steps before.

        Returns:
            As `sample_sequences`, of length `burn_in`, but aligned at the end: obs[:, -1] is the start and padding
            comes first.
        """
        windows = []
        for episode, t in (self._random_step() for _ in range(num_starts)):
            windows.append((episode, max(0, t - burn_in), t))
        return self._gather(windows, burn_in, align_end=True)

    def first_observations(self) -> np.ndarray:
        """The first observations [N, *O] of all episodes whose beginning is stored."""
        whole = [episode for episode in self.episodes if not episode.t_started]
        return np.stack([_episode_arrays(episode)[0][0] for episode in whole]) if whole else np.empty(0)

    def newest_windows(self, num_windows: int, burn_in: int, horizon: int) -> Arrays | None:
        """Windows that start at steps of the newest `add`, drawn evenly, with the steps before them.

        There are `num_windows` of them, or fewer where observations are large.

        Returns:
            obs [N, burn_in + horizon + 1, *O], actions, rewards, terminateds and mask [N, burn_in + horizon]: step
            `burn_in` is the start, padding of what lies before comes first, padding of what lies after comes last. None
            if the newest `add` brought nothing: its episodes were lost with their env runner.
        """
        held = [(i, length) for i, length in self._newest.items() if length and i in self.episode_id_to_index]
        if not held:
            return None
        chunks = [(self.episodes[self.episode_id_to_index[i] - self._num_episodes_evicted], n) for i, n in held]
        lengths = np.array([length for _, length in chunks], float)
        numbers = (burn_in + horizon + 1) * _episode_arrays(chunks[0][0])[0][0].size
        num_windows = min(num_windows, max(MIN_WINDOWS, MAX_WINDOW_NUMBERS // numbers))
        before, after = [], []
        for index in self.rng.choice(len(chunks), size=num_windows, p=lengths / lengths.sum()):
            episode, length = chunks[index]
            t = len(episode) - 1 - int(self.rng.integers(length))
            before.append((episode, max(0, t - burn_in), t))
            after.append((episode, t, min(t + horizon, len(episode))))
        past, future = self._gather(before, burn_in, align_end=True), self._gather(after, horizon, align_end=False)
        joined = {name: np.concatenate([past[name], future[name]], 1) for name in past if name != Columns.OBS}
        joined[Columns.OBS] = np.concatenate([past[Columns.OBS][:, :-1], future[Columns.OBS]], 1)
        return joined

    def _random_step(self) -> tuple[SingleAgentEpisode, int]:
        index, t = self._indices[self.rng.integers(len(self._indices))]
        return self.episodes[index - self._num_episodes_evicted], t

    def _window_around_random_step(self, length: int) -> tuple[SingleAgentEpisode, int, int]:
        episode, t = self._random_step()
        start = max(0, t - int(self.rng.integers(length)))
        return episode, start, min(start + length, len(episode))

    def _gather(self, windows: list[Any], length: int, *, align_end: bool) -> Arrays:
        observations, actions, _ = _episode_arrays(windows[0][0])
        count = len(windows)
        out = {
            Columns.OBS: np.zeros((count, length + 1, *observations.shape[1:]), observations.dtype),
            Columns.ACTIONS: np.zeros((count, length, *actions.shape[1:]), actions.dtype),
            Columns.REWARDS: np.zeros((count, length), np.float32),
            Columns.TERMINATEDS: np.zeros((count, length), bool),
            MASK: np.zeros((count, length), bool),
        }
        for row, (episode, start, stop) in enumerate(windows):
            observations, actions, rewards = _episode_arrays(episode)
            at = length - (stop - start) if align_end else 0
            end = at + stop - start
            out[Columns.OBS][row, at : end + 1] = observations[start : stop + 1]
            out[Columns.ACTIONS][row, at:end] = actions[start:stop]
            out[Columns.REWARDS][row, at:end] = rewards[start:stop]
            out[MASK][row, at:end] = True
            if episode.is_terminated and stop == len(episode) and stop > start:
                out[Columns.TERMINATEDS][row, end - 1] = True
        return out

    def get_state(self) -> dict[str, Any]:
        """The whole buffer and its generator."""
        return {**super().get_state(), "_indices": list(self._indices), "rng": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self.episodes.clear()  # RLlib's buffer keeps what it holds, under the indices of the state, unless it is empty
        super().set_state({**state, "_indices": list(state["_indices"])})
        self.rng.bit_generator.state = state["rng"]


def _positive(scale: float) -> float:
    return float(scale) if scale > 1e-6 else 1.0


def _episode_arrays(episode: SingleAgentEpisode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Straight to the arrays: the episode's own getters cost 10 to 20 us a slice, and a fit needs thousands.
    return episode.observations.data, episode.actions.data, episode.rewards.data


class ReplayService:
    """`SequenceReplay` behind references: experience comes in and batches go out by ObjectRef (contract 8).

    An actor beside remote workers, a plain object in a single process.
    """

    def __init__(self, capacity: int, seed: int | None, log_level: str = "warning"):
        set_log_level(log_level)
        self._replay = SequenceReplay(capacity, seed)

    def add(self, episode_refs: list[ray.ObjectRef]) -> int:
        """Adds lists of raw episodes; returns the number of env steps held.

        A list whose env runner has died since is lost with it, and left out.
        """
        episodes: list[SingleAgentEpisode] = []
        for ref in episode_refs:
            try:
                episodes += ray.get(ref)
            except (ray.exceptions.OwnerDiedError, ray.exceptions.ObjectLostError) as error:
                logger.warning("raw episodes were lost with their env runner: %s", error)
        self._replay.add(episodes)
        logger.debug("replay holds %d env steps", len(self._replay))
        return len(self._replay)

    def reseed(self, seed: int) -> None:
        """Starts the generator afresh, at the beginning of a stage."""
        self._replay.rng = np.random.default_rng(seed)

    def normalisation(self) -> dict[str, np.ndarray]:
        """See `SequenceReplay.normalisation`."""
        return self._replay.normalisation()

    def fit_batches(self, num_updates: int, batch_size: int, length: int, num_learners: int) -> list[ray.ObjectRef]:
        """One stacked batch of num_updates x batch_size sequences for each learner."""
        return [
            ray.put(as_fit_batch(self._replay.sample_sequences(num_updates * batch_size, length)))
            for _ in range(num_learners)
        ]

    def starts(self, num_starts: int, burn_in: int) -> ray.ObjectRef:
        """Reference to the arrays of `SequenceReplay.sample_starts`."""
        return ray.put(self._replay.sample_starts(num_starts, burn_in))

    def newest_windows(self, num_windows: int, burn_in: int, horizon: int) -> ray.ObjectRef | None:
        """Reference to the arrays of `SequenceReplay.newest_windows`, or None."""
        arrays = self._replay.newest_windows(num_windows, burn_in, horizon)
        return None if arrays is None else ray.put(arrays)

    def stats(self) -> dict[str, int]:
        """Numbers for logs and tests: env steps and episodes held, env steps ever added."""
        return {
            "num_timesteps": self._replay.get_num_timesteps(),
            "num_episodes": self._replay.get_num_episodes(),
            "num_added_timesteps": self._replay.get_added_timesteps(),
        }

    def get_state(self) -> dict[str, Any]:
        """See `SequenceReplay.get_state`."""
        return self._replay.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """See `SequenceReplay.set_state`."""
        self._replay.set_state(state)

    def save(self, directory: str, filesystem: Any) -> None:
        """Writes the buffer into `directory` of a pyarrow filesystem."""
        filesystem.create_dir(directory, recursive=True)
        with filesystem.open_output_stream(str(PurePosixPath(directory) / REPLAY_FILE)) as stream:
            pickle.dump(self.get_state(), stream, protocol=pickle.HIGHEST_PROTOCOL)

    def restore(self, directory: str, filesystem: Any) -> None:
        """Reads what `save` wrote."""
        with filesystem.open_input_stream(str(PurePosixPath(directory) / REPLAY_FILE)) as stream:
            self.set_state(pickle.loads(stream.read()))


def as_fit_batch(arrays: Arrays) -> MultiAgentBatch:
    """Arrays of sequences as a batch for the world-model module, one row a sequence."""
    return MultiAgentBatch({WORLD_MODEL_MODULE_ID: SampleBatch(arrays)}, env_steps=int(arrays[MASK].sum()))
