"""Replay of raw sequences: every draw lies within one episode, and shows it as it was."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import ray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from wm_rllib.columns import MASK, STEPS_LEFT, TERMINATES, WORLD_MODEL_MODULE_ID
from wm_rllib.replay.frame_store import LEAST_SLABS, FrameStore, Storage
from wm_rllib.replay.replay import SequenceReplay, with_observations
from wm_rllib.replay.service import ReplayService, as_fit_batch

LENGTH = 6


def chunk(number: int, start: int, stop: int, end: str = "") -> SingleAgentEpisode:
    """Steps [start, stop) of an episode: observation (number, t), action t % 3, reward 100 number + t."""
    steps = stop - start
    return SingleAgentEpisode(
        id_=str(number),
        observations=[np.array([number, t], np.float32) for t in range(start, stop + 1)],
        actions=[np.int64(t % 3) for t in range(start, stop)],
        rewards=[float(100 * number + t) for t in range(start, stop)],
        infos=[{}] * (steps + 1),
        terminated=end == "terminated",
        truncated=end == "truncated",
        t_started=start,
        len_lookback_buffer=0,
    ).to_numpy()


def filled(capacity: int = 1000, seed: int | None = 0) -> SequenceReplay:
    """Four episodes: two terminated, one truncated, one going on."""
    replay = SequenceReplay(capacity, seed)
    replay.add(
        [chunk(1, 0, 20, "terminated"), chunk(2, 0, 3, "terminated"), chunk(3, 0, 11, "truncated"), chunk(4, 0, 9)]
    )
    return replay


def steps_of(arrays: dict[str, np.ndarray], row: int) -> list[tuple[int, int]]:
    """(episode, t) of a row's real transitions."""
    mask = arrays[MASK][row]
    at = np.flatnonzero(mask)
    return [(int(number), int(t)) for number, t in arrays[Columns.OBS][row, at]]


def check_rows(arrays: dict[str, np.ndarray], lengths: dict[int, int], terminated: set[int]) -> None:
    """Each row is a run of consecutive steps of one episode, with its own actions, rewards and end."""
    for row in range(len(arrays[MASK])):
        steps, at = steps_of(arrays, row), np.flatnonzero(arrays[MASK][row])
        assert steps
        number, first = steps[0]
        assert steps == [(number, first + i) for i in range(len(steps))]
        assert list(at) == list(range(at[0], at[0] + len(steps)))
        assert arrays[Columns.OBS][row, at[-1] + 1].tolist() == [number, first + len(steps)]
        assert arrays[Columns.ACTIONS][row, at].tolist() == [t % 3 for _, t in steps]
        assert arrays[Columns.REWARDS][row, at].tolist() == [100 * number + t for _, t in steps]
        is_end = [number in terminated and t == lengths[number] - 1 for _, t in steps]
        assert arrays[Columns.TERMINATEDS][row, at].tolist() == is_end


LENGTHS = {1: 20, 2: 3, 3: 11, 4: 9}


@pytest.mark.parametrize("length", [1, 2, LENGTH, 50])
def test_sequences_are_runs_of_one_episode(length: int):
    arrays = filled().sample_sequences(200, length)
    assert arrays[Columns.OBS].shape == (200, length + 1, 2)
    assert arrays[MASK].shape == arrays[Columns.REWARDS].shape == (200, length)
    check_rows(arrays, LENGTHS, terminated={1, 2})


def test_padding_comes_last_and_is_zero():
    arrays = filled().sample_sequences(200, LENGTH)
    for row in range(200):
        count = int(arrays[MASK][row].sum())
        assert arrays[MASK][row].tolist() == [True] * count + [False] * (LENGTH - count)
        for name in (Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS):
            assert not arrays[name][row, count:].any()
        assert not arrays[Columns.OBS][row, count + 1 :].any()


