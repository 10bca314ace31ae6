"""Windows of the newest experience, by which M is judged before it is fitted to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.core.columns import Columns
from test_replay import chunk, same

from wm_rllib.columns import CHUNK, GREEDY, MASK, OFFSET, REACH
from wm_rllib.replay.fresh import Fresh
from wm_rllib.replay.replay import SequenceReplay
from wm_rllib.replay.service import ReplayService

BURN_IN, HORIZON = 3, 4


def starts_in(arrays: dict[str, np.ndarray], burn_in: int = BURN_IN) -> list[tuple[int, int]]:
    """(episode, t) of each window's start."""
    return [(int(number), int(t)) for number, t in arrays[Columns.OBS][:, burn_in]]


def check(
    arrays: dict[str, np.ndarray], lengths: dict[int, int], terminated: set[int], burn_in: int, horizon: int
) -> None:
    """Each window shows the steps around its start as they were, and nothing where there were none."""
    width = burn_in + horizon
    assert arrays[Columns.OBS].shape[1:] == (width + 1, 2)
    assert {arrays[name].shape[1] for name in (Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS, MASK)} == {width}
    for row, (number, start) in enumerate(starts_in(arrays, burn_in)):
        for column in range(width):
            t = start - burn_in + column
            real = 0 <= t < lengths[number]
            assert arrays[MASK][row, column] == real
            if not real:
                assert not arrays[Columns.REWARDS][row, column]
                assert not arrays[Columns.TERMINATEDS][row, column]
                continue
            assert arrays[Columns.OBS][row, column].tolist() == [number, t]
            assert arrays[Columns.OBS][row, column + 1].tolist() == [number, t + 1]
            assert arrays[Columns.ACTIONS][row, column] == t % 3
            assert arrays[Columns.REWARDS][row, column] == 100 * number + t
            ends = number in terminated and t == lengths[number] - 1
            assert arrays[Columns.TERMINATEDS][row, column] == ends


@pytest.mark.parametrize(("burn_in", "horizon"), [(BURN_IN, HORIZON), (0, 1), (20, 20)])
def test_windows_show_what_happened(burn_in: int, horizon: int):
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 12, "terminated"), chunk(2, 0, 5, "truncated"), chunk(3, 0, 1), chunk(4, 0, 7)])
    arrays = replay.newest_windows(400, burn_in, horizon)
    assert arrays is not None and len(arrays[MASK]) == 400
    check(arrays, {1: 12, 2: 5, 3: 1, 4: 7}, {1}, burn_in, horizon)
    assert arrays[Columns.TERMINATEDS].any()


def test_one_window_by_hand():
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 5)])
    replay.add([chunk(1, 5, 6, "terminated")])  # the only start is t = 5
    arrays = replay.newest_windows(1, 2, 3)
    assert arrays is not None
    assert arrays[Columns.OBS][0].tolist() == [[1, 3], [1, 4], [1, 5], [1, 6], [0, 0], [0, 0]]
    assert arrays[Columns.ACTIONS][0].tolist() == [0, 1, 2, 0, 0]
    assert arrays[Columns.REWARDS][0].tolist() == [103, 104, 105, 0, 0]
    assert arrays[Columns.TERMINATEDS][0].tolist() == [False, False, True, False, False]
    assert arrays[MASK][0].tolist() == [True, True, True, False, False]


