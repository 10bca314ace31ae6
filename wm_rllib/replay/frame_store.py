"""Frames by number: each stored once, in slabs of memory, in files, or compressed; their latents beside them."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from typing import Any, Literal, Protocol, get_args

import lz4.block
import numpy as np

from wm_rllib.replay.frame_files import FrameFiles, with_more_files

Storage = Literal["memory", "compressed", "disk"]

SLAB_BYTES = 16 * 2**20
"""Of frames that memory is asked for at a time, and that a checkpoint writes into one file."""

LEAST_SLABS = 32
"""That frames are spread over when their bytes are bounded, for how much of them stays empty."""


class Slabs(Protocol):
    """Room for frames, which grows."""

    def read(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Copies the frames [N, *O] of N numbers into `out`."""

    def write(self, first: int, frames: np.ndarray) -> None:
        """Stores frames [N, *O] at the numbers from `first` on, all within one slab."""

    def grow(self) -> None:
        """Makes room for one more slab."""

    def clear(self, number: int) -> None:
        """Forgets a frame."""

    def size_of(self, number: int) -> int:
        """Bytes that a frame takes."""

    @property
    def num_bytes(self) -> int:
        """What the frames take, room for more included."""


class MemorySlabs:
    """Frames as they are, in memory; or in files that the system keeps in memory as long as there is room.

    Args:
        shape: Of a frame, *O.
        dtype: Of its numbers.
        size: Frames of a slab.
        directory: Where the files are, which have no names; None: no files.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, size: int, directory: str | None):
        self._shape, self._dtype, self._size, self._directory = shape, dtype, size, directory
        self._slabs: list[np.ndarray] = []

    def read(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """See `Slabs`."""
        for index in np.unique(numbers // self._size):
            which = numbers // self._size == index
            out[which] = self._slabs[index][numbers[which] % self._size]

    def write(self, first: int, frames: np.ndarray) -> None:
        """See `Slabs`."""
        index, at = divmod(first, self._size)
        self._slabs[index][at : at + len(frames)] = frames

    def take(self, frames: np.ndarray) -> None:
        """Has an array of a slab's frames, which may be mapped and read-only, as one more slab."""
        self._slabs.append(frames)

    def grow(self) -> None:
        """See `Slabs`."""
        shape = (self._size, *self._shape)
        if self._directory is None:
            self._slabs.append(np.empty(shape, self._dtype))
        else:
            self._slabs.append(with_more_files(self._mapped))

    def _mapped(self) -> np.ndarray:
        shape = (self._size, *self._shape)
        # A file without a name: it is gone with this process, however that ends.
        with tempfile.TemporaryFile(dir=self._directory) as file:
            # Without room a write into the map would be the signal SIGBUS; here it is an error.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * self._dtype.itemsize)
            return np.memmap(file, self._dtype, "w+", shape=shape)

    def clear(self, number: int) -> None:
        """See `Slabs`: the room stays, and is used again."""

    def size_of(self, number: int) -> int:
        """See `Slabs`: all are of one size."""
        return math.prod(self._shape) * self._dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """See `Slabs`."""
        return sum(slab.nbytes for slab in self._slabs)


