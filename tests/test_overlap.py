"""`overlap`: what runs ahead, how far, and what a checkpoint, a restore and a death do to what is in flight."""

from __future__ import annotations

import time

import pytest
import ray
from ray._private.internal_api import node_stats
from remote import assert_exact, dreamers, end, env_runners, everyone_is_there, hanging, pid_of, train_until
from tiny import ROUNDS, TRAIN_BATCH, tiny_config

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

RATIO = 0.9
FREED_EVERY_S = 1.0
"""Ray's free_objects_period_milliseconds."""
MOST_ROWS = TRAIN_BATCH + 2
"""Each of two env runners may overshoot its share by a step in one of its two envs."""
SMALL = {"num_cpus_per_dreamer": 0.2, "num_cpus_per_env_runner": 0.2, "num_cpus_for_replay": 0.1}


def overlap_config(**overrides):
    return tiny_config(
        **{
            "overlap": True,
            "imagination_ratio": RATIO,
            "num_env_runners": 2,
            "num_envs_per_env_runner": 2,
            "num_dreamers": 2,
            "delay_between_env_runner_restarts_s": 0.1,
            **SMALL,
            **overrides,
        }
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"num_env_runners": 0},
            "num_env_runners = 0 samples in the algorithm's own process. Fix: num_env_runners of 1",
        ),
        ({"num_dreamers": 0}, "num_dreamers = 0 dreams in the algorithm's own process. Fix: num_dreamers of 1"),
        ({"max_staleness": 0}, "max_staleness = 0 drops them. Fix: max_staleness of 1 or more, or overlap false"),
        ({"max_dreams_in_flight": 0}, "max_dreams_in_flight.* is 0, but must be a whole number of at least 1"),
    ],
)
def test_what_it_needs(overrides, message):
    with pytest.raises(ValueError, match=message):
        overlap_config(**overrides).validate()


def test_without_dreams_it_needs_no_dreamers():
    overlap_config(num_dreamers=0, imagination_ratio=0.0).validate()


@pytest.fixture(scope="module")
def algorithm(local_ray):
    algorithm = overlap_config().build_algo()
    yield algorithm
    algorithm.stop()


@pytest.fixture
def mixed(algorithm):
    """The shared algorithm, in the mixed phase, with all its actors and something in flight."""
    train_until(algorithm, lambda result: result["phase"] == "mixed" and everyone_is_there(algorithm))
    return algorithm


def steps_of(algorithm) -> int:
    return algorithm._state.num_env_steps


def steps_in_replay(algorithm) -> int:
    return ray.get(algorithm._replay.service.stats.remote())["num_added_timesteps"]


# --- what runs ahead -------------------------------------------------------------------------------------------------


def test_every_update_has_exactly_its_share(mixed):
    steps, surplus = steps_of(mixed), 0
    for _ in range(4):
        result = mixed.train()
        steps = assert_exact(result, RATIO, ROUNDS, steps)
        assert result["imagination"]["staleness"] == 1
        assert result["imagination"]["dropped_rows"] == 0
        surplus += result["imagination"]["surplus_rows"]
        for name in ("sample", "dream", "fit", "update", "wait_sample", "wait_dream"):
            assert result["seconds"][name] > 0
    # Each of the two env runners may take one step more than it was asked for, and 9 dreamed ones go with it.
    assert 0 < surplus <= 4 * ROUNDS * 2 * 9


@pytest.mark.slow
def test_fewer_rounds_leave_no_dream_waiting_until_it_is_too_old(local_ray):
    """With one round an iteration, two batches ahead would each be two iterations old when they are used."""
    rounds = [[0, 3], [8 * TRAIN_BATCH, 1]]
    algorithm = overlap_config(num_dream_rounds=rounds, max_dreams_in_flight=2).build_algo()
    try:
        train_until(algorithm, lambda _: algorithm._stages.num_rounds == 1)
        algorithm.train()  # what was ordered before may still be dropped
        for _ in range(3):
            result = algorithm.train()
            assert len(result["imagination"]["rows_by_round"]) == 1
            assert result["imagination"]["dropped_rows"] == 0
            assert algorithm._overlap.num_dreams_in_flight == 1
    finally:
        algorithm.stop()


