"""The dream as an environment: gymnasium's rules, where dreams start and end, one lane against many, seeds."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from test_imagine_rollout import Mortal
from test_merge import SPACES, config_of, make_learner
from torch import Tensor

from wm_rllib import DreamEnv, DreamVectorEnv
from wm_rllib.acting.policy import WorldModelPolicy, load_policy
from wm_rllib.models import MDNRNN
from wm_rllib.models.outcome import Outcome
from wm_rllib.replay.replay import SequenceReplay

pytestmark = pytest.mark.usefixtures("no_ray")

LENGTHS = (5, 9, 3)


class Immortal(MDNRNN):
    """Nothing ever ends; a step is worth the first latent that it leads to."""

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(next_z[..., 0], torch.full_like(next_z[..., 0], -1e3))


def episode(space: str, number: int, length: int) -> SingleAgentEpisode:
    """Random steps; the observations' first number says which episode it is."""
    rng, actions = np.random.default_rng(number), SPACES[space]
    observations = rng.normal(size=(length + 1, 4)).astype(np.float32)
    observations[:, 0] = number
    actions.seed(number)
    return SingleAgentEpisode(
        id_=str(number),
        observations=list(observations),
        actions=[actions.sample() for _ in range(length)],
        rewards=[1.0] * length,
        infos=[{}] * (length + 1),
        terminated=True,
        t_started=4 if number == 2 else 0,  # the beginning of the last one was lost
        len_lookback_buffer=0,
    ).to_numpy()


