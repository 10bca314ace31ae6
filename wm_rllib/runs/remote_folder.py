"""A run folder on a filesystem that pyarrow reaches by URI (s3://, gs://, hdfs://, file://).

The run works in a staging folder of this machine, and what must outlast it is copied here after each checkpoint. Object
stores rename nothing, so a checkpoint is finished when its `wm_rllib.json` is there, which is written last and removed
first: it is uploaded as `.tmp-<name>-<process>`, then `<name>` is replaced by a copy made inside the store. A kill at
any moment leaves one of the two finished, and a process that has lost the folder meanwhile writes nowhere but there.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
from pyarrow.fs import FileSelector, FileType

from wm_rllib.runs.checkpoints import META_FILE
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.filesystems import connect, download, first_line

CHECKPOINTS, OWNER = "checkpoints", ".owner"
ATTEMPTS = 3
"""To read a checkpoint that another process replaces meanwhile."""
PROGRESS, CONFIG, TENSORBOARD = "progress.jsonl", "config.yaml", "tensorboard"


class RemoteFolder:
    """The lasting copy of one run folder.

    Of two processes that use one, the later wins: after a lost machine nobody is left to give a lock back. The earlier
    notices at its next checkpoint, before it writes anything.
    """

    def __init__(self, uri: str, filesystem: Any = None, root: str | None = None) -> None:
        """Connect; reads and writes nothing.

        Args:
            uri: What the user calls it.
            filesystem: A pyarrow filesystem to use in place of the URI's own.
            root: Path of the folder in that filesystem.

        Raises:
            CommandError: If there is no such filesystem.
        """
        self.uri = uri
        self._fs, self._root = connect(uri) if filesystem is None else (filesystem, root or "")
        self._staging = tempfile.TemporaryDirectory(prefix="wm_rllib-")
        self._id = uuid.uuid4().hex
        self._pushed: dict[str, tuple[int, int]] = {}

    @property
    def staging(self) -> Path:
        """The folder of this machine that the run works in; it goes with this object."""
        return Path(self._staging.name)

    def is_used(self) -> bool:
        """Return whether it holds anything of a run."""
        with self._readable():
            return any(self._exists(name) for name in (CONFIG, PROGRESS)) or bool(self._list(CHECKPOINTS))

    def pull(self) -> None:
        """Copy what a run resumes from into the staging folder.

        Raises:
            CommandError: If it cannot be read.
        """
        with self._readable():
            for name in (CONFIG, PROGRESS):
                if self._exists(name):
                    (self.staging / name).write_bytes(self._read(name))
            for name in ("last", "best"):
                if self._download_whole(name, self.staging / CHECKPOINTS / name):
                    self._is_new(self.staging / CHECKPOINTS / name / META_FILE, _final(name))

    def fetch(self, name: str, target: Path) -> bool:
        """Copy one checkpoint to a path that does not exist yet; False if there is none of this name.

        Raises:
            CommandError: If it cannot be read.
        """
        with self._readable():
            return self._download_whole(name, target)

    def claim(self) -> None:
        """Make this process the one that writes here, and finish what a kill interrupted.

        Raises:
            CommandError: If it cannot be written.
        """
        holder = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid()}
        with self._writable():
            self._write(OWNER, json.dumps(holder).encode())
            for name in ("last", "best"):
                place = self._finished_place(name)
                if place is not None and place != _final(name):
                    self._put_in_place(place, name)
                for leftover in self._temporaries(name):
                    self._remove_checkpoint(leftover)

    def push(self) -> None:
        """Copy what is new in the staging folder.

        The rows are there before the checkpoint that they lead to, and stay until no checkpoint needs them, so that a
        kill in between leaves progress.jsonl without a gap.

        Raises:
            CommandError: If it cannot be written, or if another process has taken the folder over.
        """
        with self._writable():
            self._check_owner()
            going_back = (self._iteration("last") or 0) > (_local_iteration(self.staging / CHECKPOINTS / "last") or 0)
            if going_back:  # the process before this one wrote on between `pull` and `claim`
                self._pushed.pop(_final("last"), None)
                if not (self.staging / CHECKPOINTS / "last" / META_FILE).exists():
                    self._remove_checkpoint(_final("last"))
            else:
                self._push_files()
            for name in ("last", "best"):
                self._push_checkpoint(name)
            if going_back:
                self._push_files()

    # --- parts of a push ---------------------------------------------------------------------------------------------

    def _push_files(self) -> None:
        for path in (self.staging / CONFIG, self.staging / PROGRESS, *sorted((self.staging / TENSORBOARD).glob("*"))):
            name = path.relative_to(self.staging).as_posix()
            if path.exists() and self._is_new(path, name):
                self._write(name, path.read_bytes())

    def _push_checkpoint(self, name: str) -> None:
        source, temporary = self.staging / CHECKPOINTS / name, f"{_temporary(name)}-{self._id}"
        if not (source / META_FILE).exists() or not self._is_new(source / META_FILE, _final(name)):
            return
        self._remove_checkpoint(temporary)
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.name != META_FILE)
        for path in files:
            self._upload(path, f"{temporary}/{path.relative_to(source).as_posix()}")
        self._check_owner()  # again: another process may have come during the minutes that this took
        self._upload(source / META_FILE, f"{temporary}/{META_FILE}")
        self._put_in_place(temporary, name)

    def _put_in_place(self, temporary: str, name: str) -> None:
        """Make <name> a copy of a finished checkpoint elsewhere in the folder, and remove that."""
        final = _final(name)
        self._remove_checkpoint(final)
        files = [path for path in self._list(temporary) if path != META_FILE]
        for path in (*sorted(files), META_FILE):
            target = self._path(f"{final}/{path}")
            self._fs.create_dir(posixpath.dirname(target), recursive=True)
            self._fs.copy_file(self._path(f"{temporary}/{path}"), target)
        self._remove_checkpoint(temporary)

    def _remove_checkpoint(self, place: str) -> None:
        if self._exists(f"{place}/{META_FILE}"):
            self._fs.delete_file(self._path(f"{place}/{META_FILE}"))
        if self._fs.get_file_info(self._path(place)).type is FileType.Directory:
            self._fs.delete_dir(self._path(place))

    def _is_new(self, path: Path, name: str) -> bool:
        """Return whether a file differs from what was pushed under this name; notes that it is pushed now."""
        stat = path.stat()
        mark = stat.st_size, stat.st_mtime_ns
        before, self._pushed[name] = self._pushed.get(name), mark
        return before != mark

    def _check_owner(self) -> None:
        holder = json.loads(self._read(OWNER)) if self._exists(OWNER) else {"id": None}
        if holder["id"] != self._id:
            raise CommandError(
                f"run folder {self.uri} was taken over by process {holder.get('pid')} on {holder.get('host')}; nothing "
                "was written since. Fix: one run at a time in a run folder."
            )

    # --- the filesystem ----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _exists(self, name: str) -> bool:
        return bool(self._fs.get_file_info(self._path(name)).type is FileType.File)

    def _read(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file so that a kill leaves the old or the new one."""
        target = self._path(name)
        temporary = f"{target}.tmp"
        self._fs.create_dir(posixpath.dirname(target), recursive=True)
        with self._fs.open_output_stream(temporary) as stream:
            stream.write(content)
        self._fs.move(temporary, target)

    def _upload(self, path: Path, name: str) -> None:
        target = self._path(name)
        self._fs.create_dir(posixpath.dirname(target), recursive=True)
        pyarrow.fs.copy_files(
            str(path), target, source_filesystem=pyarrow.fs.LocalFileSystem(), destination_filesystem=self._fs
        )

    def _download(self, place: str, target: Path) -> None:
        download(self._fs, self._path(place), target)

    def _download_whole(self, name: str, target: Path) -> bool:
        """Fetch a checkpoint, none of it from the next one that another process puts in its place; False without one.

        Raises:
            CommandError: If it was replaced each time.
        """
        for _ in range(ATTEMPTS):
            place = self._finished_place(name)
            if place is None:
                return False
            before = self._read(f"{place}/{META_FILE}")
            try:
                self._download(place, target)
                if self._read(f"{place}/{META_FILE}") == before:
                    return True
            except FileNotFoundError:  # removed meanwhile
                pass
            shutil.rmtree(target, ignore_errors=True)
        raise CommandError(
            f"{self.uri}/{_final(name)} was replaced while it was read, again and again. Fix: end the run that writes "
            "it, then try once more."
        )

    def _list(self, place: str) -> list[str]:
        """Return the files below a place, as paths from there."""
        selector = FileSelector(self._path(place), allow_not_found=True, recursive=True)
        files = [info.path for info in self._fs.get_file_info(selector) if info.type is FileType.File]
        return [posixpath.relpath(path, self._path(place)) for path in files]

    def _finished_place(self, name: str) -> str | None:
        places = (_final(name), *self._temporaries(name))
        return next((place for place in places if self._exists(f"{place}/{META_FILE}")), None)

    def _temporaries(self, name: str) -> list[str]:
        """Return the places of checkpoints of this name that were not put in theirs."""
        selector = FileSelector(self._path(CHECKPOINTS), allow_not_found=True)
        names = sorted(posixpath.basename(info.path.rstrip("/")) for info in self._fs.get_file_info(selector))
        return [f"{CHECKPOINTS}/{each}" for each in names if each.startswith(f".tmp-{name}")]

    def _iteration(self, name: str) -> int | None:
        place = self._finished_place(name)
        return None if place is None else int(json.loads(self._read(f"{place}/{META_FILE}"))["training_iteration"])

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise CommandError(f"run folder {self.uri} cannot be read: {first_line(error)}.") from None

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise CommandError(
                f"run folder {self.uri} cannot be written: {first_line(error)}. Fix: another --run-dir, or its rights."
            ) from None


def _final(name: str) -> str:
    return f"{CHECKPOINTS}/{name}"


def _temporary(name: str) -> str:
    return f"{CHECKPOINTS}/.tmp-{name}"


def _local_iteration(checkpoint: Path) -> int | None:
    path = checkpoint / META_FILE
    return int(json.loads(path.read_text(encoding="utf-8"))["training_iteration"]) if path.exists() else None
