"""A person inside the dream: what keys, temperature, starts and branches do, and what bad messages do not."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from look_parts import agent, episodes, world

from wm_rllib.look.acting import choice_at, greedy_actions
from wm_rllib.look.keys import KeyMap
from wm_rllib.look.session import MAX_BRANCHES, BadMessageError, DreamSession
from wm_rllib.look.starts import Starts
from wm_rllib.models.judging import Windows
from wm_rllib.spaces import ActionCodec

RIGHT, LEFT = {"do": "step", "keys": ["ArrowRight"]}, {"do": "step", "keys": ["ArrowLeft"]}


def walk(session: DreamSession, *messages: dict[str, Any]) -> dict[str, Any]:
    """The report after the last message."""
    return [session.handle(message) for message in messages][-1]


# Steps


def test_a_key_moves_the_dream_and_the_policy_moves_it_without_one():
    session = DreamSession(world())
    start, one, two = (session.handle(message) for message in ({"do": "look"}, RIGHT, LEFT))
    assert [report["t"] for report in (start, one, two)] == [0, 1, 2]
    assert (one["action"], one["by"]) == ("right", "you")
    assert (two["action"], two["by"]) == ("left", "you")
    assert start["frame"] != one["frame"] != two["frame"]
    three = session.handle({"do": "step", "keys": ["q"]})
    assert (three["action"], three["by"]) == (two["choice"]["action"], "the policy")
    assert three["total"] == pytest.approx(one["reward"] + two["reward"] + three["reward"])


def test_the_choice_is_the_policys_own():
    policy = agent()
    shared = world(policy)
    report = DreamSession(shared).handle({"do": "look"})
    place = shared.starts.place(0, policy.world_model, shared.burn_in)
    features = policy.world_model.features(place.z, place.state[0])
    logits = policy.module.network(features)[0]
    torch.testing.assert_close(torch.tensor(report["choice"]["probabilities"][0]), logits.softmax(0))
    assert report["choice"]["action"] == ("left", "right")[int(logits.argmax())]
    assert report["choice"]["value"] == pytest.approx(features.sum().item(), rel=1e-5)


def test_a_gaussian_choice_has_a_mean_and_a_spread():
    policy = agent(gym.spaces.Box(-2.0, 2.0, (1,), np.float32))
    z, h = torch.randn(1, 3), torch.randn(1, 6)
    choice = choice_at(policy, z, h)
    mean, log_std = policy.module.network(torch.cat([z, h], -1))[0]
    assert choice.mean == [pytest.approx(mean.item())]
    assert choice.std == [pytest.approx(log_std.exp().item())]
    torch.testing.assert_close(greedy_actions(policy, torch.cat([z, h], -1))[0], choice.action)


def test_nothing_happens_after_an_end():
    shared = world()
    with torch.no_grad():
        shared.policy.world_model.mdn_rnn.outcome_head[-1].bias[2] = 50.0
    session = DreamSession(shared)
    ended = session.handle(RIGHT)
    assert ended["ended"] and ended["end_probability"] > 0.99
    assert session.handle(LEFT) == ended
    assert session.handle({"do": "start"})["t"] == 0


# Temperature, seeds, tabs


def test_the_same_seed_dreams_the_same_and_temperature_changes_it():
    session = DreamSession(world())
    steps = [{"do": "start"}, RIGHT, RIGHT, LEFT]
    once, again = walk(session, *steps), walk(session, *steps)
    assert once == again
    hot = walk(session, {"do": "temperature", "value": 2.5}, *steps)
    assert hot["frame"] != once["frame"] and hot["path"] != once["path"]
    assert hot["temperature"] == 2.5
    assert walk(session, {"do": "temperature", "value": 1.0}, *steps) == once
    assert walk(session, {"do": "start", "seed": 7}, RIGHT, RIGHT, LEFT)["path"] != once["path"]


def test_tabs_do_not_disturb_each_other():
    shared = world()
    alone = walk(DreamSession(shared), RIGHT, LEFT, RIGHT)
    one, other = DreamSession(shared), DreamSession(shared)
    walk(one, RIGHT, LEFT)
    walk(other, {"do": "start", "index": 4, "seed": 3}, {"do": "temperature", "value": 2.0}, LEFT, {"do": "branch"})
    torch.rand(10)
    assert walk(one, RIGHT) == alone


# Starts and branches


def test_every_real_step_is_a_start():
    starts = Starts(episodes([2, 0, 3]))
    assert len(starts) == 5
    assert [starts.at(index) for index in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_a_start_is_burnt_in_from_the_steps_before_it():
    policy, (episode,) = agent(), episodes([6])
    place = Starts([episode]).place(4, policy.world_model, burn_in=3)
    window = Windows(
        3,
        torch.as_tensor(episode.observations[None, 1:6]),
        torch.as_tensor(episode.actions[None, 1:5]),
        torch.zeros(1, 4),
        torch.zeros(1, 4, dtype=torch.bool),
        torch.ones(1, 4, dtype=torch.bool),
    )
    z, state = window.start(policy.world_model)
    torch.testing.assert_close(place.z, z)
    for ours, theirs in zip(place.state, state, strict=True):
        torch.testing.assert_close(ours, theirs)
    first = Starts([episode]).place(0, policy.world_model, burn_in=3)
    assert not first.state[0].any()


def test_a_dream_starts_where_it_is_told():
    shared = world()
    session = DreamSession(shared)
    report = walk(session, RIGHT, {"do": "start", "index": 6})
    assert report["start"] == {"index": 6, "episode": 1, "step": 1}
    place = shared.starts.place(6, shared.policy.world_model, shared.burn_in)
    decoded = shared.policy.world_model.vae.decode(place.z)[0]
    assert (report["t"], report["total"]) == (0, 0.0)
    torch.testing.assert_close(torch.tensor(report["path"]), decoded[None])


def test_a_branch_is_a_moment_to_come_back_to():
    session = DreamSession(world())
    kept = walk(session, RIGHT, RIGHT, {"do": "branch"})
    assert kept["branches"] == [{"t": 2, "total": pytest.approx(kept["total"])}]
    first = walk(session, RIGHT, RIGHT)
    back = walk(session, {"do": "back", "branch": 0})
    assert {**back, "branches": []} == {**kept, "branches": []}
    second = walk(session, RIGHT, RIGHT)
    assert second["t"] == first["t"] == 4
    assert second["path"][:3] == first["path"][:3] and second["path"][3:] != first["path"][3:]


def test_branches_are_bounded():
    session = DreamSession(world())
    report = walk(session, *[m for _ in range(MAX_BRANCHES + 2) for m in (RIGHT, {"do": "branch"})])
    assert [branch["t"] for branch in report["branches"]] == list(range(3, MAX_BRANCHES + 3))


# Messages


@pytest.mark.parametrize(
    "message",
    [
        *(None, [], "step", {}, {"do": "fly"}, {"do": ["step"]}),
        *({"do": "temperature"}, {"do": "temperature", "value": 0}, {"do": "temperature", "value": "1"}),
        *({"do": "temperature", "value": math.nan}, {"do": "temperature", "value": True}),
        *({"do": "start", "index": 8}, {"do": "start", "index": -1}, {"do": "start", "index": 1.5}),
        *({"do": "start", "seed": -1}, {"do": "back", "branch": 0}, {"do": "back"}),
        *({"do": "step", "keys": "ArrowLeft"}, {"do": "step", "keys": [1]}, {"do": "step", "keys": ["a"] * 100}),
    ],
    ids=str,
)
def test_a_message_without_sense_changes_nothing(message: Any):
    session = DreamSession(world())
    before = session.handle(RIGHT)
    with pytest.raises(BadMessageError):
        session.handle(message)
    assert session.handle({"do": "look"}) == before


def test_what_is_not_finite_is_null():
    shared = world()
    with torch.no_grad():
        shared.policy.world_model.mdn_rnn.mixture_head[-1].bias.fill_(math.nan)
    report = DreamSession(shared).handle(RIGHT)
    json.dumps(report, allow_nan=False)
    assert report["path"][1] == [None] * 4
    assert report["frame"] is None


def test_hello_says_what_the_page_needs():
    hello = DreamSession(world()).hello()
    json.dumps(hello, allow_nan=False)
    assert hello["actions"] == [["left", "right"]]
    assert hello["dimensions"][2] == "pole angle"
    assert hello["starts"] == 8 and len(hello["ranges"]) == 4
    assert hello["keys"][0] == ("ArrowLeft or 0", "left")


# Keys


def keys_of(space: gym.Space[Any], *, normalized: bool = True) -> KeyMap:
    return KeyMap("Some-v0", ActionCodec(space, normalized=normalized))


@pytest.mark.parametrize(
    ("size", "keys"),
    [
        (2, {"ArrowLeft": 0, "ArrowRight": 1, "1": 1}),
        (3, {"ArrowLeft": 0, "ArrowDown": 1, "ArrowRight": 2}),
        (4, {"ArrowDown": 0, "ArrowLeft": 1, "ArrowUp": 2, "ArrowRight": 3, "3": 3}),
        (12, {"9": 9, "0": 0}),
    ],
)
def test_discrete_keys(size: int, keys: dict[str, int]):
    mapped = keys_of(gym.spaces.Discrete(size))
    for key, action in keys.items():
        assert mapped.action([key], torch.tensor(0)) == action
    assert mapped.action([], torch.tensor(0)) is None
    assert mapped.action(["ArrowUp", "x"] if size != 4 else ["x"], torch.tensor(0)) is None


def test_the_newest_key_counts():
    assert keys_of(gym.spaces.Discrete(2)).action(["ArrowLeft", "ArrowRight"], torch.tensor(0)) == 1


@pytest.mark.parametrize(("normalized", "most"), [(True, 1.0), (False, 2.0)])
def test_box_keys_push_to_the_ends_in_policy_space(normalized: bool, most: float):
    mapped = keys_of(gym.spaces.Box(-2.0, 2.0, (3,), np.float32), normalized=normalized)
    choice = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(mapped.action(["ArrowRight"], choice), torch.tensor([most, 0.2, 0.3]))
    torch.testing.assert_close(mapped.action(["ArrowLeft", "ArrowUp"], choice), torch.tensor([-most, most, 0.3]))
    assert mapped.action(["5"], choice) is None
    assert choice.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_multi_discrete_keys_choose_the_first_part():
    mapped = keys_of(gym.spaces.MultiDiscrete([3, 2]))
    assert mapped.action(["2"], torch.tensor([0, 1])).tolist() == [2, 1]
