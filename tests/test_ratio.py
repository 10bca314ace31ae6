"""Contract 1 in a single process: every update merges exactly the configured share of imagined rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ray.rllib.core.columns import Columns
from tiny import HORIZON, ROUNDS, TRAIN_BATCH, tiny_config

from wm_rllib import WorldModelPPO
from wm_rllib.dreamers import pool as dreamer_pool
from wm_rllib.learners.learner import WorldModelPPOLearner

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

MIXED_ITERATIONS = 3
SCHEDULE = [[0, 0.0], [100, 0.0], [160, 0.5], [250, 0.9]]


@pytest.fixture
def merges(monkeypatch):
    """What the learner really merged: the rows of each source, update by update."""
    seen = []
    original = WorldModelPPOLearner._merge

    def merge(learner, sources):
        batch = original(learner, sources)
        assert len(batch[Columns.OBS]) == sum(len(source[Columns.OBS]) for source in sources)
        seen.append(tuple(len(source[Columns.OBS]) for source in sources))
        return batch

    monkeypatch.setattr(WorldModelPPOLearner, "_merge", merge)
    return seen


@pytest.fixture
def built():
    """Builds algorithms, and stops them at the end of the test."""
    algorithms = []

    def build(**overrides):
        algorithms.append(tiny_config(**overrides).build_algo())
        return algorithms[-1]

    yield build
    for algorithm in algorithms:
        algorithm.stop()


def mixed_results(algorithm: WorldModelPPO, count: int = MIXED_ITERATIONS) -> list[dict]:
    """The first results of the mixed phase."""
    results = []
    while len(results) < count:
        result = algorithm.train()
        if result["phase"] == "mixed":
            results.append(result)
        else:
            assert result["rows"] == {"real": 0, "imagined": 0}
            assert result["imagination"]["ratio"] is None
    return results


@pytest.mark.parametrize("ratio", [0.25, 0.9, 0.99])
def test_every_update_has_exactly_its_share(built, merges, ratio):
    algorithm = built(imagination_ratio=ratio)
    steps, updates = 60, []
    for result in mixed_results(algorithm):
        real = result["num_env_steps_sampled_lifetime"] - steps
        steps += real
        assert TRAIN_BATCH <= real <= TRAIN_BATCH + 1  # sample() may overshoot by a step in each env
        expected = (real, round(real * ratio / (1 - ratio)))
        assert result["imagination"]["rows_by_round"] == [list(expected)] * ROUNDS
        assert result["rows"] == {"real": ROUNDS * real, "imagined": ROUNDS * expected[1]}
        # Within one row of the imagined part.
        assert abs(result["imagination"]["ratio"] - ratio) <= 1 / sum(expected)
        assert 0 < result["imagination"]["horizon"] <= HORIZON
        assert result["imagination"]["staleness"] == result["imagination"]["dropped_rows"] == 0
        updates += [expected] * ROUNDS
    assert merges == updates


def test_ratio_0_places_no_dreamer_and_updates_once(built, merges, monkeypatch):
    calls = []
    original = WorldModelPPOLearner.update
    monkeypatch.setattr(
        WorldModelPPOLearner,
        "update",
        lambda learner, *args, **kwargs: calls.append(kwargs) or original(learner, *args, **kwargs),
    )
    monkeypatch.setattr(dreamer_pool, "Dreamer", None)  # building one would raise
    algorithm = built(imagination_ratio=0.0, num_dreamers=3, updates_per_step=0.0)
    assert algorithm._pool is None
    assert len(algorithm.default_resource_request(algorithm.config).bundles) == 1
    mixed = mixed_results(algorithm, 1)
    for _ in range(2):
        calls.clear()
        result = algorithm.train()
        mixed.append(result)
        assert len(calls) == 1 and calls[0]["imagined"] is None
    for result in mixed:
        assert result["imagination"]["ratio"] == 0.0
        assert [imagined for _, imagined in result["imagination"]["rows_by_round"]] == [0]
    assert [result["policy"]["version"] for result in mixed] == [1, 2, 3]
    assert merges == []


def test_ratio_1_learns_in_the_dream_alone(built, merges):
    algorithm = built(imagination_ratio=1.0, dream_batch_size=83)
    before = algorithm._replay.service.stats()["num_added_timesteps"]
    results = mixed_results(algorithm)
    for result in results:
        assert result["imagination"]["rows_by_round"] == [[0, 83]] * ROUNDS
        assert result["imagination"]["ratio"] == 1.0
    assert merges == [(83,)] * ROUNDS * len(results)
    # Env runners go on feeding the world model.
    steps = results[-1]["num_env_steps_sampled_lifetime"]
    assert algorithm._replay.service.stats()["num_added_timesteps"] - before == steps >= 60 + 3 * TRAIN_BATCH
    assert results[-1]["world_model"]["version"] > results[0]["world_model"]["version"]


def test_schedule_is_followed_and_logged(built, merges):
    algorithm = built(imagination_ratio=SCHEDULE)
    steps = 60
    for result in mixed_results(algorithm, 8):
        # The value that holds when the iteration begins; numpy's interpolation is not this package's.
        expected = float(np.interp(steps, *zip(*SCHEDULE, strict=True)))
        real = result["num_env_steps_sampled_lifetime"] - steps
        steps += real
        imagined = round(real * expected / (1 - expected))
        rounds = ROUNDS if expected else 1
        assert result["imagination"]["configured_ratio"] == pytest.approx(expected)
        assert result["imagination"]["rows_by_round"] == [[real, imagined]] * rounds
        assert abs(result["imagination"]["ratio"] - expected) <= 1 / (real + imagined)
    assert expected == 0.9, "the schedule was not followed to its end"
    assert len({imagined for _, imagined in merges}) > 2


def test_dream_rounds_by_a_schedule(built, merges):
    algorithm = built(num_dream_rounds=[[0, 5], [150, 1]])
    results = mixed_results(algorithm, 5)
    steps = [result["num_env_steps_sampled_lifetime"] for result in results]
    rounds = [max(1, round(5 - 4 * count / 150)) for count in steps]
    assert rounds[0] > rounds[1] > rounds[-1] == 1
    expected = [[[real, real]] * count for real, count in zip(np.diff([60, *steps]), rounds, strict=True)]
    assert [result["imagination"]["rows_by_round"] for result in results] == expected
    assert merges == [tuple(pair) for pairs in expected for pair in pairs]
    assert [result["policy"]["version"] for result in results] == np.cumsum(rounds).tolist()


@pytest.mark.parametrize(("env", "rounds"), [("CartPole-v1", 18), ("Pendulum-v1", 6)])
def test_dream_rounds_by_themselves(env, rounds, local_ray):
    """CartPole's random episodes terminate; Pendulum's never do."""
    algorithm = tiny_config(env, num_dream_rounds="auto").build_algo()
    try:
        for result in mixed_results(algorithm, 2):
            assert len(result["imagination"]["rows_by_round"]) == rounds
    finally:
        algorithm.stop()


def test_each_round_dreams_with_the_newest_policy_and_world_model(built, monkeypatch):
    algorithm = built(num_dream_rounds=3)
    parts = []
    original = dreamer_pool.Dreamer.dream
    monkeypatch.setattr(
        dreamer_pool.Dreamer, "dream", lambda self, request: parts.append(original(self, request)) or parts[-1]
    )
    first, second = mixed_results(algorithm, 2)
    versions = [(part.world_model_version, part.policy_version) for part in parts]
    fits = [first["world_model"]["version"], second["world_model"]["version"]]
    assert versions == [(fits[0], 0), (fits[0], 1), (fits[0], 2), (fits[1], 3), (fits[1], 4), (fits[1], 5)]
    assert fits[1] == fits[0] + 1


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_the_real_part_shrinks_with_missing_dreams(built, merges, monkeypatch, ratio):
    """Dreamers that cannot deliver all rows in time: the ratio holds, on a smaller batch."""
    algorithm = built(imagination_ratio=ratio, num_dream_rounds=1)
    mixed_results(algorithm, 1)
    merges.clear()
    original = algorithm._pool.dream

    def deliver_40_percent(order, *args):
        rows = [int(0.4 * count) for count in order.rows]
        return original(dataclasses.replace(order, rows=rows), *args)

    monkeypatch.setattr(algorithm._pool, "dream", deliver_40_percent)
    result = algorithm.train()
    [(real, imagined)] = merges
    assert imagined == int(0.4 * round(TRAIN_BATCH * ratio / (1 - ratio)))
    assert 0 < real < TRAIN_BATCH / 2
    assert abs(imagined - real * ratio / (1 - ratio)) <= 0.5 * ratio / (1 - ratio)  # real rows are whole
    assert result["imagination"]["rows_by_round"] == [[real, imagined]]


def test_no_dreams_no_update(built, monkeypatch):
    """At a ratio above 0 an update without any dream would be a drift in silence: it is left out, and counted."""
    algorithm = built()
    before = mixed_results(algorithm, 1)[0]
    monkeypatch.setattr(algorithm._pool, "dream", lambda order, *_: dreamer_pool.DreamHarvest([[]], [0]))
    result = algorithm.train()
    assert result["imagination"]["updates_skipped"] == ROUNDS
    assert result["imagination"]["rows_by_round"] == []
    assert result["policy"]["version"] == before["policy"]["version"]
