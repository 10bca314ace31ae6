"""Training in the dream alone: after the random phase no real step is taken, and V and M stay as they are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from snapshots import assert_equal, snapshot
from tiny import HORIZON, RANDOM_STEPS, ROUNDS, tiny_config

from wm_rllib import WorldModelPPO, WorldModelPPOConfig
from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.dreamers.evaluation import DEFAULT_MAX_STEPS, dream_step_limit
from wm_rllib.metrics import progress_row
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.plan import _check_end
from wm_rllib.training.state import Phase, TrainingState

ROWS = 83
ITERATIONS, SAVED_AT = 9, 4


def dream_only(**overrides):
    settings = {"online_collection": False, "imagination_ratio": 1.0, "dream_batch_size": ROWS, **overrides}
    return tiny_config(**settings)


@pytest.fixture
def build():
    """Builds or restores algorithms, and stops them at the end of the test."""
    algorithms = []

    def build(config=None, checkpoint=None):
        algorithms.append(config.build_algo() if config else WorldModelPPO.from_checkpoint(str(checkpoint)))
        return algorithms[-1]

    yield build
    for algorithm in algorithms:
        algorithm.stop()


def is_evaluated(result):
    return progress_row(result)["evaluation/episode_return_mean"] is not None


def until_pretrained(algorithm):
    while (result := algorithm.train())["phase"] != "pretrain":
        assert "mixed_iterations" not in result
    return result


# --- without Ray -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"imagination_ratio": 0.9}, ("imagination_ratio = 0.9", "imagination_ratio 1.0")),
        ({"imagination_ratio": "auto"}, ("imagination_ratio = auto", "imagination_ratio 1.0")),
        ({"imagination_ratio": [[0, 1.0], [9, 1.0]]}, ("imagination_ratio = [[0", "imagination_ratio 1.0")),
        ({"overlap": True, "num_env_runners": 1, "num_dreamers": 1}, ("overlap = True", "overlap false")),
        ({"evaluation_interval_steps": 50}, ("evaluation_interval_steps = 50", "evaluation_interval_iterations")),
    ],
    ids=str,
)
def test_what_needs_real_steps_is_one_clear_error(overrides, said):
    with pytest.raises(ValueError, match="online_collection = False") as error:
        dream_only(**overrides).validate()
    assert "Fix: " in str(error.value) and all(part in str(error.value) for part in said)


def test_both_intervals_are_allowed():
    dream_only(evaluation_interval_steps=50, evaluation_interval_iterations=2).validate()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "would never end"),
        ({"stop.return": 100.0}, "would never end"),  # never evaluated
        ({"stop.total_timesteps": RANDOM_STEPS + 1}, f"can never be reached.*{RANDOM_STEPS}"),
        ({"stop.total_timesteps": RANDOM_STEPS + 1, "stop.return": 100.0}, "can never be reached"),
    ],
    ids=str,
)
def test_a_run_that_could_never_end_is_an_error(values, said):
    with pytest.raises(CommandError, match=f"{said}.*Fix: stop.iterations"):
        _check_end(values, dream_only())
    _check_end({**values, "stop.iterations": 3}, dream_only())
    _check_end(values, tiny_config(evaluation_interval_steps=50))  # what takes real steps may go on until Ctrl-C


def test_a_return_that_is_never_measured_is_an_error():
    with pytest.raises(CommandError, match=r"stop.return is 100, but nothing is evaluated.*Fix: evaluation.interval"):
        _check_end({"stop.return": 100.0, "stop.total_timesteps": 2000}, tiny_config())
    _check_end({"stop.total_timesteps": 2000}, tiny_config())
    _check_end({"stop.return": 100.0}, tiny_config(evaluation_interval_iterations=2))


def test_a_return_may_end_it_where_it_is_measured():
    _check_end({"stop.return": 100.0}, dream_only(evaluation_interval_iterations=2))


def test_evaluations_by_iterations():
    state = TrainingState(phase=Phase.MIXED)
    due = []
    for iteration in range(1, 10):
        state.mixed_iterations = iteration
        if state.evaluation_is_due(None, 3) and iteration != 6:  # one that was cut short stays due
            state.note_evaluation()
            due.append(iteration)
    assert due == [3, 7, 9]
    assert not TrainingState(phase=Phase.PRETRAIN, mixed_iterations=3).evaluation_is_due(None, 3)


def test_either_interval_makes_an_evaluation_due():
    state = TrainingState(phase=Phase.MIXED, num_env_steps=100, mixed_iterations=1)
    assert state.evaluation_is_due(100, 5) and not state.evaluation_is_due(101, 5)
    state.note_evaluation()
    assert not state.evaluation_is_due(100, 5)
    state.mixed_iterations = 5
    assert state.evaluation_is_due(100, 5)


def test_a_checkpoint_from_before_has_no_counters():
    old = {name: value for name, value in TrainingState().to_dict().items() if "iteration" not in name}
    state = TrainingState()
    state.restore(old)
    assert (state.mixed_iterations, state.evaluated_at_iteration) == (0, 0)


def test_longest_dreams():
    env = SimpleNamespace(spec=SimpleNamespace(max_episode_steps=77), close=lambda: None)
    assert dream_step_limit(5, lambda: env) == 5
    assert dream_step_limit(None, lambda: env) == 77
    env.spec.max_episode_steps = None
    assert dream_step_limit(None, lambda: env) == DEFAULT_MAX_STEPS
    assert dream_step_limit(None, lambda: 1 / 0) == DEFAULT_MAX_STEPS


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_only_dreams_and_updates(build):
    algorithm = build(dream_only(evaluation_interval_iterations=2, evaluation_max_dream_steps=9))
    pretrained = until_pretrained(algorithm)
    steps, version = pretrained["num_env_steps_sampled_lifetime"], pretrained["world_model"]["version"]
    assert pretrained["mixed_iterations"] == 0
    before = snapshot(algorithm)
    results = [algorithm.train() for _ in range(4)]
    after = snapshot(algorithm)

    assert steps == RANDOM_STEPS
    for count, result in enumerate(results, 1):
        assert (result["phase"], result["mixed_iterations"]) == ("mixed", count)
        assert result["num_env_steps_sampled_lifetime"] == steps
        assert result["world_model"]["version"] == version
        assert result["policy"]["version"] == ROUNDS * count
        assert result["rows"] == {"real": 0, "imagined": ROUNDS * ROWS}
        figures = result["imagination"]
        assert figures["ratio"] == figures["configured_ratio"] == 1.0
        assert figures["rows_by_round"] == [[0, ROWS]] * ROUNDS
        assert figures["staleness"] == figures["dropped_rows"] == figures["updates_skipped"] == 0
        assert 0 < figures["horizon"] <= HORIZON
        row = progress_row(result)
        assert not {"seconds/sample", "seconds/fit", "seconds/judge"} & row.keys()
        assert row["steps_per_second/sample"] is None and row["steps_per_second/dream"] > 0

    assert_equal(after["replay"]["episodes"], before["replay"]["episodes"])
    assert_equal(after["modules"][WORLD_MODEL_MODULE_ID], before["modules"][WORLD_MODEL_MODULE_ID])
    old, new = (state["modules"][DEFAULT_MODULE_ID] for state in (before, after))
    assert any(not np.array_equal(old[name], new[name]) for name in old)

    scores = [result["dream_evaluation"] for result in results]
    assert [bool(score) for score in scores] == [False, True, False, True]
    assert [is_evaluated(result) for result in results] == [False, True, False, True]
    for score in scores[1::2]:
        assert score["episodes"] == algorithm.config.evaluation_duration
        assert 1 <= score["episode_len_mean"] <= 9 and 0 <= score["unfinished"] <= 1
    longer = algorithm.evaluate_dream(7, temperature=0.5, max_steps=20)
    assert len(longer.returns) == 7 and max(longer.lengths) <= 20
    assert longer == algorithm.evaluate_dream(7, temperature=0.5, max_steps=20)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_resumed_equals_the_run_that_went_on(build, tmp_path):
    last = 6 * ROUNDS * ROWS
    config = dream_only(evaluation_interval_iterations=3, evaluation_max_dream_steps=9, lr=[[0, 1e-2], [last, 1e-3]])

    def row_of(result):
        row = progress_row(result)
        own = ("seconds/", "steps_per_second/", "faults/resumes")
        return {name: value for name, value in row.items() if not name.startswith(own)}

    never_killed = build(config)
    rows = [row_of(never_killed.train()) for _ in range(SAVED_AT)]
    path = never_killed.save_to_path(str(tmp_path / "checkpoint"))
    rows += [row_of(never_killed.train()) for _ in range(SAVED_AT, ITERATIONS)]
    resumed = build(checkpoint=path)
    assert_equal([row_of(resumed.train()) for _ in range(SAVED_AT, ITERATIONS)], rows[SAVED_AT:])
    assert_equal(snapshot(resumed), snapshot(never_killed))
    evaluated = [row["mixed_iterations"] for row in rows if row["evaluation/episode_return_mean"] is not None]
    assert evaluated == [3, 6]
    # Schedules go by imagined rows: an iteration reports its first rate, set after the update before.
    rates = np.array([row["learning_rates/policy"] for row in rows if row["mixed_iterations"]])[1:]
    at = np.array([ROUNDS * done - 1 for done in range(1, len(rates) + 1)]) * ROWS
    expected = np.interp(at, [0, last], [1e-2, 1e-3])
    assert rates / rates[0] == pytest.approx(expected / expected[0])


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_evaluation_by_iterations_with_real_steps_too(build):
    algorithm = build(tiny_config(evaluation_interval_iterations=2))
    until_pretrained(algorithm)
    results = [algorithm.train() for _ in range(3)]
    assert [is_evaluated(result) for result in results] == [False, True, False]
    assert ["judge" in result["seconds"] for result in results] == [False, True, False]
    assert not any(result["dream_evaluation"] for result in results)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_with_remote_parts(build):
    parts = ("num_dreamers", "num_learners")
    cpus = ("num_cpus_per_dreamer", "num_cpus_per_learner")
    algorithm = build(dream_only(**dict.fromkeys(parts, 1), **dict.fromkeys(cpus, 0.3)))
    steps = until_pretrained(algorithm)["num_env_steps_sampled_lifetime"]
    result = algorithm.train()
    assert result["imagination"]["rows_by_round"] == [[0, ROWS]] * ROUNDS
    assert result["num_env_steps_sampled_lifetime"] == steps
    score = algorithm.evaluate_dream(3, max_steps=9)
    assert len(score.returns) == 3 and max(score.lengths) <= 9


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(1200)
def test_cartpole_from_random_steps_alone(build):
    """Random actions reach about 20, and C has met nothing but dreams of what they met."""
    config = (
        WorldModelPPOConfig()
        .environment("CartPole-v1")
        .world_model(random_collection_steps=2000, pretrain_epochs=60, online_collection=False)
        .dreamers(imagination_ratio=1.0, temperature=1.0)
    )
    config.device, config.seed = "cpu", 0
    algorithm = build(config)
    until_pretrained(algorithm)
    for _ in range(6):
        algorithm.train()
    assert algorithm._state.num_env_steps <= 2003
    assert algorithm.evaluate_return(20).mean > 60.0