def test_sampling_and_dreaming_run_beside_fit_and_update(mixed, monkeypatch):
    """When the learners begin to work, the next real steps and the next dreams have been asked for."""
    seen, overlap, stages = [], mixed._overlap, mixed._stages
    for name in ("fit", "update"):
        original = getattr(stages, name)

        def spy(*args, original=original, name=name):
            seen.append((name, overlap._samples.in_flight, overlap.num_dreams_in_flight))
            return original(*args)

        monkeypatch.setattr(stages, name, spy)
    mixed.train()
    assert seen == [("fit", True, 2), ("update", True, 2), ("update", True, 2)]


def test_rows_are_one_publication_old(mixed, monkeypatch):
    """Sampled with the policy of the iteration before the last one: the update of batch k ran beside it."""
    parts, take_in = [], mixed._stages.take_in
    monkeypatch.setattr(mixed._stages, "take_in", lambda found: parts.append(found) or take_in(found))
    mixed.train()
    before = mixed._state.policy_version
    for _ in range(3):
        mixed.train()
    versions = [{part.policy_version for part in found} for found in parts]
    # In flight during each iteration were steps of the policy that stood at its beginning.
    assert versions[2:] == [{before}, {before + ROUNDS}]


def test_limits_hold_and_the_object_store_does_not_grow(mixed):
    overlap, before = mixed._overlap, settled_objects()
    for _ in range(12):
        mixed.train()
        assert overlap.num_dreams_in_flight <= 2
        # Of the env runners and dreamers alike: what is asked of them and not fetched.
        assert mixed._pool._manager.num_outstanding_async_reqs() <= 2 * 2
        assert mixed.env_runner_group.num_in_flight_async_reqs(overlap._samples._tag) <= 2
    # An iteration puts some fourteen objects: one of them kept would be twelve more, for ever.
    deadline = time.monotonic() + 30
    while (now := settled_objects()) > before + 6:
        assert time.monotonic() < deadline, f"{now} objects are stored, {before} were"


def settled_objects() -> int:
    """What is stored once Ray has freed what nobody holds: it does so by the hundred, or once a second."""
    time.sleep(FREED_EVERY_S + 1.0)
    return stored_objects()


def stored_objects() -> int:
    [node] = [node for node in ray.nodes() if node["Alive"]]
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats.num_local_objects


# --- checkpoint ------------------------------------------------------------------------------------------------------


def test_an_iteration_that_is_cut_short_starts_nothing_ahead(mixed, monkeypatch):
    """The checkpoint that is to come would wait for the steps."""
    sampling = mixed._stages.sampling
    finish = sampling.finish

    def finish_and_receive_a_signal(timeout_s):
        mixed.cut_short()
        return finish(timeout_s)

    monkeypatch.setattr(sampling, "finish", finish_and_receive_a_signal)
    in_flight = mixed._overlap.num_dreams_in_flight
    before = steps_of(mixed)
    mixed.train()
    assert steps_of(mixed) > before and not sampling.in_flight
    assert mixed._overlap.num_dreams_in_flight <= in_flight
    monkeypatch.undo()
    # Dreams that were in flight all the while are too old by now.
    train_until(mixed, lambda result: not result["imagination"]["dropped_rows"])
    assert sampling.in_flight and mixed._overlap.num_dreams_in_flight


def test_dreams_that_are_used_as_an_iteration_is_cut_short_are_not_ordered_anew(mixed, monkeypatch):
    pool, in_flight = mixed._pool, mixed._overlap.num_dreams_in_flight
    gather = pool.gather

    def gather_and_receive_a_signal(*args, **kwargs):
        mixed.cut_short()
        return gather(*args, **kwargs)

    monkeypatch.setattr(pool, "gather", gather_and_receive_a_signal)
    mixed.train()
    assert mixed._overlap.num_dreams_in_flight == in_flight - 1
    monkeypatch.undo()
    train_until(mixed, lambda result: not result["imagination"]["dropped_rows"])
    assert mixed._overlap.num_dreams_in_flight == in_flight


