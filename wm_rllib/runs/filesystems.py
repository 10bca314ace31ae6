"""Filesystems that pyarrow reaches by URI (s3://, gs://, hdfs://, file://), as Ray's own storage paths are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs

from wm_rllib.runs.errors import CommandError


def is_uri(text: str) -> bool:
    """Return whether a path names a filesystem by URI."""
    return "://" in text


def connect(uri: str) -> tuple[Any, str]:
    """Return the pyarrow filesystem of a URI, and the path in it.

    Raises:
        CommandError: If there is no such filesystem.
    """
    try:
        filesystem, root = pyarrow.fs.FileSystem.from_uri(uri)
    except (OSError, ValueError, ImportError, pyarrow.ArrowException) as error:
        raise CommandError(
            f"{uri} cannot be used: {first_line(error)}. Fix: a URI like s3://bucket/runs/name, or a local path."
        ) from None
    return filesystem, root.rstrip("/")


def download(filesystem: Any, place: str, target: Path) -> None:
    """Copy a folder of a pyarrow filesystem to a path of this machine that does not exist yet."""
    target.mkdir(parents=True)
    pyarrow.fs.copy_files(
        place, str(target), source_filesystem=filesystem, destination_filesystem=pyarrow.fs.LocalFileSystem()
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
