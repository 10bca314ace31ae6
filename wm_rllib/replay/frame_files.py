"""Frames in a checkpoint's files, each written once: later checkpoints link what has not changed."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

PREFIX = "frames-"
SHARD_NAME = PREFIX + "{:05d}.npy"
ANY_SHARD = PREFIX + "*.npy"

Identity = tuple[int, int, int, int]
"""Of a file as it was written: device, inode, bytes, nanoseconds."""


class FrameFiles:
    """Knows which file holds a slab's frames as they are now. Files of checkpoints are never changed, only removed.

    A checkpoint's folder moves when it is finished, and takes the place of the one before, so that files are looked for
    where they were, and in the checkpoints beside the new one. One that is not found is written anew, and so is
    everything where files have no links: on another file system than the last checkpoint, or in a bucket.
    """

    def __init__(self) -> None:
        self._files: dict[int, Identity] = {}
        self._directory: Path | None = None

    def changed(self, index: int) -> None:
        """A slab's frames are no longer those of its file."""
        self._files.pop(index, None)

    def places(self, directory: str, filesystem: Any) -> list[Path]:
        """Folders that may hold files which belong into `directory`; none where files have no links."""
        if not _is_local(filesystem):
            return []
        target = Path(directory)
        beside = sorted(target.parent.parent.glob(f"*/{target.name}"))
        return beside if self._directory is None else [self._directory, *beside]

    def link(self, index: int, directory: str, places: list[Path]) -> bool:
        """Whether a slab's frames are in `directory` now, by a link to the file that had them.

        Args:
            index: Of the slab.
            directory: Where they are wanted.
            places: What `places` returned.
        """
        name, target = SHARD_NAME.format(index), Path(directory) / SHARD_NAME.format(index)
        wanted = self._files.get(index)
        found = next((place / name for place in places if wanted and _identity(place / name) == wanted), None)
        if found is None or found == target:
            return found is not None
        target.unlink(missing_ok=True)
        try:
            os.link(found, target)
        except OSError:
            return False
        return _identity(target) == wanted  # another run may have put its own checkpoint there in between

    def write(self, index: int, frames: np.ndarray, directory: str, filesystem: Any) -> None:
        """Writes a slab's frames [N, *O]."""
        if _is_local(filesystem):
            path = Path(_path(index, directory))
            path.unlink(missing_ok=True)  # what is there may be another checkpoint's file, too
            with path.open("xb") as file:
                np.save(file, frames)
                file.flush()
                self._files[index] = _of(os.fstat(file.fileno()))
            return
        buffer = io.BytesIO()
        np.save(buffer, frames)
        with filesystem.open_output_stream(_path(index, directory)) as stream:
            stream.write(buffer.getbuffer())

    def read(self, index: int, directory: str, filesystem: Any, *, mapped: bool) -> np.ndarray:
        """A slab's frames [N, *O]; mapped ones are read as they are needed, and cannot be written to."""
        path = _path(index, directory)
        if not _is_local(filesystem):
            with filesystem.open_input_stream(path) as stream:
                return np.load(io.BytesIO(stream.read()))
        if mapped:
            return with_more_files(lambda: np.load(path, mmap_mode="r"))
        with open(path, "rb") as file:
            frames = np.load(file)
            self._files[index] = _of(os.fstat(file.fileno()))
        return frames

    def moved_to(self, directory: str) -> None:
        """All files are in this folder."""
        self._directory = Path(directory)


def with_more_files(function: Callable[[], np.ndarray]) -> np.ndarray:
    """Calls a function that maps a file, and once more, with as many open files as are allowed, if there are too many.

    Each map keeps a descriptor, and the usual limit of 1,024 is soft.
    """
    try:
        return function()
    except OSError as error:
        import resource  # there is none on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return function()


def link_or_copy(source: str, target: str) -> None:
    """For `shutil.copytree` of a checkpoint: frames are linked, where files have links, and all else is copied."""
    if Path(source).match(ANY_SHARD):
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copy2(source, target)


def _is_local(filesystem: Any) -> bool:
    return filesystem.type_name == "local"


def _identity(path: Path) -> Identity | None:
    try:
        return _of(path.stat())
    except OSError:
        return None


def _of(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _path(index: int, directory: str) -> str:
    return str(PurePosixPath(directory) / SHARD_NAME.format(index))