def test_a_checkpoint_counts_what_its_replay_holds(mixed, tmp_path):
    assert mixed._overlap._samples.in_flight
    steps, owed = steps_of(mixed), mixed._state.pending_updates
    path = mixed.save_to_path(str(tmp_path / "checkpoint"))
    # What was in flight has been waited for, counted and stored.
    banked = mixed._overlap.num_banked_rows
    assert banked >= TRAIN_BATCH and steps_of(mixed) == steps + banked == steps_in_replay(mixed)
    # V and M are still to be fitted to them, by whoever goes on.
    assert mixed._state.pending_updates == pytest.approx(owed + banked * mixed.config.updates_per_step)
    saved = steps_of(mixed)

    # This process learns from them: nothing is dropped, and the ratio is exact.
    result = mixed.train()
    assert result["imagination"]["dropped_rows"] == 0
    assert result["imagination"]["rows_by_round"] == [[banked, 9 * banked]] * ROUNDS
    assert result["num_env_steps_sampled_lifetime"] == saved

    config = mixed.config.copy(copy_frozen=False)
    config.num_env_runners = config.num_dreamers = 1  # a checkpoint does not say how many there are
    resumed = config.build_algo()
    try:
        resumed.restore_from_path(path)
        assert steps_of(resumed) == steps_in_replay(resumed) == saved
        # Their features are gone with the process: PPO never sees them, and that is said.
        result = resumed.train()
        assert result["imagination"]["dropped_rows"] == banked
        assert_exact(result, RATIO, ROUNDS, saved)
        assert steps_of(resumed) == steps_in_replay(resumed)
        assert resumed.train()["imagination"]["dropped_rows"] == 0
    finally:
        resumed.stop()


def test_a_restore_gives_up_what_is_in_flight(mixed, tmp_path):
    path = mixed.save_to_path(str(tmp_path / "checkpoint"))
    saved, banked = steps_of(mixed), mixed._overlap.num_banked_rows
    for _ in range(2):
        mixed.train()
    assert steps_of(mixed) > saved
    mixed.restore_from_path(path)
    assert steps_of(mixed) == steps_in_replay(mixed) == saved
    assert mixed._overlap.num_dreams_in_flight == mixed._overlap.num_banked_rows == 0
    result = mixed.train()
    assert result["imagination"]["dropped_rows"] == banked
    assert_exact(result, RATIO, ROUNDS, saved)
    for _ in range(2):
        result = mixed.train()
        assert result["imagination"]["staleness"] <= 1 and result["imagination"]["dropped_rows"] == 0
    mixed.save_to_path(str(tmp_path / "another"))
    assert steps_of(mixed) == steps_in_replay(mixed)


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_a_dreamer_dies_with_dreams_in_flight(mixed):
    """What it had dreamed dies with it; the other one dreams it again, or the update is left out, and counted."""
    restarts = mixed.train()["restarts"]["dreamers"]
    victim = pid_of(dreamers(mixed)[1])
    end(victim)
    assert_ratio_holds(mixed.train())
    train_until(mixed, lambda result: mixed._pool.num_healthy == 2)
    mixed.train()
    steps = steps_of(mixed)
    assert_exact(mixed.train(), RATIO, ROUNDS, steps)
    assert mixed.train()["restarts"]["dreamers"] == restarts + 1


def test_all_dreamers_die_at_once(mixed):
    for dreamer in dreamers(mixed).values():
        end(pid_of(dreamer))
    for result in train_until(mixed, lambda result: mixed._pool.num_healthy == 2):
        assert_ratio_holds(result)
    mixed.train()
    steps = steps_of(mixed)
    assert_exact(mixed.train(), RATIO, ROUNDS, steps)


