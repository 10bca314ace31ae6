"""The parameter server and its clients as plain objects: versions only grow, records are atomic."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from wm_rllib.actors.parameter_server import (
    POLICY_REF,
    POLICY_VERSION,
    WORLD_MODEL_REF,
    WORLD_MODEL_VERSION,
    ParameterClient,
    ParameterServer,
    make_record,
)
from wm_rllib.actors.restarts import PROCESS
from wm_rllib.training.state import MAX_REMEMBERED_PUBLICATIONS, Phase, TrainingState


class UnreachableServer:
    """Answers every question as a server does whose node is gone."""

    def pull_if_newer(self, _: int) -> None:
        raise ray.exceptions.ActorUnavailableError("gone", None)


@pytest.fixture(autouse=True)
def object_store(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In place of Ray's: a reference is a text, and what is fetched is remembered."""
    fetched: list[Any] = []

    def get(ref: str) -> dict[str, str]:
        fetched.append(ref)
        return {"from": ref}

    monkeypatch.setattr(ray, "get", get)
    return fetched


def record(sequence: int, world_model: int, policy: int) -> dict[str, Any]:
    """A record whose references say what they refer to."""
    return make_record(sequence, (f"world model {world_model}", world_model), (f"policy {policy}", policy))


def test_an_empty_server_has_nothing():
    server = ParameterServer()
    assert server.get_version() == -1
    assert server.pull_if_newer(-1) is None


def test_push_says_in_which_process():
    server = ParameterServer()
    assert server.push(record(4, 1, 1)) == server.push(record(5, 1, 2)) == PROCESS
    assert server.get_version() == 5


@pytest.mark.parametrize("sequence", [4, 3, 0, -1])
def test_a_push_never_goes_back(sequence: int):
    server = ParameterServer()
    server.push(record(4, 7, 7))
    server.push(record(sequence, 1, 1))
    assert server.get_version() == 4
    assert server.pull_if_newer(-1) == record(4, 7, 7)


@given(st.lists(st.integers(0, 30), min_size=1))
def test_the_version_is_the_highest_ever_pushed(sequences: list[int]):
    server = ParameterServer()
    for count, sequence in enumerate(sequences, 1):
        server.push(record(sequence, sequence, 0))
        assert server.get_version() == max(sequences[:count])


def test_pull_if_newer():
    server = ParameterServer()
    server.push(record(4, 2, 3))
    assert server.pull_if_newer(3) == record(4, 2, 3)
    assert server.pull_if_newer(4) is None
    assert server.pull_if_newer(5) is None


def test_a_record_without_a_number_is_refused():
    with pytest.raises(ValueError, match="WEIGHTS_SEQ_NO"):
        ParameterServer().push({WORLD_MODEL_REF: "x"})
    server = ParameterServer()
    server.push(record(5, 1, 1))
    with pytest.raises(ValueError, match="WEIGHTS_SEQ_NO"):
        server.push({WORLD_MODEL_REF: "x"})


def test_one_record_holds_one_pair_of_versions():
    assert record(9, 4, 6) == {
        WEIGHTS_SEQ_NO: 9,
        WORLD_MODEL_REF: "world model 4",
        WORLD_MODEL_VERSION: 4,
        POLICY_REF: "policy 6",
        POLICY_VERSION: 6,
    }


def test_a_client_whose_policy_others_have_set_takes_that_of_the_newest_record(object_store: list[Any]):
    server = ParameterServer()
    client = ParameterClient(server)
    server.push(record(1, 0, 0))
    client.pull()
    assert client.pull() is None
    client.forget_policy()
    update = client.pull()
    assert update is not None and update.policy == {"from": "policy 0"} and update.world_model is None
    assert client.pull() is None


def test_client_fetches_only_what_is_new(object_store: list[Any]):
    server = ParameterServer()
    client = ParameterClient(server)
    server.push(record(1, 0, 0))
    first = client.pull()
    assert first.world_model == {"from": "world model 0"}
    assert first.policy == {"from": "policy 0"}
    server.push(record(2, 0, 1))
    second = client.pull()
    assert second.world_model is None
    assert second.policy == {"from": "policy 1"}
    assert object_store == ["world model 0", "policy 0", "policy 1"]
    assert (client.sequence, client.world_model_version, client.policy_version) == (2, 0, 1)


