"""The code holds to the timeline of wm_rllib.models, across resets, cuts and new weights.

A scripted environment goes through the real env runner; whatever comes out is checked against the script, against the
actions that the environment received, and against V and M applied to the raw history.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unsquash_action
from scripted_env import SCRIPT, ScriptedEnv, reward_of, script_of
from tiny import tiny_config
from torch import Tensor

from wm_rllib.actors.parameter_server import ParameterServer, make_record
from wm_rllib.columns import MASK
from wm_rllib.env_runners.env_runner import Collected, CollectRequest, WorldModelEnvRunner
from wm_rllib.models import WorldModel
from wm_rllib.replay.fresh import Fresh
from wm_rllib.replay.service import ReplayService

pytestmark = pytest.mark.usefixtures("no_ray")

BOX = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([6.0, 1.0], np.float32))
HALF_BOUNDED = gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([6.0, np.inf], np.float32))
SPACES = [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]), BOX]
Steps = dict[tuple[int, int], list[tuple[SingleAgentEpisode, SingleAgentEpisode]]]


class Session:
    """An env runner on scripted environments, and what it has collected: (raw, features) chunks in order."""

    def __init__(self, action_space: gym.Space[Any] | None = None, num_envs: int = 1):
        self.records = ScriptedEnv.records = {}
        config = tiny_config(ScriptedEnv).environment(env_config={"action_space": action_space})
        config.env_runners(num_envs_per_env_runner=num_envs)
        self.runner = WorldModelEnvRunner(config=config)
        self.server = ParameterServer()
        self.runner.connect(self.server)
        self.chunks: list[tuple[SingleAgentEpisode, SingleAgentEpisode]] = []
        self.raw_refs: list[ray.ObjectRef] = []
        self.publish(seed=0)

    def publish(self, seed: int) -> WorldModel:
        """Publishes a new V, M and C; returns the V and M."""
        torch.manual_seed(seed)
        world_model = WorldModel(self.runner.world_model.config).eval()
        # Observations count up to some tens: in these units V tells them apart.
        world_model.vae.set_normalisation(torch.zeros(4), torch.tensor([2.0, 20.0, 5.0, 1.0]))
        policy = {
            name: np.random.default_rng(seed).normal(size=w.shape).astype(np.float32)
            for name, w in self.policy_state().items()
        }
        number = self.server.get_version() + 1
        weights = ray.put(convert_to_numpy(world_model.state_dict()))
        self.server.push(make_record(number, (weights, number), (ray.put(policy), number)))
        return world_model

    def policy_state(self) -> dict[str, np.ndarray]:
        """C's weights as the runner holds them."""
        return convert_to_numpy(self.runner.module.get_state(inference_only=True))

    def collect(self, num_timesteps: int, *, random_actions: bool = False) -> Collected:
        """One request, as the driver makes it."""
        request = CollectRequest(num_timesteps, 1, random_actions=random_actions, seed=None)
        collected = self.runner.collect(request)
        raw = ray.get(collected.raw_ref)
        features = ray.get(collected.shard_refs[0]) if collected.shard_refs else [None] * len(raw)
        self.raw_refs.append(collected.raw_ref)
        self.chunks += zip(raw, features, strict=True)
        return collected

    def by_episode(self) -> Steps:
        """The chunks of each episode in order, by (environment, episode), as the observations themselves say."""
        grouped: Steps = {}
        for raw, features in self.chunks:
            number, episode = raw.get_observations(0)[:2]
            grouped.setdefault((int(number), int(episode)), []).append((raw, features))
        return grouped


def joined(chunks: list[SingleAgentEpisode], what: str) -> np.ndarray:
    """Observations (with the last one of the last chunk), actions or rewards of consecutive chunks."""
    parts = [np.asarray(getattr(chunk, f"get_{what}")()) for chunk in chunks]
    if what == "observations":
        parts = [part[:-1] for part in parts[:-1]] + parts[-1:]
    return np.concatenate(parts)


def unrolled(world_model: WorldModel, observations: np.ndarray, actions: np.ndarray) -> Tensor:
    """[z, h] of a whole raw history, by `unroll`."""
    with torch.no_grad():
        z = world_model.vae.encode(torch.as_tensor(observations))
        encoded = world_model.codec.encode(torch.as_tensor(actions))
        h = world_model.mdn_rnn.unroll(z[None, :-1], encoded[None])[0][0]
        return torch.cat([z, torch.cat([torch.zeros(1, h.shape[1]), h])], dim=1)