class CompressedSlabs:
    """Frames packed by LZ4, each by itself: three to ten times smaller where there is sky, and 10 us to read one."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, size: int):
        self._shape, self._dtype, self._size = shape, dtype, size
        self._packed: list[bytes] = []

    def read(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """See `Slabs`."""
        for row, number in enumerate(numbers):
            raw = lz4.block.decompress(self._packed[number])
            out[row] = np.frombuffer(raw, self._dtype).reshape(self._shape)

    def write(self, first: int, frames: np.ndarray) -> None:
        """See `Slabs`."""
        for number, frame in enumerate(frames, first):
            self._packed[number] = lz4.block.compress(frame.tobytes())

    def grow(self) -> None:
        """See `Slabs`."""
        self._packed += [b""] * self._size

    def clear(self, number: int) -> None:
        """See `Slabs`."""
        self._packed[number] = b""

    def size_of(self, number: int) -> int:
        """See `Slabs`."""
        return len(self._packed[number])

    @property
    def num_bytes(self) -> int:
        """See `Slabs`."""
        return sum(map(len, self._packed))


class FrameStore:
    """Frames by number, and the latents that V makes of them. A number that was freed is given out again.

    Args:
        storage: "memory"; "compressed": by LZ4, in memory; "disk": in files mapped into memory, of which nothing
            is left after the process.
        directory: Where "disk" has them; None: where the system has its temporary files.
        max_bytes: Of frames, with room for more; see `excess_bytes`. None: any number.
    """

    def __init__(self, storage: Storage = "memory", directory: str | None = None, max_bytes: float | None = None):
        if storage not in get_args(Storage):
            raise ValueError(f"storage is {storage!r}, but must be one of {', '.join(map(repr, get_args(Storage)))}.")
        self._storage, self._directory, self.max_bytes = storage, directory, max_bytes
        self._held_bytes = 0
        self._slabs: Slabs | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)
        self._slab_size = 0
        self._capacity = 0
        self._free: list[int] = []
        self._latents: np.ndarray | None = None
        self._is_encoded = np.zeros(0, bool)
        self._is_held = np.zeros(0, bool)
        self._files = FrameFiles()

    def __len__(self) -> int:
        """Frames held."""
        return int(self._is_held.sum())

    @property
    def is_used(self) -> bool:
        """Whether a frame was ever stored here."""
        return self._slabs is not None

    @property
    def num_bytes(self) -> int:
        """What frames and latents take, in memory or files."""
        latents = 0 if self._latents is None else self._latents.nbytes
        return latents + (self._slabs.num_bytes if self._slabs else 0)

    def excess_bytes(self, incoming: int) -> float:
        """Bytes of frames to be freed by whoever has their numbers, so that incoming ones stay within `max_bytes`.

        There is to be room for a slab that is partly empty. Incoming bytes are counted as if they were not compressed.
        """
        return 0.0 if self.max_bytes is None else self._held_bytes + incoming + self._slab_bytes - self.max_bytes

    @property
    def _slab_bytes(self) -> float:
        return SLAB_BYTES if self.max_bytes is None else min(SLAB_BYTES, self.max_bytes / LEAST_SLABS)

    def size_of(self, numbers: np.ndarray) -> int:
        """Bytes that frames [N] take."""
        assert self._slabs is not None
        return sum(map(self._slabs.size_of, numbers.tolist()))

    # --- frames ------------------------------------------------------------------------------------------------------

    def add(self, frames: np.ndarray) -> np.ndarray:
        """Stores frames [N, *O] and returns their numbers [N].

        Raises:
            ValueError: They differ in shape or type from those before.
        """
        if self._slabs is None:
            self._open(frames.shape[1:], frames.dtype)
        if frames.shape[1:] != self._shape or frames.dtype != self._dtype:
            raise ValueError(
                f"frames of shape {frames.shape[1:]} and type {frames.dtype} cannot go where those of shape "
                f"{self._shape} and type {self._dtype} are."
            )
        while len(self._free) < len(frames):
            self._grow()
        taken = np.array(self._free[-len(frames) :][::-1] if len(frames) else [], np.int64)
        del self._free[len(self._free) - len(frames) :]
        assert self._slabs is not None
        for start, stop in _runs(taken, self._slab_size):
            self._slabs.write(int(taken[start]), frames[start:stop])
            self._files.changed(int(taken[start]) // self._slab_size)
        self._held_bytes += self.size_of(taken)
        self._is_held[taken], self._is_encoded[taken] = True, False
        return taken

    def get(self, numbers: np.ndarray) -> np.ndarray:
        """Frames [..., *O] of numbers [...]; zeros where a number is negative."""
        flat = numbers.ravel()
        out = np.zeros((len(flat), *self._shape), self._dtype)
        wanted = flat >= 0
        if wanted.any() and self._slabs is not None:
            if wanted.all():
                self._slabs.read(flat, out)
            else:
                found = np.empty((int(wanted.sum()), *self._shape), self._dtype)
                self._slabs.read(flat[wanted], found)
                out[wanted] = found
        return out.reshape(*numbers.shape, *self._shape)

    def free(self, numbers: np.ndarray) -> None:
        """Gives numbers back, whose frames nobody needs any more."""
        assert self._slabs is not None
        self._held_bytes -= self.size_of(numbers)
        for number in numbers.tolist():
            self._slabs.clear(number)
        self._free += numbers.tolist()
        self._is_held[numbers] = False

    def _open(self, shape: tuple[int, ...], dtype: np.dtype, slab_size: int | None = None) -> None:
        self._shape, self._dtype = tuple(shape), dtype
        self._slab_size = slab_size or max(1, int(self._slab_bytes) // (math.prod(shape) * dtype.itemsize))
        if self._storage == "compressed":
            self._slabs = CompressedSlabs(self._shape, dtype, self._slab_size)
            return
        directory = (self._directory or tempfile.gettempdir()) if self._storage == "disk" else None
        self._slabs = MemorySlabs(self._shape, dtype, self._slab_size, directory)

    def _grow(self) -> None:
        assert self._slabs is not None
        self._slabs.grow()
        self._add_numbers()

    def _add_numbers(self) -> None:
        new = range(self._capacity, self._capacity + self._slab_size)
        self._free = [*reversed(new), *self._free]  # given out from the end, lowest number first
        self._capacity += self._slab_size
        more = np.zeros(self._slab_size, bool)
        self._is_held, self._is_encoded = np.append(self._is_held, more), np.append(self._is_encoded, more)
        if self._latents is not None:
            self._latents = np.append(self._latents, np.zeros((self._slab_size, self._latents.shape[1]), np.float32), 0)

    # --- latents -----------------------------------------------------------------------------------------------------

    def not_encoded(self, most: int) -> np.ndarray:
        """Numbers of up to so many frames that have no latent yet."""
        return np.flatnonzero(self._is_held & ~self._is_encoded)[:most]

    def forget_latents(self) -> None:
        """V has changed."""
        self._is_encoded[:] = False

    def set_latents(self, numbers: np.ndarray, latents: np.ndarray) -> None:
        """Latents [N, Z] of N frames."""
        if self._latents is None or self._latents.shape[1] != latents.shape[1]:
            self._latents = np.zeros((self._capacity, latents.shape[1]), np.float32)
        self._latents[numbers], self._is_encoded[numbers] = latents, True

    def latents(self, numbers: np.ndarray) -> np.ndarray:
        """Latents [..., Z] of numbers [...]; zeros where a number is negative.

        Raises:
            LookupError: A frame has none: V was not asked for it.
        """
        wanted = numbers >= 0
        if self._latents is None or not self._is_encoded[numbers[wanted]].all():
            raise LookupError("a frame has no latent yet: encode the replay first.")
        return np.where(wanted[..., None], self._latents[np.maximum(numbers, 0)], np.float32(0.0))

    # --- checkpoint --------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything but the frames themselves."""
        return {
            "capacity": self._capacity,
            "frame_bytes": math.prod(self._shape) * self._dtype.itemsize,
            "free": list(self._free),
            "latents": None if self._latents is None else self._latents.copy(),
            "is_encoded": self._is_encoded.copy(),
            "is_held": self._is_held.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned, once the frames are there."""
        assert self._capacity == state["capacity"]
        self._free = list(state["free"])
        self._latents = None if state["latents"] is None else np.array(state["latents"])
        self._is_encoded, self._is_held = np.array(state["is_encoded"]), np.array(state["is_held"])
        assert self._slabs is not None
        for number in np.flatnonzero(~self._is_held).tolist():
            self._slabs.clear(number)
        self._held_bytes = self.size_of(np.flatnonzero(self._is_held))

    def num_shards(self) -> int:
        """Slabs."""
        return self._capacity // self._slab_size if self._slab_size else 0

    def shard(self, index: int) -> np.ndarray:
        """All frames of one slab, held or not, [N, *O]."""
        assert self._slabs is not None
        numbers = np.arange(index * self._slab_size, (index + 1) * self._slab_size)
        out = np.zeros((self._slab_size, *self._shape), self._dtype)
        held = self._is_held[numbers]
        if held.any():
            found = np.empty((int(held.sum()), *self._shape), self._dtype)
            self._slabs.read(numbers[held], found)
            out[held] = found
        return out

    def add_shard(self, frames: np.ndarray) -> None:
        """Puts back what `shard` returned, one index after the other, into an empty store."""
        if self._slabs is None:
            self._open(frames.shape[1:], frames.dtype, len(frames))
        first = self._capacity
        self._grow()
        assert self._slabs is not None
        self._slabs.write(first, frames)

    def has_room_for(self, slab_bytes: int) -> bool:
        """Whether slabs of so many bytes in all are within the bound; always if frames get compressed."""
        return self.max_bytes is None or self._storage == "compressed" or slab_bytes <= self.max_bytes

    def would_exceed(self, frame_bytes: int) -> bool:
        """Whether so many bytes of frames are beyond what `excess_bytes` allows; never if they get compressed."""
        return not self.has_room_for(frame_bytes + int(self._slab_bytes))

    def load_some(
        self, directory: str, filesystem: Any, num_shards: int, state: dict[str, Any], wanted: np.ndarray
    ) -> np.ndarray:
        """Reads some of the frames that `save` wrote, with their latents, into an empty store, and numbers them anew.

        Args:
            directory: Where they are.
            filesystem: A pyarrow filesystem.
            num_shards: Slabs that were saved.
            state: What `get_state` returned then.
            wanted: Their numbers, ascending.

        Returns:
            Their new numbers by the old ones, -1 for those that were not wanted.
        """
        renumbered, first = np.full(state["capacity"], -1, np.int64), 0
        for index in range(num_shards):
            frames = self._files.read(index, directory, filesystem, mapped=False)
            numbers = wanted[(wanted >= first) & (wanted < first + len(frames))]
            if len(numbers):
                renumbered[numbers] = self.add(frames[numbers - first])
            first += len(frames)
        encoded = wanted[state["is_encoded"][wanted]]
        if state["latents"] is not None and len(encoded):
            self.set_latents(renumbered[encoded], state["latents"][encoded])
        self._files = FrameFiles()  # none of the slabs is as its file was
        return renumbered

    def _take_shard(self, frames: np.ndarray) -> None:
        if self._slabs is None:
            self._open(frames.shape[1:], frames.dtype, len(frames))
        assert isinstance(self._slabs, MemorySlabs)
        self._slabs.take(frames)
        self._add_numbers()

    def save(self, directory: str, filesystem: Any) -> None:
        """Puts the frames into `directory` of a pyarrow filesystem, a file for each slab.

        A slab to which nothing was added since it was last saved or loaded is linked, where files have links. Frames
        that are no longer held may then be in its file.
        """
        places = self._files.places(directory, filesystem)
        for index in range(self.num_shards()):
            if not self._files.link(index, directory, places):
                self._files.write(index, self.shard(index), directory, filesystem)
        self._files.moved_to(directory)

    def load(self, directory: str, filesystem: Any, num_shards: int, *, mapped: bool = False) -> None:
        """Reads what `save` wrote into an empty store.

        Args:
            directory: Where it is.
            filesystem: A pyarrow filesystem.
            num_shards: Slabs that were saved.
            mapped: Frames stay in the files until they are asked for, and none can be added; for "memory".
        """
        for index in range(num_shards):
            frames = self._files.read(index, directory, filesystem, mapped=mapped)
            if mapped:
                self._take_shard(frames)
            else:
                self.add_shard(frames)
        self._files.moved_to(directory)


def _runs(numbers: np.ndarray, slab_size: int) -> list[tuple[int, int]]:
    """Stretches [start, stop) of consecutive numbers within one slab."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero((np.diff(numbers) != 1) | (numbers[1:] % slab_size == 0)) + 1
    edges = [0, *breaks.tolist(), len(numbers)]
    return list(itertools.pairwise(edges))