def test_rows_are_as_long_as_the_episode_allows():
    arrays = filled().sample_sequences(300, LENGTH)
    for row in range(300):
        (number, first), count = steps_of(arrays, row)[0], int(arrays[MASK][row].sum())
        assert count == min(LENGTH, LENGTHS[number] - first)


def test_a_truncated_episode_never_terminates():
    arrays = filled().sample_sequences(500, LENGTH)
    ends = {arrays[Columns.OBS][row, 0, 0] for row in np.flatnonzero(arrays[Columns.TERMINATEDS].any(axis=1))}
    assert ends == {1.0, 2.0}


def test_every_step_is_drawn_about_equally_often():
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 40, "truncated"), chunk(2, 0, 12, "truncated"), chunk(3, 0, 5)])
    counts: dict[tuple[int, int], int] = {}
    arrays = replay.sample_sequences(40_000, LENGTH)
    for row in range(40_000):
        for step in steps_of(arrays, row):
            counts[step] = counts.get(step, 0) + 1
    assert set(counts) == {(number, t) for number, length in ((1, 40), (2, 12), (3, 5)) for t in range(length)}
    inside = np.mean([counts[1, t] for t in range(2 * LENGTH, 30)])
    relative = {step: count / inside for step, count in counts.items()}
    assert min(relative.values()) > 0.4
    assert max(relative.values()) < 2.0


def test_sequences_say_how_much_is_stored_beyond_them():
    arrays = filled().sample_sequences(300, LENGTH)
    for row in range(300):
        for at, (number, t) in enumerate(steps_of(arrays, row)):
            assert arrays[STEPS_LEFT][row, at] == LENGTHS[number] - t
            assert arrays[TERMINATES][row] == (number in (1, 2))


@pytest.mark.parametrize("length", [1, 5, 60])
def test_windows_anywhere_hold_every_step_equally_often(length: int):
    replay = SequenceReplay(1000, 0)
    lengths = {1: 40, 2: 12, 3: 1}
    replay.add([chunk(number, 0, steps, "terminated") for number, steps in lengths.items()])
    counts = {(number, t): 0 for number, steps in lengths.items() for t in range(steps)}
    windows = replay._windows_anywhere(20_000, length)
    for episode, start, stop in windows:
        assert 0 <= start < stop <= len(episode) and stop - start <= length
        for t in range(start, stop):
            counts[int(episode.id_), t] += 1
    expected = sum(counts.values()) / len(counts)
    assert min(counts.values()) > expected - 5 * expected**0.5
    assert max(counts.values()) < expected + 5 * expected**0.5


def test_ends_are_drawn_as_often_as_they_come():
    replay = SequenceReplay(100_000, 0)
    replay.add([chunk(i, 0, 50, "terminated") for i in range(10)] + [chunk(10, 0, 1500)])
    arrays = replay.sample_sequences(20_000, LENGTH)
    share = arrays[Columns.TERMINATEDS].sum() / arrays[MASK].sum()
    # Steps near an episode's end are in somewhat fewer sequences than others.
    assert 0.5 * 10 / 2000 < share < 1.1 * 10 / 2000


@pytest.mark.parametrize("burn_in", [0, 1, 4, 50])
def test_starts_are_aligned_at_the_end(burn_in: int):
    arrays = filled().sample_starts(300, burn_in)
    assert arrays[Columns.OBS].shape == (300, burn_in + 1, 2)
    for row in range(300):
        number, t = arrays[Columns.OBS][row, -1].astype(int)
        past = min(burn_in, t)
        assert arrays[MASK][row].tolist() == [False] * (burn_in - past) + [True] * past
        assert steps_of(arrays, row) == [(number, t - past + i) for i in range(past)]
        assert arrays[Columns.ACTIONS][row, burn_in - past :].tolist() == [(t - past + i) % 3 for i in range(past)]
        assert not arrays[Columns.OBS][row, : burn_in - past].any()