def assert_ratio_holds(result: dict) -> None:
    imagination = result["imagination"]
    assert len(imagination["rows_by_round"]) + imagination["updates_skipped"] == ROUNDS
    for real, imagined in imagination["rows_by_round"]:
        assert abs(imagined - real * RATIO / (1 - RATIO)) <= 0.5 * RATIO / (1 - RATIO)


def test_a_dreamer_that_hangs_is_not_asked_again_until_it_answers(mixed, monkeypatch):
    monkeypatch.setattr(mixed._pool, "_timeout_s", 5.0)
    stuck = dreamers(mixed)[1]
    with hanging(pid_of(stuck)):
        for _ in range(3):
            assert_ratio_holds(mixed.train())
        assert mixed._pool._overdue == {1}
        assert mixed._pool._manager.num_outstanding_async_reqs() <= 2 + 2
        steps = steps_of(mixed)
        assert_exact(mixed.train(), RATIO, ROUNDS, steps)  # the other one dreams all of it
    monkeypatch.undo()
    train_until(mixed, lambda result: not mixed._pool._overdue)
    assert not mixed._pool._abandoned


def test_an_env_runner_dies_while_it_samples(mixed):
    victim = pid_of(env_runners(mixed)[1])
    end(victim)
    before = steps_of(mixed)
    result = mixed.train()
    # Half the rows came, or all where it had answered before it died, with as many dreams as belong to them. What it
    # answered may be gone with it all the same, and is then said to be lost.
    sampled = result["num_env_steps_sampled_lifetime"] - before
    assert 0 < sampled <= MOST_ROWS
    # It may go before any round: the ratio is exact in each.
    rounds = result["imagination"]["rows_by_round"]
    assert len(rounds) == ROUNDS and all(imagined == 9 * real for real, imagined in rounds)
    assert all(0 < real <= sampled for real, _ in rounds)
    assert all(real == sampled for real, _ in rounds) or result["imagination"]["lost_rows"] > 0
    train_until(mixed, lambda result: mixed.env_runner_group.num_healthy_remote_workers() == 2)
    mixed.train()
    steps = steps_of(mixed)
    steps = assert_exact(mixed.train(), RATIO, ROUNDS, steps)
    mixed._overlap.settle()
    assert steps_of(mixed) == steps_in_replay(mixed)


# --- other settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(
            {"imagination_ratio": "auto", "num_learners": 1, "num_cpus_per_learner": 0.2}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"imagination_ratio": [[0, 0.5], [120, 0.9], [200, 0.0]], "max_dreams_in_flight": 1},
            marks=pytest.mark.slow,
        ),
        pytest.param({"imagination_ratio": 1.0, "dream_batch_size": 83}, marks=pytest.mark.slow),
        pytest.param({"imagination_ratio": 0.0, "num_dreamers": 0}, marks=pytest.mark.slow),
    ],
    ids=["auto", "schedule", "dreams alone", "no dreams"],
)
def test_every_ratio_is_exact(local_ray, overrides):
    algorithm = overlap_config(**overrides).build_algo()
    try:
        steps, seen = 0, set()
        for result in (algorithm.train() for _ in range(9)):
            real = result["num_env_steps_sampled_lifetime"] - steps
            steps = result["num_env_steps_sampled_lifetime"]
            if result["phase"] != "mixed":
                continue
            ratio = result["imagination"]["configured_ratio"]
            expected = [0, 83] if ratio == 1.0 else [real, round(real * ratio / (1 - ratio))]
            seen.add(ratio)
            assert result["imagination"]["rows_by_round"] == [expected] * (ROUNDS if expected[1] else 1)
        if isinstance(overrides["imagination_ratio"], list):
            assert {0.0} < seen and len(seen) > 3
            assert algorithm._overlap.num_dreams_in_flight == 0
    finally:
        algorithm.stop()
