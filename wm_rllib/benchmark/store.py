"""Raw results: one JSON file a run, `<root>/<suite>/<env>/<contender>/seed<S>.json`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wm_rllib.atomic_files import write_atomically
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.measuring import COMPLETE, RUNNING, Point
from wm_rllib.runs.errors import CommandError

FORMAT_VERSION = 1
MAX_NAME = 120
"""Characters of a folder's name that are taken from a contender with many settings."""


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
        job: What was measured.
        status: How it ended, see `measuring`; "running" while it has not.
        curve: Its evaluations, in order.
        settings: The contender's settings in full.
        setup_seconds: From the start of the process's work to the first training call: imports, Ray, networks.
        peak_memory: Peak bytes of the process and its children: "resident" and "proportional" (shared pages once).
        provenance: Command, commit, hardware and versions.
        error: Why it failed; None if it did not.
    """

    job: Job
    status: str = RUNNING
    curve: tuple[Point, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    setup_seconds: float | None = None
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the run need not be repeated."""
        return self.status in COMPLETE


class Store:
    """The files under one folder."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, job: Job) -> Path:
        """Where the result of a job is kept."""
        return self.root / job.suite / slug(job.env_id) / slug(job.contender) / f"seed{job.seed}.json"

    def log_path(self, job: Job) -> Path:
        """Where the output of a job's process is kept."""
        return self.path(job).with_suffix(".log")

    def read(self, job: Job) -> Result | None:
        """Return the result of a job, or None if there is none that can be read."""
        path = self.path(job)
        return read_result(path) if path.exists() else None

    def partial_path(self, job: Job) -> Path:
        """Where the result of a job is kept while it runs: an older one stays until there is a new one."""
        path = self.path(job)
        return path.with_name(f".{path.stem}.partial.json")

    def read_partial(self, job: Job) -> Result | None:
        """Return what a job has measured that has not ended, or None if there is nothing."""
        path = self.partial_path(job)
        return read_result(path) if path.exists() else None

    def write(self, result: Result) -> Path:
        """Write a result, atomically."""
        partial = self.partial_path(result.job)
        path = partial if result.status == RUNNING else self.path(result.job)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(result))
        if path != partial:
            partial.unlink(missing_ok=True)
        return path

    @contextmanager
    def writing(self, suite: str) -> Iterator[None]:
        """Be the one process that measures a suite here.

        Raises:
            CommandError: Another one is.
        """
        folder = self.root / suite
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CommandError(
                    f"{folder} is being written by another `benchmark run`. Fix: wait for it, or another --results."
                ) from None
            yield

    def read_suite(self, suite: str) -> list[Result]:
        """Return all results of a suite, in the order of their files' names.

        Raises:
            CommandError: If there is none, or one that cannot be read.
        """
        paths = sorted((self.root / suite).glob("*/*/seed*.json"))
        if not paths:
            raise CommandError(
                f"no results of suite {suite!r} in {self.root}. Fix: `benchmark run` first, or another --suite."
            )
        return [read_result(path) for path in paths]


def slug(text: str) -> str:
    """Return a text as a file name, different for different texts, and short enough for any file system."""
    name = re.sub(r"[^\w.=@,+-]+", "-", text)[:MAX_NAME]
    return name if name == text else f"{name}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"


def read_result(path: Path) -> Result:
    """Return the result in a file.

    Raises:
        CommandError: If it is none, or of another format.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        version = tree.pop("format_version")
        if version == FORMAT_VERSION:
            job, curve = Job.from_dict(tree.pop("job")), tree.pop("curve")
            return Result(job=job, curve=tuple(Point(**point) for point in curve), **tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"{path} is no benchmark result ({type(error).__name__}: {error}). "
            "Fix: remove it, and `benchmark run` measures it again."
        ) from None
    raise CommandError(
        f"{path} has result format {version}, but this version reads {FORMAT_VERSION}. Fix: remove it and run again."
    )


def to_json(result: Result) -> str:
    """Return the text of a result's file: a line a key, a line an evaluation."""
    tree = {"format_version": FORMAT_VERSION, **_fields(result)}
    lines = []
    for key, value in tree.items():
        text = _points(value) if key == "curve" else json.dumps(plain(value), allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _fields(result: Result) -> dict[str, Any]:
    names = ("status", "error", "setup_seconds", "peak_memory", "provenance", "settings")
    return {"job": result.job.to_dict(), **{name: getattr(result, name) for name in names}, "curve": result.curve}


def _points(curve: tuple[Point, ...]) -> str:
    rows = [json.dumps(plain(asdict(point)), allow_nan=False) for point in curve]
    return "[\n  " + ",\n  ".join(rows) + "\n ]" if rows else "[]"


def plain(value: Any) -> Any:
    """Return a value as JSON holds it; what JSON has no form for becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int | str) or value is None else str(value)


def write_json(path: Path, value: Any) -> None:
    """Write a value of `plain` into a file, whose folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plain(value), indent=1) + "\n")