def test_dreams_start_anywhere_but_where_an_episode_is_over():
    arrays = filled().sample_starts(20_000, 0)
    starts, counts = np.unique(arrays[Columns.OBS][:, -1].astype(int), axis=0, return_counts=True)
    assert set(map(tuple, starts.tolist())) == {(n, t) for n, length in LENGTHS.items() for t in range(length)}
    expected = 20_000 / sum(LENGTHS.values())
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_chunks_of_an_episode_become_one():
    replay = SequenceReplay(1000, 0)
    for part in (chunk(7, 0, 4), chunk(8, 0, 2), chunk(7, 4, 9), chunk(7, 9, 10, "terminated")):
        replay.add([part])
    assert [len(episode) for episode in replay.episodes] == [10, 2]
    arrays = replay.sample_sequences(300, LENGTH)
    check_rows(arrays, {7: 10, 8: 2}, terminated={7})
    assert any(steps_of(arrays, row)[0] == (7, 2) for row in range(300))  # runs across the seams


def test_capacity_bounds_the_steps_held():
    replay = SequenceReplay(30, 0)
    for number in range(1, 40):
        replay.add([chunk(number, 0, 7, "terminated")])
        assert len(replay) <= 30
    assert [int(episode.id_) for episode in replay.episodes] == [36, 37, 38, 39]
    check_rows(replay.sample_sequences(300, LENGTH), dict.fromkeys(range(36, 40), 7), terminated={36, 37, 38, 39})
    assert set(replay.sample_starts(300, 2)[Columns.OBS][:, -1, 0]) == {36.0, 37.0, 38.0, 39.0}


def test_an_ongoing_episode_whose_beginning_was_evicted_goes_on():
    replay = SequenceReplay(10, 0)
    replay.add([chunk(1, 0, 5)])
    replay.add([chunk(2, 0, 8, "terminated")])
    replay.add([chunk(1, 5, 7, "terminated")])
    check_rows(replay.sample_sequences(100, LENGTH), {1: 7, 2: 8}, terminated={1, 2})
    starts = replay.sample_starts(100, 3)[Columns.OBS][:, -1]
    assert {tuple(start) for start in starts.astype(int).tolist()} == {(2, t) for t in range(8)} | {(1, 5), (1, 6)}


@pytest.mark.parametrize("capacity", [12, 9, 5])
def test_the_oldest_episode_may_be_the_one_that_goes_on(capacity: int):
    replay = SequenceReplay(capacity, 0)
    for number in (1, 2):
        replay.add([chunk(number, 0, 5)])
    replay.add([chunk(1, 5, 10)])
    assert len(replay) <= max(capacity, 5)
    starts = replay.sample_starts(300, 3)[Columns.OBS][:, -1].astype(int).tolist()
    kept = {(2, t) for t in range(5)} if capacity > 9 else set()
    assert {tuple(start) for start in starts} == {(1, t) for t in range(5, 10)} | kept
    assert replay.newest_windows(4, 2, 3) is not None


