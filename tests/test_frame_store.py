"""Frames by number, held to a plain dict of arrays that remembers the truth."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from wm_rllib.replay import frame_store
from wm_rllib.replay.frame_store import FrameStore

SHAPE = (4, 5, 3)


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_store, "SLAB_BYTES", 7 * 4 * 5 * 3)  # seven frames


def some(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def test_a_state_stays_what_it_was():
    store = FrameStore()
    kept = store.add(some(3, 0))
    store.set_latents(kept, np.ones((3, 2), np.float32))
    state = store.get_state()
    store.free(kept[:1])
    store.add(some(2, 1))
    store.forget_latents()
    assert state["is_held"].sum() == state["is_encoded"].sum() == 3
    store.set_state(state)
    assert not len(store.not_encoded(9)) and store.latents(kept).tolist() == np.ones((3, 2)).tolist()


def test_a_disk_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frame_store.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FrameStore("disk", directory=str(tmp_path)).add(some(1, 0))


@pytest.mark.parametrize("storage", ["memory", "compressed", "disk"])
def test_frames_come_back_whatever_was_added_and_freed(storage: frame_store.Storage, tmp_path: Path):
    store, truth, rng = FrameStore(storage, str(tmp_path)), dict[int, np.ndarray](), np.random.default_rng(0)
    for turn in range(40):
        frames = some(int(rng.integers(0, 12)), turn)
        numbers = store.add(frames)
        assert not set(numbers.tolist()) & set(truth)
        truth |= dict(zip(numbers.tolist(), frames, strict=True))
        gone = rng.permutation(list(truth))[: int(rng.integers(0, 8))].astype(int)
        store.free(gone)
        for number in gone.tolist():
            del truth[number]
        assert len(store) == len(truth)
        if truth:
            asked = rng.choice(list(truth), size=(3, 4))
            found = store.get(asked)
            assert all((found[i, j] == truth[asked[i, j]]).all() for i in range(3) for j in range(4))


def test_room_that_was_freed_is_used_again():
    store = FrameStore()
    for turn in range(50):
        store.free(store.add(some(10, turn)))
    assert store.num_bytes <= 3 * 7 * int(np.prod(SHAPE))


def test_a_negative_number_is_a_frame_of_zeros():
    store = FrameStore()
    frames = some(2, 0) | 1
    first, second = store.add(frames)
    found = store.get(np.array([[-1, first], [second, -1]]))
    assert not found[0, 0].any() and not found[1, 1].any()
    assert (found[0, 1] == frames[0]).all() and (found[1, 0] == frames[1]).all()


def test_compression_makes_plain_frames_small():
    packed, plain = FrameStore("compressed"), FrameStore()
    for store in (packed, plain):
        store.add(np.zeros((14, *SHAPE), np.uint8))
    assert 0 < packed.num_bytes < plain.num_bytes / 2


def test_files_on_disk_have_no_names_that_could_be_left(tmp_path: Path):
    store = FrameStore("disk", str(tmp_path))
    frames = some(20, 0)
    numbers = store.add(frames)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()  # they are there
    assert not list(tmp_path.iterdir())  # a process that is killed cleans nothing up
    assert (store.get(numbers) == frames).all()
    del store
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_latents_are_asked_for_once_and_again_when_v_has_changed():
    store = FrameStore()
    numbers = store.add(some(9, 0))
    assert store.not_encoded(100).tolist() == sorted(numbers.tolist())
    latents = np.arange(18, dtype=np.float32).reshape(9, 2)
    store.set_latents(numbers, latents)
    assert not len(store.not_encoded(100))
    found = store.latents(np.array([[numbers[3], -1]]))
    assert found.tolist() == [[latents[3].tolist(), [0.0, 0.0]]]
    more = store.add(some(1, 1))
    assert store.not_encoded(100).tolist() == more.tolist()
    with pytest.raises(LookupError, match="no latent"):
        store.latents(more)
    store.forget_latents()
    assert len(store.not_encoded(4)) == 4


@pytest.mark.parametrize("storage", ["memory", "compressed", "disk"])
def test_a_checkpoint_has_a_file_for_each_slab(storage: frame_store.Storage, tmp_path: Path):
    store = FrameStore(storage, str(tmp_path))
    numbers = store.add(some(20, 0))
    store.set_latents(numbers, np.ones((20, 2), np.float32))
    store.free(numbers[5:9])
    kept = np.delete(numbers, slice(5, 9))
    filesystem, folder = pyarrow.fs.LocalFileSystem(), tmp_path / "saved"
    folder.mkdir()
    store.save(str(folder), filesystem)
    assert len(list(folder.iterdir())) == 3
    restored = FrameStore(storage, str(tmp_path))
    restored.load(str(folder), filesystem, store.num_shards())
    restored.set_state(store.get_state())
    assert (restored.get(kept) == store.get(kept)).all() and len(restored) == 16
    assert (restored.latents(kept) == 1.0).all()
    more = some(10, 1)
    assert restored.add(more).tolist() == store.add(more).tolist()


def test_frames_of_another_shape_are_refused():
    store = FrameStore()
    store.add(some(1, 0))
    with pytest.raises(ValueError, match="cannot go where"):
        store.add(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="must be one of 'memory'"):
        FrameStore("tape")  # type: ignore[arg-type]
