"""Checkpoint folders: what makes one valid, how one is found, and how one is written so that a kill loses none.

A checkpoint is written to `.tmp-<name>`, and its `wm_rllib.json` last: a folder without that file is not finished.
Then `<name>` moves to `.old-<name>` and `.tmp-<name>` to `<name>`. A kill between the two moves leaves no
`<name>`, but a finished `.tmp-<name>`; `find` looks there too, and `recover` puts it in its place.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wm_rllib.atomic_files import write_atomically
from wm_rllib.replay.frame_files import link_or_copy
from wm_rllib.runs.errors import CommandError
from wm_rllib.settings.settings import parse_tree
from wm_rllib.settings.yaml_files import read_yaml, write_yaml

FORMAT_VERSION = 1
META_FILE = "wm_rllib.json"
RLLIB_ARGUMENTS_FILE = "class_and_ctor_args.pkl"
"""RLlib's, with the config that an algorithm was made with."""
SETTINGS_FILE = "config.yaml"
# RLlib's own mark: Ray Tune's checkpoints of our algorithm have this one alone.
RLLIB_META_FILE = "rllib_checkpoint.json"


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says about the run that wrote it.

    Attributes:
        training_iteration: Iterations at that time.
        num_env_steps: Real steps at that time.
        seconds: Seconds of training at that time, over all resumes.
        best_return: Best evaluation mean so far; None before the first evaluation.
        finished: Whether the run had reached its end.
    """

    training_iteration: int
    num_env_steps: int
    seconds: float
    best_return: float | None = None
    finished: bool = False


def read_meta(path: Path) -> CheckpointMeta | None:
    """Return what a checkpoint says about itself, or None if this is no finished checkpoint of ours.

    Raises:
        CommandError: If it was written by a version of this package with another format.
    """
    try:
        content = json.loads((path / META_FILE).read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise CommandError(
                f"{path} has checkpoint format {version}, but this version reads {FORMAT_VERSION}. "
                "Fix: use the version of wm_rllib that wrote it."
            )
        return CheckpointMeta(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_settings(path: Path) -> dict[str, Any]:
    """Return the resolved settings that a checkpoint was made with, by dotted path.

    Raises:
        SettingError: If they cannot be read.
    """
    return parse_tree(read_yaml(path / SETTINGS_FILE))


def read_environment(path: Path) -> dict[str, Any]:
    """Return the environment's id and arguments, as settings, of a checkpoint that `save_to_path` or Tune wrote.

    Empty where it was a class, or where what the checkpoint was made with cannot be read here.
    """
    try:
        with (path / RLLIB_ARGUMENTS_FILE).open("rb") as file:
            args, kwargs = pickle.load(file)["ctor_args_and_kwargs"]
        config = args[0] if args else kwargs["config"]
        env_id, env_config = config["env"], dict(config["env_config"])
    except Exception:  # whatever unpickling what is somebody's own may raise
        return {}
    return {"env.id": env_id, "env.config": env_config} if isinstance(env_id, str) else {}


def _write_meta(path: Path, meta: CheckpointMeta) -> None:
    content = {"format_version": FORMAT_VERSION, **asdict(meta)}
    write_atomically(path / META_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _places(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / name, folder / f".tmp-{name}", folder / f".old-{name}"


def name_of(path: Path) -> str:
    """Return the name of the checkpoint that a folder is the place of, whichever of its places that is."""
    return path.name.removeprefix(".tmp-").removeprefix(".old-")


def find(folder: Path, name: str) -> Path | None:
    """Return where the finished checkpoint of this name is, or None if there is none."""
    return next((place for place in _places(folder, name) if read_meta(place) is not None), None)


def _put_in_place(source: Path, folder: Path, name: str) -> None:
    final, _, old = _places(folder, name)
    if read_meta(final) is not None:
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    elif final.exists():  # not finished, so nothing to keep; `old` may be the source itself
        shutil.rmtree(final)
    os.rename(source, final)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path, name: str) -> None:
    """Finish what a kill interrupted: put the finished checkpoint in its place and remove the leftovers."""
    final, temporary, old = _places(folder, name)
    found = find(folder, name)
    if found is not None and found != final:
        _put_in_place(found, folder, name)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)


def write(
    folder: Path, name: str, meta: CheckpointMeta, settings: Mapping[str, Any], save_to: Callable[[Path], object]
) -> Path:
    """Write a checkpoint; until it is finished, the one of this name before it stays valid.

    Args:
        folder: The folder of the checkpoints.
        name: Name of the checkpoint.
        meta: What goes into `wm_rllib.json`.
        settings: The resolved settings as a YAML tree; they go into `config.yaml`.
        save_to: Writes the algorithm's state into the path that it is given.

    Returns:
        The path of the checkpoint.
    """
    recover(folder, name)  # so that removing leftovers below can cost nothing valid
    final, temporary, _ = _places(folder, name)
    temporary.mkdir(parents=True)
    save_to(temporary)
    write_yaml(temporary / SETTINGS_FILE, settings)
    _write_meta(temporary, meta)
    _put_in_place(temporary, folder, name)
    return final


def copy(source: Path, folder: Path, name: str) -> Path:
    """Write a copy of a checkpoint under another name, as safely as `write` does; frames are linked, not copied."""
    meta = read_meta(source)
    assert meta is not None, source

    def save_to(target: Path) -> None:
        ignored = shutil.ignore_patterns(META_FILE)
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored, copy_function=link_or_copy)

    return write(folder, name, meta, read_yaml(source / SETTINGS_FILE), save_to)