Play = Callable[[Session], None]


def in_one_go(session: Session) -> None:
    """All steps in one request."""
    session.collect(90)


def in_small_pieces(session: Session) -> None:
    """Requests so small that every episode is cut, and cut at different places."""
    for steps in [1, 2, 3, 4, 5, 1, 1, 6, 7] * 3:
        session.collect(steps)


@pytest.fixture(params=[in_one_go, in_small_pieces])
def play(request: pytest.FixtureRequest) -> Play:
    """A way to collect."""
    return request.param


Played = Callable[[gym.Space[Any], int, Play], tuple[Session, WorldModel]]


@pytest.fixture(scope="module")
def played() -> Played:
    """Sessions that tests only read, each made once, and the V and M that they were played with."""
    made: dict[tuple[str, int, Play], tuple[Session, WorldModel]] = {}

    def played(space: gym.Space[Any], num_envs: int, play: Play) -> tuple[Session, WorldModel]:
        key = str(space), num_envs, play
        if key not in made:
            session = Session(space, num_envs)
            made[key] = session, session.publish(seed=1)
            play(session)
        return made[key]

    return played


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_raw_experience_is_what_happened(space: gym.Space[Any], num_envs: int, play: Play, played: Played):
    session, _ = played(space, num_envs, play)
    episodes = session.by_episode()
    assert {number for number, _ in episodes} == set(range(num_envs))
    finished = 0
    for (number, episode), chunks in episodes.items():
        raw = [one for one, _ in chunks]
        observations, rewards = joined(raw, "observations"), joined(raw, "rewards")
        length, end = script_of(episode)
        assert observations[:, :3].tolist() == [[number, episode, t] for t in range(len(rewards) + 1)]
        assert rewards.tolist() == [reward_of(episode, t) for t in range(len(rewards))]
        over = len(rewards) == length
        finished += over
        assert [one.is_terminated for one in raw] == [False] * (len(raw) - 1) + [over and end == "terminated"]
        assert [one.is_truncated for one in raw] == [False] * (len(raw) - 1) + [over and end == "truncated"]
        assert [one.t_started for one in raw] == np.cumsum([0, *map(len, raw[:-1])]).tolist()
    assert finished >= num_envs * len(SCRIPT) // 2


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("space", [*SPACES, HALF_BOUNDED], ids=str)
def test_actions_are_those_the_environment_received(space: gym.Space[Any], num_envs: int, play: Play, played: Played):
    session, _ = played(space, num_envs, play)
    for (number, episode), chunks in session.by_episode().items():
        actions = joined([raw for raw, _ in chunks], "actions")
        received = np.array(session.records[number].actions[episode][: len(actions)])
        if isinstance(space, gym.spaces.Box):
            actions = unsquash_action(actions, get_base_struct_from_space(space))
        np.testing.assert_allclose(actions, received, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_nothing_is_lost_or_counted_twice(num_envs: int, play: Play):
    session = Session(num_envs=num_envs)
    play(session)
    session.collect(1)
    for (number, episode), chunks in session.by_episode().items():
        collected = sum(len(raw) for raw, _ in chunks)
        assert collected == len(session.records[number].actions[episode])
        # Every episode but an environment's last is whole.
        if (number, episode + 1) in session.by_episode():
            assert collected == script_of(episode)[0]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_features_are_z_and_h_of_the_raw_history(space: gym.Space[Any], num_envs: int, play: Play, played: Played):
    session, world_model = played(space, num_envs, play)
    for chunks in session.by_episode().values():
        raw, features = [one for one, _ in chunks], [other for _, other in chunks]
        expected = unrolled(world_model, joined(raw, "observations"), joined(raw, "actions"))
        # The last row is the observation that is only bootstrapped from: of a terminated, truncated or cut episode.
        np.testing.assert_allclose(joined(features, "observations"), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_hidden_state_starts_at_zero_in_every_episode(played: Played):
    session, _ = played(SPACES[0], 3, in_one_go)
    starts = [chunks[0][1].get_observations(0) for chunks in session.by_episode().values()]
    latent_dim = session.runner.world_model.config.vae.latent_dim
    assert len(starts) > 10
    assert all(not start[latent_dim:].any() for start in starts)
    assert all(start[:latent_dim].any() for start in starts)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_feature_episodes_carry_the_same_actions_rewards_and_ends(num_envs: int, play: Play, played: Played):
    session, _ = played(SPACES[0], num_envs, play)
    for raw, features in session.chunks:
        assert raw.id_ == features.id_
        assert len(raw) == len(features) == len(features.get_observations()) - 1
        assert np.array_equal(raw.get_actions(), features.get_actions())
        assert np.allclose(raw.get_rewards(), features.get_rewards())
        assert (raw.is_terminated, raw.is_truncated) == (features.is_terminated, features.is_truncated)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_cut_episode_goes_on_from_the_features_it_was_cut_at(num_envs: int, played: Played):
    session, _ = played(SPACES[0], num_envs, in_small_pieces)
    seams = 0
    for chunks in session.by_episode().values():
        for (_, before), (_, after) in itertools.pairwise(chunks):
            assert np.array_equal(before.get_observations(-1), after.get_observations(0))
            seams += 1
    assert seams > 5


def logits_of(session: Session, features: SingleAgentEpisode) -> np.ndarray:
    """What C, as the runner holds it now, makes of an episode's features."""
    observations = torch.as_tensor(np.asarray(features.get_observations()[:-1]))
    with torch.no_grad():
        return session.runner.module.forward_exploration({Columns.OBS: observations})[
            Columns.ACTION_DIST_INPUTS
        ].numpy()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_policy_acted_on_the_features_stored(num_envs: int):
    session = Session(num_envs=num_envs)
    for seed in range(1, 12):
        session.publish(seed)
        first = len(session.chunks)
        session.collect(7)
        assert len(session.chunks) > first
        for _, features in session.chunks[first:]:
            stored = features.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)
            np.testing.assert_allclose(stored, logits_of(session, features), rtol=1e-4, atol=1e-5)
            log_pi = torch.log_softmax(torch.as_tensor(np.asarray(stored)), -1)
            logp = log_pi.gather(1, torch.as_tensor(features.get_actions()).long()[:, None])[:, 0]
            np.testing.assert_allclose(
                features.get_extra_model_outputs(Columns.ACTION_LOGP), logp, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_new_weights_encode_the_held_observation_and_its_history_anew(space: gym.Space[Any], num_envs: int):
    session = Session(space, num_envs)
    continued = 0
    for seed in range(1, 16):
        world_model = session.publish(seed)
        first = len(session.chunks)
        session.collect(4)
        grouped = session.by_episode()
        for raw, features in session.chunks[first:]:
            key = (int(raw.get_observations(0)[0]), int(raw.get_observations(0)[1]))
            history = [one for one, _ in grouped[key]]
            expected = unrolled(world_model, joined(history, "observations"), joined(history, "actions"))
            np.testing.assert_allclose(
                np.asarray(features.get_observations()), expected[raw.t_started :].numpy(), rtol=1e-4, atol=1e-5
            )
            continued += raw.t_started > 0
    assert continued > 5


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("space", [*SPACES, HALF_BOUNDED], ids=str)
def test_random_actions_are_stored_in_policy_space(space: gym.Space[Any], num_envs: int):
    session = Session(space, num_envs)
    for _ in range(6):
        collected = session.collect(9, random_actions=True)
        assert collected.shard_refs == []
    for (number, episode), chunks in session.by_episode().items():
        actions = joined([raw for raw, _ in chunks], "actions")
        received = np.array(session.records[number].actions[episode][: len(actions)])
        if space is BOX:  # RLlib leaves a Box that is not bounded in every dimension in env space
            received = 2.0 * (received - space.low) / (space.high - space.low) - 1.0
        np.testing.assert_allclose(actions, received, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_policy_takes_over_in_the_middle_of_a_random_episode(space: gym.Space[Any], num_envs: int):
    session = Session(space, num_envs)
    world_model = session.publish(seed=1)
    session.collect(6 * num_envs, random_actions=True)  # one step into the second episode
    session.collect(40)
    taken_over = 0
    for chunks in session.by_episode().values():
        raw, features = [one for one, _ in chunks], chunks[-1][1]
        if features is None:
            continue
        expected = unrolled(world_model, joined(raw, "observations"), joined(raw, "actions"))
        np.testing.assert_allclose(
            np.asarray(features.get_observations()), expected[raw[-1].t_started :].numpy(), rtol=1e-4, atol=1e-5
        )
        taken_over += len(chunks) > 1
    assert taken_over


def test_evaluation_leaves_no_trace_in_the_experience():
    session = Session(num_envs=2)
    session.collect(9)
    session.runner.evaluate(session.server.pull_if_newer(-1), num_episodes=3, seed=5)
    world_model = session.publish(seed=4)
    first = len(session.chunks)
    session.collect(9)
    for raw, features in session.chunks[first:]:
        assert raw.t_started == 0
        expected = unrolled(world_model, np.asarray(raw.get_observations()), np.asarray(raw.get_actions()))
        np.testing.assert_allclose(np.asarray(features.get_observations()), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_replay_holds_the_scripted_transitions(num_envs: int):
    session = Session(num_envs=num_envs)
    session.collect(20, random_actions=True)
    for _ in range(12):
        session.collect(5)
    replay = ReplayService(10_000, 0)
    held = replay.add(session.raw_refs)
    assert held["num_timesteps"] == sum(len(raw) for raw, _ in session.chunks)
    arrays = replay._replay.sample_sequences(300, 4)
    for row in range(300):
        for t in np.flatnonzero(arrays[MASK][row]):
            number, episode, time = arrays[Columns.OBS][row, t, :3].astype(int)
            length, end = script_of(episode)
            assert arrays[Columns.OBS][row, t + 1, :3].tolist() == [number, episode, time + 1]
            assert arrays[Columns.REWARDS][row, t] == reward_of(episode, time)
            assert arrays[Columns.ACTIONS][row, t] == session.records[number].actions[episode][time]
            assert arrays[Columns.TERMINATEDS][row, t] == (end == "terminated" and time == length - 1)


def test_chunks_say_how_they_came_about():
    """Who acted greedily, and for how many steps its environment went on after a chunk's end in the same call."""
    session = Session(gym.spaces.Discrete(3), 4)
    for steps in (36, 20):
        collected = session.runner.collect(
            CollectRequest(steps, 1, random_actions=False, seed=None, greedy_fraction=0.5)
        )
        by_env: dict[int, list[SingleAgentEpisode]] = {}
        assert collected.num_ends == sum(chunk.is_terminated for chunk in ray.get(collected.raw_ref))
        assert bool(collected.num_ends) == (steps == 36)
        for chunk in ray.get(collected.raw_ref):
            by_env.setdefault(int(chunk.get_observations(0)[0]), []).append(chunk)
        on_features = ray.get(collected.shard_refs[0])
        assert [Fresh.of(chunk) for chunk in on_features] == [Fresh.of(chunk) for chunk in ray.get(collected.raw_ref)]
        assert sorted(by_env) == [0, 1, 2, 3]
        for number, chunks in by_env.items():
            said = [Fresh.detach(chunk) for chunk in chunks]
            assert [fresh.is_greedy for fresh in said] == [number < 2] * len(chunks)
            assert [fresh.length for fresh in said] == [len(chunk) for chunk in chunks]
            for place, fresh in enumerate(said):
                later = chunks[place + 1 :]
                assert fresh.steps_after == sum(map(len, later)) + len(later)  # each of them began with a reset


def test_rows_for_several_learners_still_say_who_acted_greedily():
    """Shards are cut anywhere, and a slice of RLlib's episodes forgets what was said of them."""
    session = Session(gym.spaces.Discrete(3), 2)
    for _ in range(4):
        request = CollectRequest(32, 3, random_actions=False, seed=None, greedy_fraction=0.5)
        collected = session.runner.collect(request)
        greedy = sum(len(raw) for raw in ray.get(collected.raw_ref) if Fresh.of(raw).is_greedy)
        pieces = [piece for ref in collected.shard_refs for piece in ray.get(ref)]
        assert 0 < greedy < sum(map(len, pieces)) == collected.num_timesteps
        assert sum(len(piece) for piece in pieces if Fresh.of(piece).is_greedy) == greedy
