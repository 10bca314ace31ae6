"""Replay of raw sequences: what V and M are fitted to, and where dreams start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

from wm_rllib.columns import CHUNK, GREEDY, LATENTS, MASK, OFFSET, REACH, STEPS_LEFT, TERMINATES
from wm_rllib.models.conv_vae import is_image
from wm_rllib.replay.frame_store import FrameStore
from wm_rllib.replay.fresh import Fresh

MOST_MEASURED_FRAMES = 10_000
"""Whose mean and spread are the units of frames, spread evenly over all that are held."""

MOST_OF_REPLAY = 0.25
"""Of what fits, that one sequence may hold: so much at most leaves at once, however long episodes are."""

FRAMES, NUM_SHARDS = "frames", "num_frame_shards"

MAX_WINDOW_NUMBERS, MIN_WINDOWS = 2**24, 8
"""Numbers in the observations of newest windows, beyond which there are fewer of them, and how few: whoever judges M on
them copies them several times, and windows of pictures would take gigabytes."""

Arrays = dict[str, np.ndarray]


class SequenceReplay(EpisodeReplayBuffer):
    """RLlib's `EpisodeReplayBuffer` of raw (not encoded) episodes, with the draws this algorithm needs.

    Bounded by `capacity` env steps and by the bytes that `frames` should hold: whole sequences leave, oldest first, but
    for the newest chunk. Actions are in policy space (wm_rllib.spaces).
    RLlib leaves its generator unseeded and outside the checkpoint; here it is seeded and saved.

    Observations that are images lie in a `FrameStore`, each once, and episodes hold their numbers.

    Args:
        capacity: Env steps.
        seed: Of the generator.
        frames: Where images go.
    """

    _indices: list[tuple[int, int]]

    def __init__(self, capacity: int, seed: int | None, frames: FrameStore | None = None):
        super().__init__(capacity=capacity)
        self.rng = np.random.default_rng(seed)
        self.frames = FrameStore() if frames is None else frames  # an empty one is false
        self._newest: dict[str, Fresh] = {}

    @property
    def holds_frames(self) -> bool:
        """Whether observations are images."""
        return self.frames.is_used

    def add(self, episodes: list[SingleAgentEpisode]) -> None:
        """Adds chunks; one that does not go on where its episode's held part ended begins a sequence of its own.

        Such a gap is left by a fragment that was lost with its env runner, or came after the sampling timeout. A
        sequence that holds a good part of all that fits ends, too (`MOST_OF_REPLAY`).
        """
        self._newest = {}
        for episode in episodes:
            fresh = Fresh.detach(episode)
            self._part(episode)
            self._make_room(episode)
            super().add(self._with_numbers(episode) if _has_images(episode) else episode)
            before = self._newest.get(episode.id_)
            self._newest[episode.id_] = replace(fresh, length=fresh.length + before.length) if before else fresh

    def _held(self, episode_id: str) -> SingleAgentEpisode | None:
        index = self.episode_id_to_index.get(episode_id)
        return None if index is None else self.episodes[index - self._num_episodes_evicted]

    def _part(self, chunk: SingleAgentEpisode) -> None:
        """Ends the sequence that a chunk's episode has so far, under another name, if the chunk begins one."""
        held = self._held(chunk.id_)
        if held is None or (held.t == chunk.t_started and not self._takes_most(held, len(chunk))):
            return
        name = f"{held.id_}/{held.t_started}"
        for names in (self.episode_id_to_index, self._newest):
            if held.id_ in names:
                names[name] = names.pop(held.id_)
        held.id_ = name

    def _takes_most(self, held: SingleAgentEpisode, more: int) -> bool:
        if len(held) + more > MOST_OF_REPLAY * self.capacity:
            return True
        limit = self.frames.max_bytes
        return (
            limit is not None
            and self.holds_frames
            and self.frames.size_of(held.observations.data) > MOST_OF_REPLAY * limit
        )

    def _make_room(self, chunk: SingleAgentEpisode) -> None:
        """Lets as many of the oldest sequences go as have to before a chunk comes.

        RLlib would do it when frames have already taken their memory, and fails where the oldest is the chunk's own.
        """
        steps = len(self) + len(chunk) - self.capacity
        incoming = chunk.observations.data.nbytes if _has_images(chunk) else 0
        while self.episodes and (steps > 0 or self.frames.excess_bytes(incoming) > 0):
            oldest = self._forget_oldest()
            steps -= len(oldest)
            if self.holds_frames:
                self.frames.free(oldest.observations.data)
        self._forget_steps()

    def _forget_oldest(self) -> SingleAgentEpisode:
        oldest = self.episodes.popleft()
        self._num_timesteps -= len(oldest)
        self._num_episodes_evicted += 1
        del self.episode_id_to_index[oldest.id_]
        return oldest

    def _forget_steps(self) -> None:
        if self._indices and self._indices[0][0] < self._num_episodes_evicted:
            self._indices = [step for step in self._indices if step[0] >= self._num_episodes_evicted]

    def _with_numbers(self, episode: SingleAgentEpisode) -> SingleAgentEpisode:
        """The same chunk with its frames in the store; a frame that it shares with the chunk before goes there once."""
        frames = episode.observations.data
        held = self._held(episode.id_)
        if held is None:
            numbers = self.frames.add(frames)
        else:
            numbers = np.append(held.observations.data[-1:], self.frames.add(frames[1:]))
        return with_observations(episode, numbers)

    def normalisation(self) -> dict[str, Any]:
        """Units of observations (*O) and rewards (scalars) from all that is held.

        An observation's scale is twice its standard deviation, so that most of it lies in [-1, 1], and 0 for a constant
        dimension (see `spaces.observation_scale`); a constant reward has scale 1. Rewards that end an episode have a
        scale of their own, their root mean square.
        """
        rewards = np.concatenate([np.asarray(episode.get_rewards()) for episode in self.episodes])
        ends = np.cumsum([len(episode) for episode in self.episodes])
        last = np.zeros(len(rewards), bool)
        last[[end - 1 for end, episode in zip(ends, self.episodes, strict=True) if episode.is_terminated]] = True
        obs_mean, obs_scale = self._units_of_frames() if self.holds_frames else self._units_of_observations()
        usual = rewards[~last] if (~last).any() else rewards
        reward_scale = _positive(usual.std(dtype=np.float64))
        last_scale = np.sqrt(np.square(rewards[last], dtype=np.float64).mean()) if last.any() else reward_scale
        return {
            "obs_mean": obs_mean.astype(np.float32),
            "obs_scale": np.where(obs_scale > 1e-6, obs_scale, 0.0).astype(np.float32),
            "reward_mean": np.float32(usual.mean(dtype=np.float64)),
            "reward_scale": np.float32(reward_scale),
            "last_reward_scale": np.float32(_positive(last_scale)),
            # A hundredth of a termination more than were seen: none seen is no proof that there are none.
            "termination_rate": np.float32((last.sum() + 0.01) / (len(rewards) + 1.0)),
        }

    def _units_of_observations(self) -> tuple[np.ndarray, np.ndarray]:
        observations = np.concatenate([np.asarray(episode.get_observations()) for episode in self.episodes])
        # In float64: sums in float32 give a constant dimension a spread of their rounding, far above the threshold.
        return observations.mean(0, dtype=np.float64), 2.0 * observations.std(0, dtype=np.float64)

    def _units_of_frames(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean frame, and one scale for all pixels: one that hardly ever changes should not be blown up."""
        numbers = np.concatenate([episode.observations.data for episode in self.episodes])
        chosen = numbers[:: -(-len(numbers) // MOST_MEASURED_FRAMES)]
        total = squares = np.zeros(())
        for part in np.array_split(chosen, -(-len(chosen) // 256)):
            frames = self.frames.get(part).astype(np.float64)
            total, squares = total + frames.sum(0), squares + np.square(frames).sum(0)
        mean = total / len(chosen)
        variance = (squares / len(chosen) - np.square(mean)).mean()
        return mean, np.full_like(mean, 2.0 * np.sqrt(max(variance, 0.0)))

    def sample_sequences(self, num_sequences: int, length: int) -> Arrays:
        """Sequences of up to `length` transitions, each within one episode, padded at the end.

        A sequence lies at random around a stored step drawn evenly; steps near either end of an episode are in somewhat
        fewer of them. Ends are not drawn more often than they come: M would believe in more of them than there are.

        Returns:
            obs [N, length + 1, *O], actions [N, length, ...], rewards, terminateds and mask [N, length], steps_left
            [N, length] and terminates [N]: what of the episode is stored beyond the sequence.
        """
        windows = [self._window_around_random_step(length) for _ in range(num_sequences)]
        return {**self._gather(windows, length, align_end=False), **_ahead(windows, length)}

    def sample_latent_sequences(self, num_sequences: int, length: int) -> Arrays:
        """As `sample_sequences`, but the latents [N, length + 1, Z] of frames in place of observations.

        Each stored step is in a sequence as often as any other: sequences begin anywhere, also before an episode's
        first step, and what lies outside of the episode is cut off. (Those of `sample_sequences` are longer.)

        Raises:
            LookupError: Some frame has no latent.
        """
        windows = self._windows_anywhere(num_sequences, length)
        return {**self._gather(windows, length, align_end=False, latents=True), **_ahead(windows, length)}

    def sample_frames(self, count: int) -> np.ndarray:
        """Frames drawn evenly, each behind the one before it in its episode: [N, 2, *O].

        The first one of an episode is never drawn; there is one for each of its steps after it.
        """
        numbers = np.empty((count, 2), np.int64)
        for row in range(count):
            episode, t = self._random_step()
            numbers[row] = episode.observations.data[t : t + 2]
        return self.frames.get(numbers)

    def sample_starts(self, num_starts: int, burn_in: int) -> Arrays:
        """Observations to start dreams from, drawn evenly over all stored steps, with up to `burn_in` steps before.

        Returns:
            As `sample_sequences`, of length `burn_in`, but aligned at the end: obs[:, -1] is the start and padding
            comes first. Frames that have all got their latents come as these.
        """
        windows = []
        for episode, t in (self._random_step() for _ in range(num_starts)):
            windows.append((episode, max(0, t - burn_in), t))
        encoded = self.holds_frames and not len(self.frames.not_encoded(1))
        return self._gather(windows, burn_in, align_end=True, latents=encoded)

    def observations_of(self, episode: SingleAgentEpisode) -> np.ndarray:
        """All observations [T + 1, *O] of an episode that is held."""
        held = episode.observations.data
        return self.frames.get(held) if self.holds_frames else held

    def first_observations(self) -> np.ndarray:
        """The first observations [N, *O] of all episodes whose beginning is stored."""
        return self._all_of(self._first())

    def draw_first_observations(self, count: int, seed: int | None) -> np.ndarray:
        """First observations [count, *O] of stored episodes, drawn with replacement; [0] if none has its beginning."""
        first = self._first()
        if not first:
            return np.empty(0)
        return self._all_of([first[i] for i in np.random.default_rng(seed).integers(len(first), size=count)])

    def _first(self) -> list[np.ndarray]:
        return [episode.observations.data[0] for episode in self.episodes if not episode.t_started]

    def _all_of(self, held: list[np.ndarray]) -> np.ndarray:
        """The observations [N, *O] that episodes hold, or hold the numbers of; [0] if there are none."""
        if not held:
            return np.empty(0)
        return self.frames.get(np.array(held)) if self.holds_frames else np.stack(held)

    def newest_windows(self, num_windows: int, burn_in: int, horizon: int) -> Arrays | None:
        """Windows that start at steps of the newest `add`, drawn evenly, with the steps before them.

        There are `num_windows` of them, or fewer where observations are large.

        Returns:
            obs [N, burn_in + horizon + 1, *O], actions, rewards, terminateds and mask [N, burn_in + horizon]: step
            `burn_in` is the start, padding of what lies before comes first, padding of what lies after comes last.
            reach [N]: how many of the steps from there on would be here, had no episode ended: at most `horizon`, fewer
            where the environment took fewer. greedy [N]: whether the actions were the policy's greedy ones. chunk and
            offset [N]: of which newly added stretch of an episode it is, and how many of its steps come before. None if
            the newest `add` brought nothing: its episodes were lost with their env runner.
        """
        held = [(self._held(name), fresh) for name, fresh in self._newest.items() if fresh.length]
        chunks = [(episode, fresh) for episode, fresh in held if episode is not None]
        if not chunks:
            return None
        lengths = np.array([fresh.length for _, fresh in chunks], float)
        numbers = (burn_in + horizon + 1) * self._all_of([chunks[0][0].observations.data[0]])[0].size
        num_windows = min(num_windows, max(MIN_WINDOWS, MAX_WINDOW_NUMBERS // numbers))
        before, after = [], []
        reach, greedy, offsets = [], [], []
        drawn = self.rng.choice(len(chunks), size=num_windows, p=lengths / lengths.sum())
        for index in drawn:
            episode, fresh = chunks[index]
            steps_back = int(self.rng.integers(fresh.length))
            t = len(episode) - 1 - steps_back
            offsets.append(fresh.length - 1 - steps_back)
            before.append((episode, max(0, t - burn_in), t))
            after.append((episode, t, min(t + horizon, len(episode))))
            steps_after = fresh.steps_after if episode.is_terminated else 0
            reach.append(min(horizon, len(episode) - t + steps_after))
            greedy.append(fresh.is_greedy)
        past, future = self._gather(before, burn_in, align_end=True), self._gather(after, horizon, align_end=False)
        joined = {name: np.concatenate([past[name], future[name]], 1) for name in past if name != Columns.OBS}
        joined[Columns.OBS] = np.concatenate([past[Columns.OBS][:, :-1], future[Columns.OBS]], 1)
        return {
            **joined,
            REACH: np.array(reach),
            GREEDY: np.array(greedy),
            CHUNK: drawn,
            OFFSET: np.array(offsets),
        }

    def _random_step(self) -> tuple[SingleAgentEpisode, int]:
        index, t = self._indices[self.rng.integers(len(self._indices))]
        return self.episodes[index - self._num_episodes_evicted], t

    def _window_around_random_step(self, length: int) -> tuple[SingleAgentEpisode, int, int]:
        episode, t = self._random_step()
        start = max(0, t - int(self.rng.integers(length)))
        return episode, start, min(start + length, len(episode))

    def _windows_anywhere(self, count: int, length: int) -> list[tuple[SingleAgentEpisode, int, int]]:
        """The parts within episodes of windows of `length` steps that have at least one of them."""
        episodes = list(self.episodes)
        places_until = np.cumsum([len(episode) + length - 1 for episode in episodes])
        places = self.rng.integers(places_until[-1], size=count)
        windows = []
        for index, place in zip(np.searchsorted(places_until, places, side="right"), places, strict=True):
            num_steps = len(episodes[index])
            start = num_steps - int(places_until[index] - place)  # 1 - length at the earliest
            windows.append((episodes[index], max(0, start), min(start + length, num_steps)))
        return windows

    def _gather(self, windows: list[Any], length: int, *, align_end: bool, latents: bool = False) -> Arrays:
        observations, actions, _ = _episode_arrays(windows[0][0])
        count = len(windows)
        padding = -1 if self.holds_frames else 0
        out = {
            Columns.OBS: np.full((count, length + 1, *observations.shape[1:]), padding, observations.dtype),
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
        if latents:
            out[LATENTS] = self.frames.latents(out.pop(Columns.OBS))
        elif self.holds_frames:
            out[Columns.OBS] = self.frames.get(out[Columns.OBS])
        return out

    def get_state(self) -> dict[str, Any]:
        """The whole buffer and its generator; of frames, what `FrameStore.get_state` says."""
        state = {**super().get_state(), "_indices": list(self._indices), "rng": self.rng.bit_generator.state}
        return {**state, FRAMES: self.frames.get_state(), NUM_SHARDS: self.frames.num_shards()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned, once the frames are back in their store."""
        self._set_sequences(state)
        if state.get(NUM_SHARDS):
            self.frames.set_state(state[FRAMES])

    def _set_sequences(self, state: dict[str, Any]) -> None:
        self.episodes.clear()  # RLlib's buffer keeps what it holds, under the indices of the state, unless it is empty
        super().set_state({**state, "_indices": list(state["_indices"])})
        self.rng.bit_generator.state = state["rng"]

    def read_frames(self, state: dict[str, Any], directory: str, filesystem: Any, *, mapped: bool) -> None:
        """Restores a state whose frames `FrameStore.save` wrote, into an empty store.

        If less fits now than was held, as much of the oldest is left out, and the frames move together: a store that
        read all of them would keep the room that they took.

        Args:
            state: What `get_state` returned.
            directory: Where the frames are.
            filesystem: Its pyarrow filesystem.
            mapped: See `FrameStore.load`.
        """
        self._set_sequences(state)
        held = state[FRAMES]
        frame_bytes = held.get("frame_bytes", 0)
        if mapped or (len(self) <= self.capacity and self.frames.has_room_for(held["capacity"] * frame_bytes)):
            self.frames.load(directory, filesystem, state[NUM_SHARDS], mapped=mapped)
            self.frames.set_state(held)
            return
        num_frames = sum(len(episode.observations.data) for episode in self.episodes)
        while len(self.episodes) > 1 and (
            self._num_timesteps > self.capacity or self.frames.would_exceed(num_frames * frame_bytes)
        ):
            num_frames -= len(self._forget_oldest().observations.data)
        self._forget_steps()
        kept = [episode.observations.data for episode in self.episodes]
        wanted = np.unique(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
        renumbered = self.frames.load_some(directory, filesystem, state[NUM_SHARDS], held, wanted)
        for numbers in kept:
            numbers[:] = renumbered[numbers]


def with_observations(episode: SingleAgentEpisode, observations: np.ndarray) -> SingleAgentEpisode:
    """The same chunk with other observations [T + 1, ...], and without its infos."""
    return SingleAgentEpisode(
        id_=episode.id_,
        observations=list(observations),
        actions=list(episode.actions.data),
        rewards=list(episode.rewards.data),
        infos=[{}] * len(observations),
        terminated=episode.is_terminated,
        truncated=episode.is_truncated,
        t_started=episode.t_started,
        len_lookback_buffer=0,
    ).to_numpy()


def _has_images(episode: SingleAgentEpisode) -> bool:
    return is_image(episode.observations.data.shape[1:])


def _positive(scale: float) -> float:
    return float(scale) if scale > 1e-6 else 1.0


def _ahead(windows: list[tuple[SingleAgentEpisode, int, int]], length: int) -> Arrays:
    """Columns of what is stored of episodes beyond windows (episode, start, stop); see `STEPS_LEFT`."""
    left = np.array([len(episode) - start for episode, start, _ in windows], np.int32)
    terminates = np.array([episode.is_terminated for episode, _, _ in windows], bool)
    return {STEPS_LEFT: left[:, None] - np.arange(length, dtype=np.int32), TERMINATES: terminates}


def _episode_arrays(episode: SingleAgentEpisode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Straight to the arrays: the episode's own getters cost 10 to 20 us a slice, and a fit needs thousands.
    return episode.observations.data, episode.actions.data, episode.rewards.data