def test_an_episode_without_an_end_leaves_in_parts():
    replay, held = SequenceReplay(1000, 0), []
    for start in range(0, 5000, 50):
        replay.add([chunk(1, start, start + 50)])
        held.append(len(replay))
    assert max(held) <= 1000 and min(held[40:]) >= 750
    assert max(map(len, replay.episodes)) <= 250
    starts = replay.sample_starts(2000, 3)[Columns.OBS][:, -1, 1]
    assert starts.min() < 4100 and starts.max() > 4950
    windows = replay.newest_windows(200, 4, 6)
    assert windows is not None and (windows[Columns.OBS][:, 4, 1] >= 4950).all()


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two draws are equal in every array."""
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_draws_depend_on_the_seed_alone():
    draws = [filled(seed=seed).sample_sequences(20, LENGTH) for seed in (3, 3, 4)]
    assert same(draws[0], draws[1])
    assert not same(draws[0], draws[2])


def test_a_restored_buffer_draws_on_where_the_saved_one_was():
    replay = filled()
    replay.sample_sequences(20, LENGTH)
    restored = SequenceReplay(1000, seed=99)
    restored.set_state(pickle.loads(pickle.dumps(replay.get_state())))
    assert same(replay.sample_sequences(20, LENGTH), restored.sample_sequences(20, LENGTH))
    for buffer in (replay, restored):
        buffer.add([chunk(4, 9, 15, "terminated"), chunk(5, 0, 4)])
    assert same(replay.sample_starts(50, 4), restored.sample_starts(50, 4))
    assert len(restored) == len(replay) == 53


def test_normalisation_by_hand():
    stats = filled().normalisation()
    observations = np.array([[n, t] for n, length in LENGTHS.items() for t in range(length + 1)], float)
    rewards = np.array([100.0 * n + t for n, length in LENGTHS.items() for t in range(length)])
    np.testing.assert_allclose(stats["obs_mean"], observations.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["obs_scale"], 2 * observations.std(0), rtol=1e-5)
    last = [19, 22]  # of the two episodes that terminate
    usual = np.delete(rewards, last)
    assert stats["reward_mean"] == pytest.approx(usual.mean(), rel=1e-5)
    assert stats["reward_scale"] == pytest.approx(usual.std(), rel=1e-5)
    assert stats["last_reward_scale"] == pytest.approx(np.sqrt((119.0**2 + 202.0**2) / 2), rel=1e-5)
    assert stats["termination_rate"] == pytest.approx(2 / 43, rel=0.03)  # a trifle off, never 0 or 1
    assert {value.dtype for value in stats.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("constant", [0.0, 0.1, -1000.1, 1e6 + 0.25])
def test_constant_dimensions_and_rewards(constant: float):
    replay = SequenceReplay(100_000, 0)
    count = 20_000
    observations = np.full((count + 1, 2), constant, np.float32)
    observations[:, 1] = np.arange(count + 1) % 7
    episode = SingleAgentEpisode(
        observations=list(observations),
        actions=[0] * count,
        rewards=[constant] * count,
        infos=[{}] * (count + 1),
        len_lookback_buffer=0,
    )
    replay.add([episode.to_numpy()])
    stats = replay.normalisation()
    assert stats["obs_mean"][0] == np.float32(constant)
    assert stats["obs_scale"][0] == 0.0
    assert stats["obs_scale"][1] == pytest.approx(4.0, rel=1e-3)  # the values 0 to 6 have a standard deviation of 2
    assert stats["reward_mean"] == pytest.approx(constant, rel=1e-6)
    assert stats["reward_scale"] == 1.0


def test_fit_batch_counts_only_real_steps():
    arrays = filled().sample_sequences(30, LENGTH)
    batch = as_fit_batch(arrays)
    assert batch.env_steps() == arrays[MASK].sum()
    assert len(batch.policy_batches[WORLD_MODEL_MODULE_ID]) == 30


@pytest.fixture
def service(no_ray: None) -> ReplayService:
    """A filled service."""
    made = ReplayService(1000, 0)
    assert made.add([[chunk(1, 0, 20, "terminated")], [chunk(2, 0, 3), chunk(3, 0, 11)]])["num_timesteps"] == 34
    return made


def test_service_makes_a_batch_for_each_learner(service: ReplayService):
    batches: list[Any] = ray.get(service.fit_batches(3, 4, LENGTH, num_learners=2))
    contents = [batch.policy_batches[WORLD_MODEL_MODULE_ID] for batch in batches]
    assert [len(content) for content in contents] == [12, 12]
    assert not np.array_equal(contents[0][Columns.OBS], contents[1][Columns.OBS])
    expected = {"num_timesteps": 34, "num_episodes": 3, "num_added_timesteps": 34, "num_frames": 0, "frame_bytes": 0}
    assert service.stats() == expected


def starts_of(service: ReplayService) -> dict[str, np.ndarray]:
    """Ten starts."""
    return ray.get(service.starts(10, 3))


def test_service_reseeds(service: ReplayService):
    service.reseed(5)
    first = starts_of(service)
    service.reseed(5)
    assert same(first, starts_of(service))
    assert not same(first, starts_of(service))


def test_service_saves_and_restores_itself(service: ReplayService, tmp_path: Path):
    filesystem = pyarrow.fs.LocalFileSystem()
    service.save(str(tmp_path / "new" / "folder"), filesystem)
    restored = ReplayService(1000, 77)
    restored.restore(str(tmp_path / "new" / "folder"), filesystem)
    assert restored.stats() == service.stats()
    assert same(starts_of(restored), starts_of(service))


def test_a_chunk_after_a_gap_becomes_a_sequence_of_its_own():
    """A fragment lost with its env runner leaves a gap; M must not learn a transition over it."""
    replay = SequenceReplay(1000, seed=0)
    for started in (0, 10, 15):
        length = 5
        replay.add(
            [
                SingleAgentEpisode(
                    id_="one",
                    observations=[np.float32([started + t]) for t in range(length + 1)],
                    actions=[0] * length,
                    rewards=[1.0] * length,
                    infos=[{}] * (length + 1),
                    t_started=started,
                    len_lookback_buffer=0,
                ).to_numpy()
            ]
        )
    assert len(replay) == 15
    observations = replay.sample_sequences(50, 8)["obs"][..., 0]
    mask = replay.sample_sequences(1, 8)["mask"]
    assert mask.any()
    steps = np.diff(observations, axis=1)
    assert set(np.unique(steps[observations[:, 1:] > 0])) <= {1.0}, "a sequence spans the gap"


def test_first_observations_are_drawn_by_the_seed():
    replay = filled()
    one, again, other = (replay.draw_first_observations(20, seed) for seed in (1, 1, 2))
    first = {tuple(observation) for observation in replay.first_observations()}
    assert one.shape == (20, 2) and {tuple(row) for row in one} <= first
    assert (one == again).all() and (one != other).any()
    assert SequenceReplay(10, 0).draw_first_observations(3, 0).size == 0


def chunk_of_pictures(number: int, start: int, stop: int, *, noisy: bool) -> SingleAgentEpisode:
    """Steps [start, stop) of an episode of 8x8x3 frames: of one colour, or of noise, which does not compress."""
    plain = chunk(number, start, stop)
    rng = np.random.default_rng([number, 0])
    frames = rng.integers(256, size=(1000, 8, 8, 3) if noisy else (1000, 1, 1, 3), dtype=np.uint8)
    return with_observations(plain, np.broadcast_to(frames, (1000, 8, 8, 3))[start : stop + 1])


@pytest.mark.parametrize("storage", ["memory", "compressed", "disk"])
def test_frames_stay_within_their_bytes(storage: Storage, tmp_path: Path):
    most = 192 * 1500
    replay = SequenceReplay(10_000, 0, FrameStore(storage, str(tmp_path), most))
    rng, last, held = np.random.default_rng(0), 0, []
    for number in range(150):
        steps = int(rng.integers(1, 40))
        replay.add([chunk_of_pictures(number, 0, steps, noisy=number % 3 > 0)])
        last = steps + 7
        replay.add([chunk_of_pictures(number, steps, last, noisy=number % 3 > 0)])  # goes on: one frame is shared
        numbers = np.concatenate([episode.observations.data for episode in replay.episodes])
        assert replay.frames.size_of(numbers) <= replay.frames.num_bytes <= most
        assert len(np.unique(numbers)) == len(numbers) == len(replay.frames)
        held.append(len(replay))
    assert [episode.id_ for episode in replay.episodes] == [str(n) for n in range(150 - len(replay.episodes), 150)]
    # No more left than had to: the next older episode, of at most 47 frames, would not have found room.
    assert min(held[100:]) + len(replay.episodes) + 47 + 40 > (1 - 1 / LEAST_SLABS) * most / 192


def test_a_bound_on_frames_bounds_no_vectors():
    replay = SequenceReplay(10_000, 0, FrameStore(max_bytes=1))
    for start in (0, 10, 20):
        replay.add([chunk(0, start, start + 10)])
    assert len(replay) == 30 and len(replay.episodes) == 1


def test_the_newest_episode_stays_whatever_it_takes():
    replay = SequenceReplay(10_000, 0, FrameStore(max_bytes=192 * 10))
    for number in range(3):
        replay.add([chunk_of_pictures(number, 0, 50, noisy=True)])
    assert [episode.id_ for episode in replay.episodes] == ["2"] and len(replay) == 50


def test_bytes_are_bounded_after_a_restore_too(tmp_path: Path):
    service = ReplayService(10_000, 0, max_frame_bytes=192 * 100)
    service._replay.add([chunk_of_pictures(number, 0, 30, noisy=True) for number in range(3)])
    assert len(service._replay) == 90
    service.save(str(tmp_path), pyarrow.fs.LocalFileSystem())
    restored = ReplayService(10_000, 0, max_frame_bytes=192 * 70)
    restored.restore(str(tmp_path), pyarrow.fs.LocalFileSystem())
    restored._replay.add([chunk_of_pictures(7, 0, 20, noisy=True)])
    assert [len(episode) for episode in restored._replay.episodes] == [30, 20]


@pytest.mark.parametrize("storage", ["memory", "compressed", "disk"])
@pytest.mark.parametrize("less", ["bytes", "capacity"])
def test_less_room_after_a_restore_is_less_memory(storage: Storage, less: str, tmp_path: Path):
    """Whoever ran out of memory goes on with less: what was read must not keep the room that it took."""
    most, filesystem = 192 * 3000, pyarrow.fs.LocalFileSystem()
    service = ReplayService(10_000, 0, "warning", storage, str(tmp_path), most)
    replay = service._replay
    for number in range(60):
        replay.add([chunk_of_pictures(number, 0, 40, noisy=True)])
    numbers = replay.frames.not_encoded(10_000)
    replay.frames.set_latents(numbers, numbers[:, None].astype(np.float32))
    service.save(str(tmp_path / "saved"), filesystem)
    capacity, bound = (10_000, 192 * 1000) if less == "bytes" else (800, most)
    restored = ReplayService(capacity, 0, "warning", storage, str(tmp_path), bound)
    restored.restore(str(tmp_path / "saved"), filesystem)
    held = restored._replay
    assert [episode.id_ for episode in held.episodes] == [str(n) for n in range(60 - len(held.episodes), 60)]
    if less == "capacity" or storage != "compressed":  # compressed ones are counted, and go, when more come
        assert 15 <= len(held.episodes) <= 24 and held.frames.num_bytes <= 1.3 * 192 * 1000
    for before, now in zip(list(replay.episodes)[-len(held.episodes) :], held.episodes, strict=True):
        assert (replay.observations_of(before) == held.observations_of(now)).all()
        old, new = before.observations.data, now.observations.data
        assert (held.frames.latents(new) == replay.frames.latents(old)).all()
    for number in range(60, 90):
        held.add([chunk_of_pictures(number, 0, 40, noisy=True)])
        assert len(held) <= capacity and held.frames.num_bytes <= bound
    held.sample_starts(20, 3)


def test_the_same_room_after_a_restore_leaves_frames_where_they_were(tmp_path: Path):
    most, filesystem = 192 * 1500, pyarrow.fs.LocalFileSystem()
    service = ReplayService(10_000, 0, max_frame_bytes=most)
    for number in range(70):
        service._replay.add([chunk_of_pictures(number, 0, 10 + number % 30, noisy=True)])
    service.save(str(tmp_path / "saved"), filesystem)
    restored = ReplayService(10_000, 0, max_frame_bytes=most)
    restored.restore(str(tmp_path / "saved"), filesystem)
    for before, now in zip(service._replay.episodes, restored._replay.episodes, strict=True):
        assert (before.observations.data == now.observations.data).all()