def test_client_skips_records_it_missed(object_store: list[Any]):
    server = ParameterServer()
    client = ParameterClient(server)
    for number in range(1, 6):
        server.push(record(number, number, number))
    client.pull()
    assert object_store == ["world model 5", "policy 5"]


@pytest.mark.parametrize("server", [None, UnreachableServer(), ParameterServer()])
def test_client_keeps_its_weights_without_a_record(server: Any, object_store: list[Any]):
    client = ParameterClient(ParameterServer())
    client.take(record(8, 3, 4))
    client._server = server
    object_store.clear()
    assert client.pull() is None
    assert (client.sequence, client.world_model_version, client.policy_version) == (8, 3, 4)
    assert object_store == []


def test_client_goes_on_when_a_restarted_server_is_filled_again():
    client = ParameterClient(ParameterServer())
    client.take(record(8, 3, 4))
    client._server = ParameterServer()  # empty, as after a restart
    assert client.pull() is None
    client._server.push(record(9, 4, 4))
    assert client.pull().world_model == {"from": "world model 4"}


def test_client_adopts_nothing_if_half_a_record_is_lost(monkeypatch: pytest.MonkeyPatch):
    def get(ref: str) -> dict[str, str]:
        if ref.startswith("policy"):
            raise ray.exceptions.GetTimeoutError(ref)
        return {}

    monkeypatch.setattr(ray, "get", get)
    server = ParameterServer()
    server.push(record(1, 1, 1))
    client = ParameterClient(server)
    assert client.pull() is None
    assert (client.sequence, client.world_model_version, client.policy_version) == (-1, -1, -1)


def test_client_takes_other_weights_of_the_same_version():
    """A checkpoint of another run, restored in place, may carry the version numbers that a client already holds."""
    client = ParameterClient(ParameterServer())
    client.take(record(8, 3, 4))
    update = client.take(make_record(9, ("restored world model", 3), ("restored policy", 4)))
    assert update.world_model == {"from": "restored world model"}
    assert update.policy == {"from": "restored policy"}


def publish(state: TrainingState, iteration: int) -> int:
    """Numbers a publication as the publisher does."""
    state.sequence += 1
    state.note_publication(iteration)
    return state.sequence


def test_staleness_counts_iterations_not_publications():
    state = TrainingState()
    before = publish(state, 1)
    rounds = [publish(state, 2) for _ in range(6)]
    assert [state.staleness(sequence) for sequence in rounds] == [0] * 6
    assert state.staleness(before) == 1
    publish(state, 5)
    assert state.staleness(rounds[0]) == 3


def test_forgotten_publications_are_as_old_as_the_oldest_known():
    state = TrainingState()
    for iteration in range(MAX_REMEMBERED_PUBLICATIONS + 50):
        publish(state, iteration)
    assert len(state.published_at) == MAX_REMEMBERED_PUBLICATIONS
    assert state.staleness(1) == state.staleness(51) == MAX_REMEMBERED_PUBLICATIONS - 1


def test_state_survives_a_round_trip():
    state = TrainingState(phase=Phase.MIXED, num_env_steps=123, world_model_version=4, pending_updates=0.25)
    publish(state, 3)
    restored = TrainingState()
    restored.restore(state.to_dict())
    assert restored == state


def test_restoring_never_takes_the_sequence_back():
    old, new = TrainingState(), TrainingState()
    saved = old.to_dict()
    for _ in range(5):
        publish(new, 1)
    new.restore(saved)
    assert new.sequence == 5
    assert new.phase is Phase.RANDOM


def test_restored_state_does_not_write_into_the_checkpoint():
    saved = TrainingState().to_dict()
    state = TrainingState()
    state.restore(saved)
    publish(state, 1)
    assert saved == TrainingState().to_dict()
