"""The replay as a process of its own: experience comes in and batches go out by reference."""

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

from wm_rllib.columns import MASK, WORLD_MODEL_MODULE_ID
from wm_rllib.logs import set_log_level
from wm_rllib.replay.frame_store import FrameStore, Storage
from wm_rllib.replay.replay import NUM_SHARDS, Arrays, SequenceReplay

logger = logging.getLogger(__name__)

REPLAY_FILE = "replay.pkl"
SHARDS = "frame_shards"


class ReplayService:
    """`SequenceReplay` behind references: experience comes in and batches go out by ObjectRef (contract 8).

    An actor beside remote workers, a plain object in a single process.

    Args:
        capacity: Env steps.
        seed: Of the generator.
        log_level: Of this package's loggers.
        storage: How frames are kept; see `FrameStore`.
        directory: Where, if on disk.
        max_frame_bytes: The most that they should take.
    """

    def __init__(
        self,
        capacity: int,
        seed: int | None,
        log_level: str = "warning",
        storage: Storage = "memory",
        directory: str | None = None,
        max_frame_bytes: float | None = None,
    ):
        set_log_level(log_level)
        self._storage: tuple[Storage, str | None, float | None] = storage, directory, max_frame_bytes
        self._replay = SequenceReplay(capacity, seed, FrameStore(*self._storage))

    def add(self, episode_refs: list[ray.ObjectRef]) -> dict[str, int]:
        """Adds lists of raw episodes; returns what is held then, as `stats`.

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
        return self.stats()

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

    def latent_batches(self, num_updates: int, batch_size: int, length: int, num_learners: int) -> list[ray.ObjectRef]:
        """As `fit_batches`, on latents in place of frames."""
        return [
            ray.put(as_fit_batch(self._replay.sample_latent_sequences(num_updates * batch_size, length)))
            for _ in range(num_learners)
        ]

    def frame_batches(self, num_updates: int, batch_size: int, num_learners: int) -> list[ray.ObjectRef]:
        """For each learner a stacked batch of num_updates x batch_size frames, each with the one before it."""
        count = num_updates * batch_size

        def batch() -> MultiAgentBatch:
            frames = SampleBatch({Columns.OBS: self._replay.sample_frames(count)})
            return MultiAgentBatch({WORLD_MODEL_MODULE_ID: frames}, env_steps=count)

        return [ray.put(batch()) for _ in range(num_learners)]  # one after the other: each may have 128 MB

    def frames_to_encode(self, most: int) -> tuple[np.ndarray, ray.ObjectRef] | None:
        """Numbers of up to so many frames without a latent, and a reference to them; None if there are none."""
        numbers = self._replay.frames.not_encoded(most)
        return (numbers, ray.put(self._replay.frames.get(numbers))) if len(numbers) else None

    def take_latents(self, numbers: np.ndarray, latents_refs: list[ray.ObjectRef]) -> None:
        """Latents [N, Z] of N frames, by one reference (in a list: Ray resolves a bare one on its way to an actor)."""
        self._replay.frames.set_latents(numbers, np.concatenate(ray.get(latents_refs)))

    def forget_latents(self) -> None:
        """V has changed: all frames are to be encoded anew."""
        self._replay.frames.forget_latents()

    def starts(self, num_starts: int, burn_in: int) -> ray.ObjectRef:
        """Reference to the arrays of `SequenceReplay.sample_starts`."""
        return ray.put(self._replay.sample_starts(num_starts, burn_in))

    def first_observations(self, count: int, seed: int | None) -> np.ndarray:
        """See `SequenceReplay.draw_first_observations`: so many, and not those of all episodes, for the driver."""
        return self._replay.draw_first_observations(count, seed)

    def newest_windows(self, num_windows: int, burn_in: int, horizon: int) -> ray.ObjectRef | None:
        """Reference to the arrays of `SequenceReplay.newest_windows`, or None."""
        arrays = self._replay.newest_windows(num_windows, burn_in, horizon)
        return None if arrays is None else ray.put(arrays)

    def stats(self) -> dict[str, int]:
        """Env steps and episodes held, env steps ever added, frames held, and bytes of frames and their latents."""
        return {
            "num_timesteps": self._replay.get_num_timesteps(),
            "num_episodes": self._replay.get_num_episodes(),
            "num_added_timesteps": self._replay.get_added_timesteps(),
            "num_frames": len(self._replay.frames),
            "frame_bytes": self._replay.frames.num_bytes,
        }

    def get_state(self) -> dict[str, Any]:
        """See `SequenceReplay.get_state`; with the frames."""
        frames = self._replay.frames
        return {**self._replay.get_state(), SHARDS: [frames.shard(i) for i in range(frames.num_shards())]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        frames = FrameStore(*self._storage)
        for shard in state.get(SHARDS, []):
            frames.add_shard(shard)
        self._replay.frames = frames
        self._replay.set_state(state)

    def save(self, directory: str, filesystem: Any) -> None:
        """Writes the buffer into `directory` of a pyarrow filesystem."""
        filesystem.create_dir(directory, recursive=True)
        with filesystem.open_output_stream(str(PurePosixPath(directory) / REPLAY_FILE)) as stream:
            pickle.dump(self._replay.get_state(), stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._replay.frames.save(directory, filesystem)

    def restore(self, directory: str, filesystem: Any) -> None:
        """Reads what `save` wrote."""
        read_into(self._replay, directory, filesystem, FrameStore(*self._storage))


def read_into(
    replay: SequenceReplay, directory: str, filesystem: Any, frames: FrameStore, *, mapped: bool = False
) -> None:
    """Fills a replay, and an empty store that becomes its own, with what `ReplayService.save` wrote.

    Args:
        replay: To be filled.
        directory: What was written.
        filesystem: A pyarrow filesystem.
        frames: An empty store.
        mapped: See `FrameStore.load`.
    """
    with filesystem.open_input_stream(str(PurePosixPath(directory) / REPLAY_FILE)) as stream:
        state = pickle.loads(stream.read())
    replay.frames = frames
    if state.get(NUM_SHARDS):
        replay.read_frames(state, directory, filesystem, mapped=mapped)
    else:
        replay.set_state(state)


def as_fit_batch(arrays: Arrays) -> MultiAgentBatch:
    """Arrays of sequences as a batch for the world-model module, one row a sequence."""
    return MultiAgentBatch({WORLD_MODEL_MODULE_ID: SampleBatch(arrays)}, env_steps=int(arrays[MASK].sum()))
