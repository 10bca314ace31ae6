"""A fit in several calls: every gradient step once, in parts of a bounded size."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from test_host_reads import fit_m, fit_v, image_config
from test_merge import make_learner

from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.training import fit_calls
from wm_rllib.training.fit_calls import CALL_BYTES, Instalment, fit_in_calls


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
    taken: list[tuple[str, int, bool]] = []

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
        take_fit_results=lambda results, count, name, begins: taken.append((name, count, begins)),
    )
    assert fit_in_calls(stages, "fit/mdn", 10, 32, update_bytes, batches, 0.5)
    done = [sum(counts[:i]) for i in range(len(counts))]
    assert asked == counts
    assert taken == [("fit/mdn", count, not before) for before, count in zip(done, counts, strict=True)]
    assert [said["progress"] for said in calls] == [(before, 10) for before in done]
    assert [said["seed"] for said in calls] == [None if seed is None else seed + before for before in done]
    assert all(said["batch_size"] == 32 and said["vae_lr_scale"] == 0.5 for said in calls)
    assert stages_run == ["replay", "fit_mdn"] * len(counts)
    assert service.seeds == ([] if seed is None else [seed])


def test_an_instalment_makes_its_calls_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch):
    done: dict[str, int] = {}
    calls: list[tuple[int, int]] = []
    stages: Any = SimpleNamespace(
        seed=lambda name: None,
        parts=SimpleNamespace(replay=SimpleNamespace(service=Service()), learners=None),
        report=SimpleNamespace(stage=lambda name: nullcontext()),
        timesteps={},
        is_cut_short=False,
        take_fit_results=lambda results, count, name, begins: None,
    )
    monkeypatch.setattr(fit_calls, "fit_world_model", lambda *_, progress, **__: calls.append(progress))

    def fit(most: int) -> tuple[bool, int]:
        instalment = Instalment(done, most)
        ended = fit_in_calls(stages, "fit/vae", 10, 32, CALL_BYTES // 4, lambda count: [], 1.0, instalment)
        return ended, instalment.calls

    assert fit(2) == (False, 0) and done == {"fit/vae": 8}
    stages.is_cut_short = True
    assert fit(2) == (False, 2) and done == {"fit/vae": 8}
    stages.is_cut_short = False
    assert fit(2) == (True, 1) and done == {"fit/vae": 10}
    assert fit(2) == (True, 2)
    assert calls == [(0, 10), (4, 10), (8, 10)]


@pytest.mark.usefixtures("no_ray")
def test_a_fit_tells_the_learning_rate_of_what_it_fits():
    learner = make_learner(image_config())
    for work, fitted, other in ((fit_v, "vae_lr", "mdn_rnn_lr"), (fit_m, "mdn_rnn_lr", "vae_lr")):
        work(learner, 1)
        told = learner.metrics.peek((WORLD_MODEL_MODULE_ID,))
        assert fitted in told and other not in told
        learner.metrics.reset()