def write_checkpoint(folder: Path, space: str = "discrete", **overrides: Any) -> Path:
    """What `DreamEnv` and `load_policy` read of a checkpoint."""
    learner = make_learner(config_of(space, **overrides))
    learner.save_to_path(str(folder / "learner_group" / "learner"))
    replay = SequenceReplay(1000, 0)
    replay.add([episode(space, number, length) for number, length in enumerate(LENGTHS)])
    (folder / "replay").mkdir()
    (folder / "replay" / "replay.pkl").write_bytes(pickle.dumps(replay.get_state()))
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoints by space and M, written once."""
    written: dict[tuple[str, type], Path] = {}

    def checkpoint(space: str = "discrete", mdn_rnn_class: type = Immortal) -> Path:
        key = space, mdn_rnn_class
        if key not in written:
            written[key] = write_checkpoint(tmp_path_factory.mktemp(space), space, mdn_rnn_class=mdn_rnn_class)
        return written[key]

    return checkpoint


# --- gymnasium's rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["replay", "episode_start"])
@pytest.mark.parametrize("space", SPACES)
def test_gymnasium_finds_nothing_but_the_real_spaces_missing_bounds(checkpoints: Any, space: str, start: str):
    env = gym.make("wm_rllib/Dream-v0", checkpoint=checkpoints(space, Mortal), start=start).unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    messages = [str(warning.message) for warning in caught if "gymnasium" in warning.filename]
    assert all("A Box observation space m" in message for message in messages), messages
    policy = load_policy(checkpoints(space, Mortal))
    assert env.action_space == policy.action_space
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)


def test_the_vectorised_one_is_made_by_id(checkpoints: Any):
    env = gym.make_vec(
        "wm_rllib/Dream-v0", num_envs=3, vectorization_mode="vector_entry_point", checkpoint=str(checkpoints())
    )
    assert isinstance(env, DreamVectorEnv)
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    result = env.step(env.action_space.sample())
    assert env.observation_space.contains(result[0])
    assert [(column.shape, column.dtype) for column in result[1:4]] == [((3,), float), ((3,), bool), ((3,), bool)]


def test_observations_stay_within_the_real_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bounds = gym.spaces.Box(np.float32([-0.1, -np.inf, 0, 0]), np.float32([0.1, 0.0, 1, 1]))
    monkeypatch.setattr("test_merge.OBSERVATIONS", bounds)
    env = DreamEnv(write_checkpoint(tmp_path, mdn_rnn_class=Immortal))
    assert env.observation_space == bounds
    seen = [env.reset(seed=0)[0], *(env.step(0)[0] for _ in range(20))]
    assert all(bounds.contains(observation) for observation in seen)
    assert np.ptp(seen, 0).all() and (np.array(seen) == bounds.low).any()


# --- what a step is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_an_episode_is_the_rollout_of_its_actions(checkpoints: Any, space: str):
    checkpoint = checkpoints(space)
    env = DreamEnv(checkpoint, horizon=6, temperature=1e-9, start="episode_start", uncertainty_penalty=0.0)
    first, _ = env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(6)]
    observations, rewards, terminateds, truncateds, _ = zip(*(env.step(action) for action in actions), strict=True)
    policy = load_policy(checkpoint)
    start = next(
        observation
        for number, length in enumerate(LENGTHS)
        for observation in episode(space, number, length).get_observations()[:1]
        if np.allclose(decoded(policy, observation), first, atol=1e-5)
    )
    expected = policy.imagine_rollout(start, actions=np.stack(actions)[None], temperature=1e-9)
    np.testing.assert_allclose([first, *observations[:-1]], expected["observations"][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(observations[-1], expected["bootstrap_observations"][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rewards, expected["rewards"][0], rtol=1e-3, atol=1e-4)
    assert not any(terminateds)
    assert truncateds == (False,) * 5 + (True,)


def decoded(policy: WorldModelPolicy, observation: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return policy.world_model.vae(torch.as_tensor(observation))[0].numpy()


def test_terminations_are_sampled_and_are_no_truncations(checkpoints: Any):
    env = DreamVectorEnv(2000, checkpoints(mdn_rnn_class=Mortal), horizon=3, uncertainty_penalty=0.0)
    env.reset(seed=0)
    alive, dead, cut = 2000, np.zeros(2000, bool), np.zeros(2000, bool)
    for _ in range(3):
        playing = ~dead
        _, rewards, terminateds, truncateds, _ = env.step(np.zeros(2000, int))
        ends = terminateds[playing]
        assert ends.mean() == pytest.approx(0.25, abs=0.06)
        assert (rewards[playing] == np.where(ends, 5.0, 1.0)).all()
        alive -= int(ends.sum())
        dead, cut = dead | terminateds, truncateds & playing
        env._ended[:] = False  # lanes that ended stay where they are
    assert cut.sum() == alive > 0
    assert not (cut & dead).any()


def test_a_lane_that_ended_starts_at_the_next_step(checkpoints: Any):
    env = DreamVectorEnv(3, checkpoints(), horizon=2, start="episode_start")
    policy = load_policy(checkpoints())
    stored = [episode("discrete", n, length).get_observations(0) for n, length in enumerate(LENGTHS[:2])]
    starts = decoded(policy, np.stack(stored))

    def at_start(observations: np.ndarray) -> list[bool]:
        return [bool((np.abs(starts - observation).max(1) < 1e-5).any()) for observation in observations]

    observations, _ = env.reset(seed=0)
    assert all(at_start(observations))
    for t in range(1, 10):
        observations, rewards, terminateds, truncateds, _ = env.step(np.zeros(3, int))
        assert at_start(observations) == [t % 3 == 0] * 3
        assert (rewards == 0).all() == (t % 3 == 0)
        assert truncateds.tolist() == [t % 3 == 2] * 3 and not terminateds.any()


def test_a_lane_may_start_at_once(checkpoints: Any):
    later, at_once = (DreamVectorEnv(3, checkpoints(), horizon=2, autoreset_mode=m) for m in ("NextStep", "SameStep"))
    assert at_once.metadata["autoreset_mode"] is gym.vector.AutoresetMode.SAME_STEP
    for env in (later, at_once):
        env.reset(seed=0)
        env.step(np.zeros(3, int))
    (last, _, _, cut, _), (first, _, _, same_cut, infos) = (env.step(np.zeros(3, int)) for env in (later, at_once))
    assert cut.all() and same_cut.all() and infos["_final_obs"].all()
    np.testing.assert_array_equal(np.stack(list(infos["final_obs"])), last)
    assert (first != last).any(1).all()
    assert not at_once.step(np.zeros(3, int))[3].any() and at_once.step(np.zeros(3, int))[3].all()


def test_steps_of_which_m_is_unsure_cost(checkpoints: Any):
    plain, pessimist = (DreamVectorEnv(50, checkpoints(), uncertainty_penalty=p) for p in (0.0, 2.0))
    (first, _), (same, _) = plain.reset(seed=0), pessimist.reset(seed=0)
    mdn_rnn, z = pessimist._lanes._model.mdn_rnn, pessimist._lanes._z
    mdn_rnn.reward_scale.fill_(3.0)
    action = torch.nn.functional.one_hot(torch.zeros(50, dtype=torch.long), 2)
    with torch.no_grad():
        members = mdn_rnn.ensemble.predict(torch.cat([z, action], 1))
        spread = members.var(0, correction=0).mean(-1).sqrt()
        mdn_rnn.ensemble.usual.copy_(spread.median())
    cost = plain.step(np.zeros(50, int))[1] - pessimist.step(np.zeros(50, int))[1]
    np.testing.assert_array_equal(first, same)
    np.testing.assert_allclose(cost, 2.0 * 3.0 * (spread / spread.median() - 1.0).clamp(0.0, 5.0), rtol=1e-4, atol=1e-5)
    assert 20 < (cost > 1e-4).sum() <= 25


# --- starts ----------------------------------------------------------------------------------------------------------


def test_starts_are_all_stored_steps_or_the_beginnings_alone(checkpoints: Any):
    policy = load_policy(checkpoints())
    stored = [episode("discrete", n, length).get_observations()[:-1] for n, length in enumerate(LENGTHS)]
    for start, real in (("replay", np.concatenate(stored)), ("episode_start", np.stack([e[0] for e in stored[:2]]))):
        env = DreamVectorEnv(400, checkpoints(), start=start)  # type: ignore[arg-type]
        observations, _ = env.reset(seed=0)
        expected = np.unique(decoded(policy, real).round(4), axis=0)
        np.testing.assert_allclose(np.unique(observations.round(4), axis=0), expected, atol=2e-4)


def test_h_comes_from_the_steps_before_a_start(checkpoints: Any):
    policy, rows = load_policy(checkpoints()), []
    for number, length in enumerate(LENGTHS):
        real = episode("discrete", number, length)
        for t in range(length):
            history = real.get_observations()[max(0, t - 4) : t + 1]
            actions = real.get_actions()[max(0, t - 4) : t]
            result = policy.imagine_rollout(history, 1, history_actions=np.array(actions, int))
            rows.append(torch.cat([result["latents"][0, 0], result["hidden_states"][0, 0]]))
    env = DreamVectorEnv(300, checkpoints(), burn_in=4)
    env.reset(seed=0)
    states = torch.cat([env._lanes._z, env._lanes._state[0]], 1)
    assert (states[:, None] - torch.stack(rows)).abs().amax(-1).min(1).values.max() < 1e-5


# --- seeds and mistakes ----------------------------------------------------------------------------------------------


def episode_of(env: DreamEnv, seed: int | None) -> list[Any]:
    steps = [env.reset(seed=seed)[0].tolist()]
    for t in range(5):
        observation, reward, *_ = env.step(t % 2)
        steps += [observation.tolist(), reward]
    return steps


def test_a_seed_decides_everything_and_torchs_generator_nothing(checkpoints: Any):
    one, other = DreamEnv(checkpoints()), DreamEnv(checkpoints())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = episode_of(one, 3), episode_of(one, None)
    assert torch.equal(torch.rand(3), expected)
    assert [episode_of(other, 3), episode_of(other, None)] == [first, second]
    assert first != second != episode_of(other, 4)
    assert episode_of(DreamEnv(checkpoints()), None) != episode_of(DreamEnv(checkpoints()), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon is 0, but must be a whole number of at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, but must be a number above 0"),
        ({"start": "middle"}, "start is 'middle', but must be one of 'replay', 'episode_start'"),
        ({"burn_in": -1}, "burn_in is -1, but must be"),
        ({"uncertainty_penalty": -1.0}, "uncertainty_penalty is -1.0, but must be a number of at least 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(checkpoints: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DreamEnv(checkpoints(), **arguments)


def test_an_action_outside_of_the_space_is_named(checkpoints: Any):
    env = DreamEnv(checkpoints())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"no actions of Discrete\(2\)"):
        env.step(2)


def test_a_folder_that_is_no_checkpoint_or_has_no_replay_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is not a checkpoint of WorldModelPPO"):
        DreamEnv(tmp_path)
    folder = write_checkpoint(tmp_path)
    (folder / "replay" / "replay.pkl").unlink()
    with pytest.raises(FileNotFoundError, match="has no replay"):
        DreamEnv(folder)


def test_no_beginning_left_is_an_error(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    replay = SequenceReplay(1000, 0)
    replay.add([episode("discrete", 2, 3)])
    (folder / "replay" / "replay.pkl").write_bytes(pickle.dumps(replay.get_state()))
    with pytest.raises(ValueError, match="holds no episode's beginning"):
        DreamEnv(folder, start="episode_start")
