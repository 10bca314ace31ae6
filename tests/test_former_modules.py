"""Checkpoints name the modules of their classes: those of before the packages still find them."""

from __future__ import annotations

import importlib.util
import pickle
import pickletools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from wm_rllib.former_modules import FORMER_MODULES

NEVER_MOVED = ("wm_rllib.algorithm", "wm_rllib.config", "wm_rllib.models.", "wm_rllib.spaces")


def modules_in(pickled: bytes) -> Iterator[str]:
    """Modules of this package that a pickle names, those in pickles within it too."""
    for _, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str) and argument.startswith("wm_rllib."):
            if importlib.util.find_spec(argument.partition(" ")[0]) is not None:
                yield argument.partition(" ")[0]
        elif isinstance(argument, bytes) and argument[:1] == b"\x80":
            yield from modules_in(argument)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_all_classes_in_a_checkpoint_are_found_by_their_former_names(tmp_path: Path):
    algorithm = tiny_config().build_algo()
    for _ in range(3):
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    pickles = [path.read_bytes() for path in (tmp_path / "checkpoint").rglob("*.pkl")]
    named = {module for pickled in pickles for module in modules_in(pickled)}
    moved = {module for module in named if not f"{module}.".startswith(NEVER_MOVED)}
    assert {"wm_rllib.learners.learner", "wm_rllib.env_runners.half_played"} <= moved
    assert moved <= set(FORMER_MODULES.values())


@pytest.mark.parametrize("former", sorted(FORMER_MODULES))
def test_a_former_name_is_the_module(former: str):
    assert sys.modules[former] is sys.modules[FORMER_MODULES[former]]


def test_a_class_is_unpickled_by_its_former_name():
    from wm_rllib.replay.fresh import Fresh

    pickled = pickle.dumps(Fresh(2), protocol=0).replace(b"wm_rllib.replay.fresh", b"wm_rllib.fresh")
    restored: Any = pickle.loads(pickled)
    assert restored == Fresh(2)
