"""Frames of checkpoints: each slab written once, and linked by the checkpoints that come after."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from wm_rllib.replay import frame_files, frame_store
from wm_rllib.replay.frame_store import FrameStore
from wm_rllib.runs import checkpoints

SHAPE = (4, 5, 3)
SLAB = 7
LOCAL = pyarrow.fs.LocalFileSystem()


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_store, "SLAB_BYTES", SLAB * 4 * 5 * 3)


def some(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (count, *SHAPE), np.uint8)


def save(store: FrameStore, folder: Path) -> list[int]:
    """Saves, and returns the inodes of the slabs' files."""
    replay = folder / "replay"
    replay.mkdir(parents=True, exist_ok=True)
    store.save(str(replay), LOCAL)
    return inodes(folder)


def inodes(folder: Path) -> list[int]:
    return [path.stat().st_ino for path in sorted((folder / "replay").glob("frames-*.npy"))]


def loaded(
    store: FrameStore, folder: Path, storage: frame_store.Storage = "memory", *, mapped: bool = False
) -> FrameStore:
    """A new store with the frames of a folder, and the state of the store that saved them."""
    result = FrameStore(storage, str(folder))
    result.load(str(folder / "replay"), LOCAL, store.num_shards(), mapped=mapped)
    result.set_state(store.get_state())
    return result


@pytest.mark.parametrize("storage", ["memory", "compressed", "disk"])
def test_what_has_not_changed_is_linked(storage: frame_store.Storage, tmp_path: Path):
    store = FrameStore(storage, str(tmp_path))
    frames = some(20, 0)
    numbers = store.add(frames)
    first = save(store, tmp_path / "first")
    store.free(numbers[:3])
    replaced = some(2, 1)
    new = store.add(replaced)
    assert new.max() < SLAB  # into the first slab
    second = save(store, tmp_path / "second")
    assert [one == other for one, other in zip(first, second, strict=True)] == [False, True, True]
    restored = loaded(store, tmp_path / "second", storage)
    assert (restored.get(numbers[3:]) == frames[3:]).all()
    assert (restored.get(new) == replaced).all()
    assert len(restored) == 19 and restored.num_bytes == store.num_bytes


def test_a_frame_that_was_freed_alone_changes_no_file(tmp_path: Path):
    store = FrameStore("compressed")
    numbers = store.add(some(14, 0))
    first = save(store, tmp_path / "first")
    store.free(numbers[2:9])
    assert save(store, tmp_path / "second") == first
    restored = loaded(store, tmp_path / "second", "compressed")
    assert len(restored) == 7 and restored.num_bytes == store.num_bytes


def test_a_checkpoint_that_took_the_place_of_the_last_one_is_found(tmp_path: Path):
    store = FrameStore()
    store.add(some(10, 0))
    meta = checkpoints.CheckpointMeta(1, 1, 1.0)
    written = []
    for _ in range(3):
        last = checkpoints.write(tmp_path, "last", meta, {}, lambda path: save(store, path))
        written.append(inodes(last))
    assert written[0] == written[1] == written[2]
    best = checkpoints.copy(last, tmp_path, "best")
    assert inodes(best) == written[0]
    assert not os.path.samefile(best / "wm_rllib.json", last / "wm_rllib.json")


def test_a_restored_run_links_the_checkpoint_that_it_came_from(tmp_path: Path):
    store = FrameStore()
    store.add(some(10, 0))
    first = save(store, tmp_path / "one" / "checkpoints" / "last")
    restored = loaded(store, tmp_path / "one" / "checkpoints" / "last")
    assert save(restored, tmp_path / "other" / "checkpoints" / "last") == first


@pytest.mark.parametrize("lost", ["removed", "overwritten"])
def test_what_is_not_there_any_more_is_written_anew(tmp_path: Path, lost: str):
    store = FrameStore()
    frames = some(10, 0)
    numbers = store.add(frames)
    save(store, tmp_path / "first")
    for path in (tmp_path / "first" / "replay").iterdir():
        path.unlink()
        if lost == "overwritten":
            path.write_bytes(b"other")
    save(store, tmp_path / "second")
    assert (loaded(store, tmp_path / "second").get(numbers) == frames).all()


def test_a_second_save_into_one_folder_leaves_other_checkpoints_as_they_are(tmp_path: Path):
    store = FrameStore()
    frames = some(10, 0)
    numbers = store.add(frames)
    state = store.get_state()
    one = save(store, tmp_path / "one")
    assert save(store, tmp_path / "other") == one
    assert save(store, tmp_path / "one") == one
    store.free(numbers[:2])
    store.add(some(2, 1))
    assert save(store, tmp_path / "one") != one
    before = FrameStore()
    before.load(str(tmp_path / "other" / "replay"), LOCAL, 2)
    before.set_state(state)
    assert (before.get(numbers) == frames).all()


def test_files_without_links_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FrameStore()
    frames = some(10, 0)
    numbers = store.add(frames)

    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    meta = checkpoints.CheckpointMeta(1, 1, 1.0)
    first = checkpoints.write(tmp_path, "last", meta, {}, lambda path: save(store, path))
    best = checkpoints.copy(first, tmp_path, "best")
    last = checkpoints.write(tmp_path, "last", meta, {}, lambda path: save(store, path))
    assert not set(inodes(last)) & set(inodes(best))
    for folder in (last, best):
        assert (loaded(store, folder).get(numbers) == frames).all()


def test_a_file_that_another_run_swaps_in_between_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FrameStore()
    frames = some(7, 0)
    numbers = store.add(frames)
    save(store, tmp_path / "first")
    link = os.link

    def swap_and_link(source: Path, target: Path) -> None:
        source.unlink()
        np.save(source, some(7, 1))
        link(source, target)

    monkeypatch.setattr(os, "link", swap_and_link)
    save(store, tmp_path / "second")
    assert (loaded(store, tmp_path / "second").get(numbers) == frames).all()


def test_more_files_than_the_soft_limit_allows(monkeypatch: pytest.MonkeyPatch):
    limits, opened = [(1024, 4096)], []

    def map_a_file() -> np.ndarray:
        opened.append(limits[-1])
        if limits[-1][0] == 1024:
            raise OSError(errno.EMFILE, "Too many open files")
        return np.zeros(1)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert frame_files.with_more_files(map_a_file).tolist() == [0.0]
    assert opened == [(1024, 4096), (4096, 4096)]


def test_mapped_frames_are_read_when_they_are_asked_for(tmp_path: Path):
    store = FrameStore()
    frames = some(20, 0)
    numbers = store.add(frames)
    store.set_latents(numbers, np.ones((20, 2), np.float32))
    save(store, tmp_path / "first")
    mapped = loaded(store, tmp_path / "first", mapped=True)
    path = tmp_path / "first" / "replay" / "frames-00000.npy"
    changed = np.load(path)
    changed[0] = 0
    with path.open("r+b") as file:  # nobody does: it shows where the frames are
        file.seek(os.path.getsize(path) - changed.nbytes)
        file.write(changed.tobytes())
    assert (mapped.get(numbers[1:]) == frames[1:]).all() and not mapped.get(numbers[:1]).any()
    assert (mapped.latents(numbers) == 1.0).all()
