"""The parts of a sweep alone: schedulers that learn the past again, Optuna's patience, the table, loggers."""

import csv
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from sweeping import TINY

from wm_rllib.settings.settings import flat_tree
from wm_rllib.sweep import ranking
from wm_rllib.sweep.loggers import make_loggers
from wm_rllib.sweep.ranking import RankedTrial, prune
from wm_rllib.sweep.schedulers import clip_to_bounds, make_scheduler
from wm_rllib.sweep.search import TIME_ATTR, flat_search, parse_search
from wm_rllib.sweep.spec import parse_sweep

METRIC = "evaluation/episode_return_mean"


def evaluated(steps, score, **more):
    return {TIME_ATTR: steps, "evaluation": {"episode_return_mean": score}, **more}


def flat(steps, score):
    return {TIME_ATTR: steps, METRIC: score}


class FakeTrial(SimpleNamespace):
    """What schedulers read of a trial."""

    __hash__ = object.__hash__

    def __init__(self, trial_id, *past):
        kept = [SimpleNamespace(metrics=metrics, checkpoint=None) for metrics in past]
        manager = SimpleNamespace(best_checkpoint_results=kept, checkpoint_config=SimpleNamespace(num_to_keep=None))
        super().__init__(
            trial_id=trial_id,
            run_metadata=SimpleNamespace(checkpoint_manager=manager),
            config={"lr": 1e-3},
            evaluated_params={},
            experiment_tag=trial_id,
            status=Trial.RUNNING,
            is_finished=lambda: False,
        )


def scheduler(**search):
    settings = {**flat_tree(TINY), "ppo.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    made = make_scheduler(parse_sweep(settings, flat_search(search)))
    made.set_search_properties(METRIC, "max")
    return made


def test_asha_knows_its_rungs_again():
    """A restored ASHA decides as one that was never killed; one with empty rungs would let the worst go on."""
    past = [
        FakeTrial(str(score), evaluated(128, score), {TIME_ATTR: 140}, evaluated(256, score)) for score in (10.0, 20.0)
    ]
    for trials, decision in (([], TrialScheduler.CONTINUE), (past, TrialScheduler.STOP)):
        asha = scheduler(scheduler="asha", asha={"grace_period": 128, "reduction_factor": 2})
        newcomer = FakeTrial("new")
        for trial in [*trials, newcomer]:
            asha.on_trial_add(None, trial)
        assert asha.on_trial_result(None, newcomer, {TIME_ATTR: 64}) == TrialScheduler.CONTINUE
        assert asha.on_trial_result(None, newcomer, flat(130, 5.0)) == decision


def test_asha_judges_a_trial_once_where_an_evaluation_passes_two_rungs():
    asha = scheduler(scheduler="asha", asha={"grace_period": 128, "reduction_factor": 2})
    trials = {score: FakeTrial(str(score)) for score in range(16)}
    for trial in trials.values():
        asha.on_trial_add(None, trial)
    assert [milestone for milestone, _ in asha._brackets[0]._rungs] == [512, 256, 128]
    order = random.Random(0).sample(list(trials), k=len(trials))
    decisions = {score: asha.on_trial_result(None, trials[score], flat(300, score)) for score in order}
    left = [score for score, decision in decisions.items() if decision == TrialScheduler.CONTINUE]
    assert 0 < len(left) < len(trials)
    for score in sorted(left, reverse=True):  # still at the same rung: the one below, long passed, stops nobody
        later = [asha.on_trial_result(None, trials[score], flat(steps, score)) for steps in (400, 500)]
        assert later == [TrialScheduler.CONTINUE] * 2


def test_pbt_takes_over_from_a_restored_trial_at_once():
    pbt = scheduler(scheduler="pbt", num_samples=2, pbt={"perturbation_interval": 128})
    good, bad = FakeTrial("good", evaluated(128, 100.0)), FakeTrial("bad", evaluated(128, 1.0))
    good.run_metadata.checkpoint_manager.best_checkpoint_results[0].checkpoint = "a checkpoint"
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: [good, bad], pause_trial=lambda *_, **__: None)
    taken: list[tuple[Any, Any]] = []
    pbt._exploit = lambda controller, trial, donor: taken.append((trial.trial_id, donor.trial_id))
    for trial in (good, bad):
        pbt.on_trial_add(controller, trial)
    pbt.on_trial_result(controller, bad, flat(256, 1.0))
    assert taken == [("bad", "good")]
    assert pbt._trial_state[good].last_result == evaluated(128, 100.0)  # as Tune keeps results, which a restore reads


def test_a_checkpoint_that_another_trial_goes_on_from_is_not_pruned(tmp_path: Path):
    local = LocalFileSystem()
    kept = [SimpleNamespace(path=str(tmp_path / name), filesystem=local) for name in ("best", "taken", "old")]
    for checkpoint in kept:
        Path(checkpoint.path).mkdir()
    best, taken, old = kept
    ranked = {"steps": 1, "total_steps": 1, "iterations": 1, "seconds": 1.0, "config": {}}
    donor = RankedTrial("a", 2.0, status="finished", checkpoint=best, others=[taken, old], newest=best.path, **ranked)
    failed = RankedTrial("b", None, status="failed", checkpoint=None, others=[], newest=taken.path, **ranked)
    prune([donor, failed])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "taken"]


def test_pbt_knows_its_population_again():
    pbt = scheduler(scheduler="pbt", pbt={"perturbation_interval": 128})
    controller = SimpleNamespace(search_alg=None)
    restored, new = FakeTrial("old", evaluated(60, 3.0), evaluated(190, 7.0)), FakeTrial("new")
    for trial in (restored, new):
        pbt.on_trial_add(controller, trial)
    state = pbt._trial_state[restored]
    assert (state.last_score, state.last_train_time, state.last_perturbation_time) == (7.0, 190, 128)
    assert pbt._trial_state[new].last_score is None
    assert pbt.on_trial_result(controller, restored, flat(254, 9.0)) == TrialScheduler.CONTINUE  # not an interval yet
    assert state.last_score == 7.0


