"""How the random phase goes in rounds, and when it is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_config

from wm_rllib.training.phases import collect_randomly
from wm_rllib.training.state import Phase, TrainingState


def collected(steps_so_far: int, held: int | None = None, **settings: Any) -> tuple[list[int], TrainingState]:
    """What a round asks for, and the state after it; the replay holds all, or so many."""
    config = tiny_config(**settings)
    state = TrainingState(num_env_steps=steps_so_far)
    asked: list[int] = []

    def collect(count: int, *, random_actions: bool) -> None:
        assert random_actions
        asked.append(count)
        state.num_env_steps += count

    service = SimpleNamespace(stats=lambda: {"num_timesteps": state.num_env_steps if held is None else held})
    parts = SimpleNamespace(state=state, replay=SimpleNamespace(service=service))
    stages: Any = SimpleNamespace(config=config, parts=parts, collect=collect)
    collect_randomly(stages)
    return asked, state


def test_a_round_has_a_thousand_steps_and_the_last_one_what_is_missing():
    many = {"random_collection_steps": 1500, "replay_capacity": 1500}
    assert collected(0, **many) == ([1000], TrainingState(num_env_steps=1000))
    asked, state = collected(1000, **many)
    assert asked == [500] and state.phase is Phase.PRETRAIN


def test_a_round_is_long_enough_for_actions_to_be_held():
    settings = {"random_collection_steps": 100_000, "replay_capacity": 100_000, "random_hold": 30}
    assert collected(0, num_envs_per_env_runner=8, **settings)[0] == [1000]
    assert collected(0, num_envs_per_env_runner=64, num_env_runners=2, **settings)[0] == [4 * 30 * 128]


def test_fewer_random_steps_on_resume_than_there_are_already():
    asked, state = collected(500, random_collection_steps=100)
    assert not asked and state.phase is Phase.PRETRAIN and state.num_env_steps == 500


@pytest.mark.parametrize(("held", "told"), [(None, False), (950, False), (700, True)])
def test_random_steps_that_the_replay_could_not_hold_are_told(
    held: int | None, told: bool, caplog: pytest.LogCaptureFixture
):
    collected(0, held, random_collection_steps=1000)
    assert ("the replay holds the newest 700" in caplog.text) == told
