"""The driver's side of the replay, as a component of RLlib's checkpoints."""

from __future__ import annotations

import pathlib
from typing import Any

import pyarrow.fs
import ray
from ray.rllib.utils.checkpoints import Checkpointable

from wm_rllib.actors.calling import call
from wm_rllib.replay.service import REPLAY_FILE, ReplayService


class ReplayClient(Checkpointable):
    """Saves and restores a `ReplayService`, wherever it lives, without its contents passing through the driver.

    The service writes and reads the files itself. It runs on the driver's node (training/placement.py),
    so that a local path means the same folder to both.

    Args:
        service: An actor handle, or the service itself.
    """

    def __init__(self, service: Any):
        self.service = service

    def save_to_path(
        self, path: Any = None, *, state: Any = None, filesystem: pyarrow.fs.FileSystem | None = None, **_: Any
    ) -> str:
        """Has the service write itself; RLlib's `state` argument is not needed.

        Raises:
            FileNotFoundError: What it wrote is not seen from here: it is on another node.
        """
        filesystem, directory = _resolve(path, filesystem)
        call(self.service, "save", directory, filesystem)
        if not holds_replay(directory, filesystem):
            raise FileNotFoundError(
                f"the replay wrote itself to {directory}, but on another node, so that the checkpoint is not whole. "
                "Fix: a folder that all nodes share, or a URI."
            )
        return directory

    def restore_from_path(self, path: Any, *, filesystem: pyarrow.fs.FileSystem | None = None, **_: Any) -> None:
        """Has the service read what `save_to_path` made it write."""
        filesystem, directory = _resolve(path, filesystem)
        call(self.service, "restore", directory, filesystem)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The whole contents, by value."""
        return call(self.service, "get_state")

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        call(self.service, "set_state", state)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """RLlib's abstract method; a client is never built from a checkpoint, its algorithm is."""
        return (None,), {}

    def stop(self) -> None:
        """Ends the actor, if it is one."""
        if not isinstance(self.service, ReplayService):
            ray.kill(self.service)


def holds_replay(path: Any, filesystem: pyarrow.fs.FileSystem | None = None) -> bool:
    """Whether a replay was written into a folder, as far as one sees from here."""
    filesystem, directory = _resolve(path, filesystem)
    found = filesystem.get_file_info(str(pathlib.PurePosixPath(directory) / REPLAY_FILE))
    return found.type == pyarrow.fs.FileType.File


def _resolve(path: Any, filesystem: pyarrow.fs.FileSystem | None) -> tuple[pyarrow.fs.FileSystem, str]:
    text = path.as_posix() if isinstance(path, pathlib.Path) else str(path)
    if filesystem is not None:
        return filesystem, text
    filesystem, directory = pyarrow.fs.FileSystem.from_uri(text)
    return filesystem, directory