def test_pbt_perturbs_at_each_interval_however_late_evaluations_come():
    """By the time since the last one those at 520 and 1,024 would be skipped."""
    pbt = scheduler(scheduler="pbt", pbt={"perturbation_interval": 256})
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: [])
    trial = FakeTrial("one")
    pbt.on_trial_add(controller, trial)
    perturbed = []
    for steps in (40, 280, 520, 790, 1_024, 1_264, 1_290):
        pbt.on_trial_result(controller, trial, flat(steps, float(steps)))
        if pbt._trial_state[trial].last_train_time == steps:
            perturbed.append(steps)
    assert perturbed == [280, 520, 790, 1_024, 1_290]


def test_mutated_numbers_stay_within_their_bounds():
    config = {"lr": 0.5, "imagination_horizon": 3, "temperature": 1.1, "env": "CartPole-v1"}
    bounds = {"lr": (1e-4, 1e-2), "imagination_horizon": (5, 9), "temperature": (1.0, 1.2)}
    assert clip_to_bounds(config, bounds) == {**config, "lr": 1e-2, "imagination_horizon": 5}


def test_optuna_takes_only_evaluations():
    pytest.importorskip("optuna")
    from ray import tune

    from wm_rllib.sweep.optuna import PatientOptuna

    searcher = PatientOptuna(seed=0)
    assert searcher.set_search_properties(METRIC, "max", {"lr": tune.loguniform(1e-4, 1e-2), "env": "CartPole-v1"})
    assert 1e-4 <= searcher.suggest("a")["lr"] <= 1e-2
    searcher.on_trial_result("a", {"training_iteration": 1})
    searcher.on_trial_result("a", {"training_iteration": 2, METRIC: 5.0})
    searcher.on_trial_complete("a", {METRIC: 5.0})
    assert searcher._ot_study.best_value == 5.0


# --- the table -------------------------------------------------------------------------------------------------------


def checkpoint(path):
    return SimpleNamespace(path=path)


def result(trial_id, *evaluations, error=None, steps=512):
    kept = [
        (
            checkpoint(f"{trial_id}/{at}"),
            evaluated(at, score, training_iteration=at, time_total_s=1.0, config={"lr": lr}),
        )
        for at, score, lr in evaluations
    ]
    metrics = {TIME_ATTR: steps} if steps else None
    newest = kept[-1][0] if kept else None
    return SimpleNamespace(
        path=f"/x/{trial_id}",
        best_checkpoints=kept,
        metrics=metrics,
        error=error,
        config={"lr": 9.0},
        checkpoint=newest,
    )


RESULTS = [
    result("early", (64, 30.0, 1e-3), (128, 20.0, 1e-3), steps=128),
    result("broken", error=RuntimeError("x"), steps=0),
    result("late", (64, 10.0, 1e-3), (128, 5.0, 1e-3), (512, 30.0, 2e-3)),
    result("bad", (64, 1.5, 4e-3)),
]


def test_ranking_is_by_the_best_evaluation_with_its_own_config():
    trials = ranking.rank(RESULTS, METRIC, "max", 512)
    assert [trial.trial_id for trial in trials] == ["early", "late", "bad", "broken"]
    assert [trial.status for trial in trials] == ["stopped", "finished", "finished", "failed"]
    late = trials[1]
    assert (late.score, late.steps, late.config["lr"], late.checkpoint.path) == (30.0, 512, 2e-3, "late/512")
    assert [other.path for other in late.others] == ["late/64", "late/128"]
    assert trials[0].others == []  # its best and its last
    assert ranking.rank(RESULTS, METRIC, "min", 512)[0].trial_id == "bad"
    equals = [result(name, (64, 9.5, 1e-3)) for name in "bac"]
    assert [trial.trial_id for trial in ranking.rank(equals, METRIC, "max", 512)] == ["a", "b", "c"]


def test_table_and_file(tmp_path):
    knobs = {"lr": "ppo.learning_rate", "vae_lr": "world_model.vae.learning_rate", "beta": "world_model.vae.beta"}
    trials = ranking.rank(RESULTS, METRIC, "max", 512)
    lines = ranking.table(trials, knobs, METRIC)
    assert lines[0].split()[-3:] == ["ppo_learning_rate", "vae_learning_rate", "beta"]
    assert lines[1].split() == ["early", "30", "64", "128", "stopped", "0.001", "-", "-"]
    ranking.write_csv(tmp_path / "trials.csv", trials, knobs, METRIC)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["early", "late", "bad", "broken"]
    assert rows[1]["ppo.learning_rate"] == "0.002" and rows[3][METRIC] == ""


# --- loggers ---------------------------------------------------------------------------------------------------------


def test_loggers_are_rays_own(monkeypatch):
    monkeypatch.setattr("ray.air.integrations.wandb.wandb", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    search = parse_search(
        flat_search({"wandb": {"project": "p"}, "mlflow": {"experiment_name": "e", "tracking_uri": "file:x"}})
    )
    wandb, mlflow = make_loggers(search, group="asha")
    assert type(wandb).__module__ == "ray.air.integrations.wandb" and (wandb.project, wandb.group) == ("p", "asha")
    assert type(mlflow).__module__ == "ray.air.integrations.mlflow"
    assert (mlflow.experiment_name, mlflow.tracking_uri) == ("e", "file:x")
    assert make_loggers(parse_search({}), group="asha") == []
