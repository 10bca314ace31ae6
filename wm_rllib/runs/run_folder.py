"""The run folder: config.yaml, progress.jsonl, tensorboard/, checkpoints/last and checkpoints/best."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from wm_rllib.atomic_files import write_atomically
from wm_rllib.runs import checkpoints
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.filesystems import is_uri
from wm_rllib.runs.remote_folder import RemoteFolder
from wm_rllib.settings.yaml_files import write_yaml

LAST, BEST = "last", "best"
TRIALS = "trials"
"""Tune's folder inside of a sweep's."""
_OURS = ("config.yaml", "progress.jsonl", "tensorboard", "checkpoints")


class RunFolder:
    """One run's folder, locked against a second process while it is open."""

    def __init__(self, path: str | Path, remote: RemoteFolder | None = None) -> None:
        """Name the folder; `open` makes it.

        Args:
            path: The folder, which need not exist.
            remote: Its lasting copy elsewhere, if this is a staging folder.
        """
        self.path = Path(path)
        self._remote = remote
        self.config = self.path / "config.yaml"
        self.progress = self.path / "progress.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None

    @classmethod
    def at(cls, place: str, *, pull: bool) -> RunFolder:
        """Return the folder at a path or URI.

        Args:
            place: Local path, or URI of any filesystem that pyarrow reaches.
            pull: Whether to fetch what a URI's run resumes from.

        Raises:
            CommandError: If there is no such filesystem, or it cannot be read.
        """
        if not is_uri(place):
            return cls(place)
        remote = RemoteFolder(place)
        if pull:
            remote.pull()
        return cls(remote.staging, remote)

    def name_of(self, path: Path) -> str:
        """Return how to call the folder, or a path in it, so that it can be found after the run."""
        if self._remote is None:
            return str(path)
        inside = path.relative_to(self.path).as_posix()
        uri, mark, options = self._remote.uri.partition("?")
        return self._remote.uri if inside == "." else f"{uri.rstrip('/')}/{inside}{mark}{options}"

    def __str__(self) -> str:
        """Return the folder's path or URI."""
        return self.name_of(self.path)

    def share(self) -> None:
        """Bring the lasting copy up to date, if this is a staging folder."""
        if self._remote is not None:
            self._remote.push()

    def refuse_sweep(self) -> None:
        """Make sure that the folder is not a sweep's, whose settings and best checkpoint one run would replace.

        Raises:
            CommandError: If it is.
        """
        if (self.path / TRIALS).is_dir():
            raise CommandError(
                f"{self} is the folder of a sweep. Fix: `sweep --resume auto` to go on with that, or another --run-dir."
            )

    def holds(self) -> list[str]:
        """Return what it holds of a run, by name."""
        return [name for name in _OURS if _holds_something(self.path / name)]

    def refuse_if_used(self) -> None:
        """Make sure that the folder holds no run.

        Raises:
            CommandError: If it does.
        """
        used = self.holds()
        if self._remote is not None and self._remote.is_used():
            used = ["a run"]
        if used:
            raise CommandError(
                f"run folder {self} is in use: it holds {used[0]}. "
                "Fix: --resume auto to go on with that run, or another --run-dir."
            )

    def open(self) -> None:
        """Make the folder if need be, lock it, and finish what a kill interrupted.

        Raises:
            CommandError: If another process uses it, or if it cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise CommandError(
                f"run folder {self.path} cannot be written: {error.strerror}. Fix: another --run-dir."
            ) from None
        for name in (LAST, BEST):
            checkpoints.recover(self.checkpoints, name)
        if self._remote is not None:
            self._remote.claim()

    def _take_lock(self) -> None:
        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise CommandError(
                f"run folder {self.path} is in use by the running process {holder}. "
                "Fix: wait for it or end it, or another --run-dir."
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock  # the lock lasts as long as the file is open, so a killed process leaves none

    def close(self) -> None:
        """Give the lock back; the lock file stays, since removing it would let two processes lock two files."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """Write config.yaml, the settings as resolved."""
        write_yaml(self.config, tree)

    def newest_checkpoint(self) -> Path | None:
        """Return checkpoints/last, or best where there is no last, or None.

        Never best because it is newer: it may be of a future that a resume has cut away, and only periodic checkpoints
        make a resumed run equal an unkilled one.
        """
        found = (checkpoints.find(self.checkpoints, name) for name in (LAST, BEST))
        return next((path for path in found if path), None)

    def best_return(self) -> float | None:
        """Return the evaluation mean of checkpoints/best, or None if there is none."""
        path = checkpoints.find(self.checkpoints, BEST)
        meta = checkpoints.read_meta(path) if path else None
        return meta.best_return if meta else None

    def cut_back(self, checkpoint: Path | None) -> None:
        """Make the folder what it was when a checkpoint was written, so that training can go on from there.

        progress.jsonl loses the lines after the checkpoint's iteration. If checkpoints/last is newer, the
        checkpoint takes its place: else a later `--resume auto` would go on from a future that is cut away.
        checkpoints/best stays: it is the best policy that this run has found, whatever came of it.

        Args:
            checkpoint: The checkpoint that is resumed from; None when the run starts over from nothing.
        """
        if checkpoint is None:
            _cut_lines(self.progress, 0)
            return
        iteration = _iteration(checkpoint)
        last = checkpoints.find(self.checkpoints, LAST)
        if last is None or _iteration(last) > iteration:
            checkpoints.copy(checkpoint, self.checkpoints, LAST)
        _cut_lines(self.progress, iteration)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _iteration(checkpoint: Path) -> int:
    meta = checkpoints.read_meta(checkpoint)
    assert meta is not None, checkpoint
    return meta.training_iteration


def _cut_lines(progress: Path, iteration: int) -> None:
    """Keep the lines up to an iteration; a half-written last line goes with the rest."""
    if not progress.exists():
        return
    kept = []
    for line in progress.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith("\n") or row["training_iteration"] > iteration:
            break
        kept.append(line)
    write_atomically(progress, "".join(kept))
