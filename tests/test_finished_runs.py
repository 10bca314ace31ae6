"""What is said of a run that has ended and is asked to go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wm_rllib.cli.train import nothing_to_do
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.run_folder import RunFolder


def plan_of(
    tmp_path: Path, *, finished: bool = True, total: int | None = 5000, folder: str = "a", **changed: Any
) -> Any:
    return SimpleNamespace(
        folder=RunFolder(tmp_path / folder),
        source=tmp_path / "a" / "checkpoints" / "last",
        start=CheckpointMeta(10, 5000, 1.0, finished=finished),
        rule=SimpleNamespace(total_timesteps=total),
        changed={path.replace("__", "."): value for path, value in changed.items()},
    )


def test_an_unfinished_run_goes_on(tmp_path: Path):
    assert nothing_to_do(plan_of(tmp_path, finished=False, ppo__gamma=(0.9, 0.95))) is None


def test_a_finished_run_goes_on_to_a_later_end(tmp_path: Path):
    assert nothing_to_do(plan_of(tmp_path, total=8000, stop__total_timesteps=(5000, 8000))) is None
    assert nothing_to_do(plan_of(tmp_path, total=None, stop__return=(200, 250))) is None


def test_a_finished_run_has_ended(tmp_path: Path):
    said = nothing_to_do(plan_of(tmp_path))
    assert said is not None and "has ended already. To go on, raise --total-timesteps" in said


@pytest.mark.parametrize("total", [4000, 5000])
def test_an_end_that_has_been_passed_trains_nothing_more(tmp_path: Path, total: int):
    said = nothing_to_do(plan_of(tmp_path, total=total, stop__return=(200, 250)))
    assert said is not None and "5,000 real steps already" in said and f"{total:,} is its end" in said


@pytest.mark.parametrize("asked", [{"ppo__gamma": (0.9, 0.95)}, {"folder": "b"}])
def test_what_would_not_happen_is_an_error(tmp_path: Path, asked: dict[str, Any]):
    with pytest.raises(CommandError, match=r"has ended already, so that nothing would be trained\. Fix: raise"):
        nothing_to_do(plan_of(tmp_path, **asked))