def test_starts_are_the_steps_of_the_newest_add_drawn_evenly():
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 10), chunk(2, 0, 30, "terminated")])
    replay.add([chunk(1, 10, 14), chunk(3, 0, 2, "terminated"), chunk(4, 0, 6)])
    arrays = replay.newest_windows(12_000, BURN_IN, HORIZON)
    assert arrays is not None
    check(arrays, {1: 14, 3: 2, 4: 6}, {3}, BURN_IN, HORIZON)
    starts, counts = np.unique(starts_in(arrays), axis=0, return_counts=True)
    # What lies before a chunk is seen on the way to a start, and is none.
    assert list(map(tuple, starts.tolist())) == [
        *((1, t) for t in range(10, 14)),
        (3, 0),
        (3, 1),
        *((4, t) for t in range(6)),
    ]
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def test_how_far_a_window_would_have_reached():
    """As far as its environment was stepped in that call, had the episode not ended; what was cut went no further."""
    replay = SequenceReplay(1000, 0)
    dead = Fresh(2, steps_after=3, is_greedy=True).attach(chunk(1, 0, 2, "terminated"))
    cut = Fresh(2, steps_after=9).attach(chunk(2, 0, 2, "truncated"))
    replay.add([dead, cut, chunk(3, 0, 6)])
    arrays = replay.newest_windows(300, BURN_IN, HORIZON)
    assert arrays is not None
    reach = {start: int(n) for start, n in zip(starts_in(arrays), arrays[REACH], strict=True)}
    assert reach == {(1, 0): 4, (1, 1): 4, (2, 0): 2, (2, 1): 1, **{(3, t): min(4, 6 - t) for t in range(6)}}
    assert all(greedy == (number == 1) for greedy, (number, _) in zip(arrays[GREEDY], starts_in(arrays), strict=True))
    places = zip(starts_in(arrays), arrays[CHUNK], arrays[OFFSET], strict=True)
    assert all(start == (int(index) + 1, int(offset)) for start, index, offset in places)
    assert not any(episode.custom_data for episode in replay.episodes)


def test_two_chunks_of_an_episode_in_one_add_are_one():
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 3)])
    replay.add([chunk(1, 3, 8), chunk(1, 8, 10, "terminated")])
    arrays = replay.newest_windows(500, BURN_IN, HORIZON)
    assert arrays is not None
    assert set(starts_in(arrays)) == {(1, t) for t in range(3, 10)}
    check(arrays, {1: 10}, {1}, BURN_IN, HORIZON)


def test_a_chunk_after_a_gap_has_no_past():
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 5)])
    replay.add([chunk(1, 9, 12)])
    arrays = replay.newest_windows(200, BURN_IN, HORIZON)
    assert arrays is not None
    assert set(starts_in(arrays)) == {(1, 9), (1, 10), (1, 11)}
    for row, (_, t) in enumerate(starts_in(arrays)):
        assert arrays[MASK][row, :BURN_IN].sum() == min(BURN_IN, t - 9)


def test_what_the_capacity_evicted_is_no_start():
    replay = SequenceReplay(10, 0)
    replay.add([chunk(1, 0, 8, "terminated"), chunk(2, 0, 7, "terminated")])
    arrays = replay.newest_windows(100, BURN_IN, HORIZON)
    assert arrays is not None and {number for number, _ in starts_in(arrays)} == {2}


@pytest.mark.parametrize("nothing", [[], "nothing was ever added"])
def test_without_new_experience_there_are_no_windows(nothing: Any):
    replay = SequenceReplay(1000, 0)
    if nothing == []:
        replay.add([chunk(1, 0, 8)])
        replay.add(nothing)
    assert replay.newest_windows(10, BURN_IN, HORIZON) is None


def test_service_hands_them_over_by_reference(no_ray: None):
    service, replay = ReplayService(1000, 7), SequenceReplay(1000, 7)
    for buffer, experience in ((service, [[chunk(1, 0, 8)]]), (replay, [chunk(1, 0, 8)])):
        buffer.add(experience)  # type: ignore[arg-type]
    assert same(ray.get(service.newest_windows(10, BURN_IN, HORIZON)), replay.newest_windows(10, BURN_IN, HORIZON))  # type: ignore
    service.add([[]])
    assert service.newest_windows(10, BURN_IN, HORIZON) is None


@pytest.mark.parametrize(("limit", "expected"), [(2 * 8 * 100, 100), (2 * 8 * 30, 30), (1, 8)])
def test_windows_of_large_observations_are_fewer(monkeypatch: pytest.MonkeyPatch, limit: int, expected: int):
    monkeypatch.setattr("wm_rllib.replay.replay.MAX_WINDOW_NUMBERS", limit)
    replay = SequenceReplay(1000, 0)
    replay.add([chunk(1, 0, 12, "terminated")])
    arrays = replay.newest_windows(100, BURN_IN, HORIZON)
    assert arrays is not None and len(arrays[MASK]) == expected
