"""A fit in several calls: every gradient step once, in parts of a bounded size."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from wm_rllib import fit_calls
from wm_rllib.fit_calls import CALL_BYTES, fit_in_calls


class Service:
    """A replay that notes its seeds."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def reseed(self, seed: int) -> None:
        self.seeds.append(seed)


@pytest.mark.parametrize(
    ("update_bytes", "counts"),
    [(1, [10]), (CALL_BYTES // 10, [10]), (CALL_BYTES // 4, [4, 4, 2]), (3 * CALL_BYTES, [1] * 10)],
)
@pytest.mark.parametrize("seed", [None, 7])
def test_parts_of_a_fit(update_bytes: int, counts: list[int], seed: int | None, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    calls: list[dict[str, Any]] = []
    stages_run: list[str] = []
    taken: list[int] = []

    def fit(learners: str, refs: list[Any], **said: Any) -> list[Any]:
        assert (learners, refs) == ("learners", [f"batch of {asked[-1]}"])
        calls.append(said)
        return ["results"]

    def stage(name: str) -> Any:
        stages_run.append(name)
        return nullcontext()

    def batches(count: int) -> list[Any]:
        asked.append(count)
        return [f"batch of {count}"]

    monkeypatch.setattr(fit_calls, "fit_world_model", fit)
    service = Service()
    stages: Any = SimpleNamespace(
        seed=lambda name: seed,
        parts=SimpleNamespace(replay=SimpleNamespace(service=service), learners="learners"),
        report=SimpleNamespace(stage=stage),
        timesteps={},
        take_fit_results=lambda results, count: taken.append(count),
    )
    fit_in_calls(stages, "fit/mdn", 10, 32, update_bytes, batches, 0.5)
    done = [sum(counts[:i]) for i in range(len(counts))]
    assert asked == taken == counts
    assert [said["progress"] for said in calls] == [(before, 10) for before in done]
    assert [said["seed"] for said in calls] == [None if seed is None else seed + before for before in done]
    assert all(said["batch_size"] == 32 and said["vae_lr_scale"] == 0.5 for said in calls)
    assert stages_run == ["replay", "fit_mdn"] * len(counts)
    assert service.seeds == ([] if seed is None else [seed])
