"""Which checkpoint a user means by a path or a URI."""

from __future__ import annotations

import atexit
import posixpath
import tempfile
from pathlib import Path

import pyarrow

from wm_rllib.runs.checkpoints import META_FILE, RLLIB_META_FILE, find
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.filesystems import connect, download, first_line, is_uri
from wm_rllib.runs.remote_folder import CHECKPOINTS, RemoteFolder


def resolve(place: str | Path, names: tuple[str, ...]) -> Path:
    """Return the checkpoint that a user means.

    Args:
        place: A checkpoint, a run folder, or the checkpoints folder of one; a path, or a URI, of which a copy is made.
        names: Which checkpoint of a run folder to take: the first of these that exists.

    Raises:
        CommandError: If there is nothing, or nothing that a wm_rllib or Ray Tune run wrote.
    """
    path = _fetch(str(place), names) if is_uri(str(place)) else Path(place)
    if not path.is_dir():
        raise CommandError(f"checkpoint {place} does not exist. Fix: give a checkpoint or run folder.")
    if (path / META_FILE).exists() or (path / RLLIB_META_FILE).exists():
        return path
    for folder in (path / CHECKPOINTS, path):
        for name in names:
            found = find(folder, name)
            if found is not None:
                return found
    raise CommandError(
        f"{place} is no checkpoint of wm_rllib and no run folder with one in it. "
        "Fix: give a folder like runs/NAME/checkpoints/best."
    )


def _fetch(uri: str, names: tuple[str, ...]) -> Path:
    """Return a copy on this machine of what is at a URI; of a run folder, in a folder checkpoints. It goes at the end.

    Raises:
        CommandError: If there is nothing, or it cannot be read.
    """
    filesystem, root = connect(uri)
    staging = tempfile.TemporaryDirectory(prefix="wm_rllib-")
    atexit.register(staging.cleanup)
    target = Path(staging.name) / "checkpoint"
    parent, name = posixpath.split(root)
    if posixpath.basename(parent) == CHECKPOINTS:
        if RemoteFolder(uri, filesystem, posixpath.dirname(parent)).fetch(name, target):
            return target
    else:
        run = RemoteFolder(uri, filesystem, parent if name == CHECKPOINTS else root)
        for each in names:
            if run.fetch(each, found := Path(staging.name) / CHECKPOINTS / each):
                return found
    try:  # what no run of the command line wrote
        download(filesystem, root, target)
    except (OSError, pyarrow.ArrowException) as error:
        raise CommandError(
            f"checkpoint {uri} cannot be read: {first_line(error)}. Fix: a URI like s3://bucket/run/checkpoints/best."
        ) from None
    return target
