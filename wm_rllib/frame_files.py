"""Frames in a checkpoint's files, each written once: later checkpoints link what has not changed."""

from __future__ import annotations

import io
import os
import shutil
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

    def link(self, index: int, directory: str, filesystem: Any) -> bool:
        """Whether a slab's frames are in `directory` now, by a link to the file that had them."""
        if index not in self._files or not _is_local(filesystem):
            return False
        name, target = SHARD_NAME.format(index), Path(directory)
        places = [place / name for place in self._places(target)]
        found = next((place for place in places if _identity(place) == self._files[index]), None)
        if found is None:
            return False
        if found == target / name:
            return True
        (target / name).unlink(missing_ok=True)
        try:
            os.link(found, target / name)
        except OSError:
            return False
        return True

    def write(self, index: int, frames: np.ndarray, directory: str, filesystem: Any) -> None:
        """Writes a slab's frames [N, *O]."""
        if _is_local(filesystem):  # what is there may be another checkpoint's file, too
            Path(_path(index, directory)).unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, frames)
        with filesystem.open_output_stream(_path(index, directory)) as stream:
            stream.write(buffer.getbuffer())
        self._note(index, directory, filesystem)

    def read(self, index: int, directory: str, filesystem: Any, *, mapped: bool) -> np.ndarray:
        """A slab's frames [N, *O]; mapped ones are read as they are needed, and cannot be written to."""
        if mapped and _is_local(filesystem):
            return np.load(_path(index, directory), mmap_mode="r")
        with filesystem.open_input_stream(_path(index, directory)) as stream:
            frames = np.load(io.BytesIO(stream.read()))
        self._note(index, directory, filesystem)
        return frames

    def moved_to(self, directory: str) -> None:
        """All files are in this folder."""
        self._directory = Path(directory)

    def _places(self, target: Path) -> list[Path]:
        beside = [folder / target.name for folder in sorted(target.parent.parent.glob("*"))]
        return beside if self._directory is None else [self._directory, *beside]

    def _note(self, index: int, directory: str, filesystem: Any) -> None:
        identity = _identity(Path(_path(index, directory))) if _is_local(filesystem) else None
        if identity is not None:
            self._files[index] = identity


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
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _path(index: int, directory: str) -> str:
    return str(PurePosixPath(directory) / SHARD_NAME.format(index))
