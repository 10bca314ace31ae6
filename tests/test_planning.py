"""The planning agent, `plan` on an agent and on the algorithm, and the commands that use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE
from test_policy import SPACES, runner_on
from tiny import tiny_config

from wm_rllib.acting.evaluation import MAX_EPISODE_STEPS, evaluate_policy
from wm_rllib.acting.planning import Plan, PlanningPolicy
from wm_rllib.acting.playing import DecisionTimes, Episode, one_thread, play_episode, time_decisions
from wm_rllib.acting.policy import WorldModelPolicy, load_policy
from wm_rllib.cli import evaluate
from wm_rllib.cli.main import main
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.models.search import SearchConfig
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.settings.planner import PLANNER_SETTINGS, search_config

GAMMA = 0.9
FEW = {"horizon": 3, "num_samples": 8, "num_iterations": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained agent in CartPole, written without an algorithm."""
    config = tiny_config("CartPole-v1", gamma=GAMMA)
    modules = config.get_multi_rl_module_spec(spaces=WorldModelEnvRunner(config=config).get_spaces()).build()

    def save_to(folder: Path) -> None:
        modules.save_to_path(folder / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE)

    settings = {"env": {"id": "CartPole-v1"}}
    return checkpoints.write(tmp_path_factory.mktemp("run"), "best", CheckpointMeta(1, 1, 1.0), settings, save_to)


@pytest.fixture(scope="module")
def agent(checkpoint: Path) -> WorldModelPolicy:
    return load_policy(checkpoint)


def agent_on(space: gym.Space[Any], **settings: Any) -> WorldModelPolicy:
    runner = runner_on(space, **settings)
    return WorldModelPolicy(runner.world_model, runner.module)


def observations_of(rows: int, steps: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, rows, 4)).astype(np.float32)


# --- the agent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"normalize_actions": False, "clip_actions": True}], ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_env_and_m_get_the_same_action(space: gym.Space[Any], settings: dict[str, Any]):
    policy = agent_on(space, **settings)
    planner = policy.planner("mppi", seed=0, critic=False, **FEW)
    [observations] = observations_of(3)
    before = planner.initial_state(3)
    actions, after = planner.act(observations, before)
    assert all(space.contains(action) for action in actions)
    model = policy.world_model
    encoded = model.codec.encode(torch.as_tensor(model.codec.env_to_policy(actions)))
    torch.testing.assert_close(encoded, after.plans[:, 0])
    with torch.no_grad():
        memory = model.mdn_rnn.step(model.vae.encode(torch.as_tensor(observations)), encoded, before.memory)
    torch.testing.assert_close(after.memory, memory)


def test_a_batch_acts_as_its_rows_alone():
    policy = agent_on(SPACES[2])
    steps = observations_of(3, steps=4)

    def actions_on(rows: slice) -> np.ndarray:
        planner = policy.planner(seed=0, critic=False, **FEW)
        state, actions = planner.initial_state(len(steps[0, rows])), []
        for observations in steps[:, rows]:
            action, state = planner.act(observations, state)
            actions.append(action)
        return np.array(actions)

    together = actions_on(slice(0, 3))
    assert len(np.unique(together)) > 1
    for row in range(3):
        np.testing.assert_allclose(together[:, row], actions_on(slice(row, row + 1))[:, 0], rtol=1e-3, atol=1e-4)


def test_no_policy_network_is_asked(agent: WorldModelPolicy, monkeypatch: pytest.MonkeyPatch):
    def asked(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("C's policy network was asked")

    for name in ("forward_inference", "forward_exploration"):
        monkeypatch.setattr(agent.module, name, asked)
    [observations] = observations_of(2)
    planner = agent.planner(seed=0, **FEW)
    planner.act(observations, planner.initial_state(2))
    with pytest.raises(AssertionError, match="was asked"):
        agent.act(observations, agent.initial_state(2))


def test_an_agent_without_a_critic_says_so():
    policy = agent_on(SPACES[0])
    with pytest.raises(ValueError, match="critic=False"):
        policy.planner()


def test_evaluate_policy_takes_it_and_a_seed_repeats_it(agent: WorldModelPolicy):
    def returns(seed: int) -> list[float]:
        return evaluate_policy(agent.planner(seed=seed, **FEW), "CartPole-v1", 3, seed=1).returns

    before = torch.get_rng_state()
    assert returns(0) == returns(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(returns(seed)) for seed in range(4)}) > 1


# --- one plan --------------------------------------------------------------------------------------------------------


def same(one: Plan, other: Plan) -> bool:
    return bool(np.array_equal(one.actions, other.actions) and one.predicted_return == other.predicted_return)


def test_the_predicted_return_is_what_m_and_the_critic_say_of_the_plan(agent: WorldModelPolicy):
    assert agent.discount == GAMMA
    model, [[observation]] = agent.world_model, observations_of(1)
    plan = agent.plan(observation, temperature=0.0, **FEW)
    z, state = model.vae.encode(torch.as_tensor(observation)[None]), agent.initial_state(1)
    total, reached = 0.0, 1.0
    with torch.no_grad():
        for t, action in enumerate(plan.actions):
            encoded = torch.nn.functional.one_hot(torch.as_tensor(action)[None], 2).float()
            state = model.mdn_rnn.step(z, encoded, state)
            mixture = model.mdn_rnn.predict(state[0], z, encoded)
            next_z = mixture.mean[:, mixture.log_pi.argmax()]
            outcome = model.mdn_rnn.outcome(z, encoded, next_z)
            total += GAMMA**t * reached * outcome.expected_reward().item()
            reached *= 1.0 - outcome.termination_logit.sigmoid().item()
            z = next_z
    total += GAMMA ** len(plan.actions) * reached * agent.values(z, state[0]).item()
    assert plan.predicted_return == pytest.approx(total, rel=1e-4)
    assert plan.survival[-1] == pytest.approx(reached, rel=1e-4)
    assert plan.action == plan.actions[0]
    assert [set(row) for row in plan.iterations] == [{"best", "mean", "std", "effective_samples"}] * 2


def test_a_history_is_what_m_would_remember(agent: WorldModelPolicy):
    *past, now = observations_of(1, steps=5)[:, 0]
    actions = np.array([1, 0, 0, 1])
    memory = agent.initial_state(1)
    with torch.no_grad():
        for observation, action in zip(past, actions, strict=True):
            z = agent.world_model.vae.encode(torch.as_tensor(observation)[None])
            memory = agent.world_model.advance(z, torch.as_tensor(action)[None], memory)
    with_history = agent.plan(np.array([*past, now]), history_actions=actions, **FEW)
    from_memory = agent.plan(now, memory=memory, **FEW)
    np.testing.assert_array_equal(with_history.actions, from_memory.actions)
    assert with_history.predicted_return == pytest.approx(from_memory.predicted_return, rel=1e-5)
    without = agent.plan(now, **FEW)
    assert with_history.predicted_return != pytest.approx(without.predicted_return, rel=1e-5)
    assert same(agent.plan(now[None], history_actions=np.zeros(0, int), **FEW), without)


def test_a_previous_plan_is_gone_on_with(agent: WorldModelPolicy):
    first, second = observations_of(1, steps=2)[:, 0]
    before = agent.plan(first, **FEW)
    after = agent.plan(second, previous=before, seed=3, horizon=3, num_samples=1, num_iterations=1)
    np.testing.assert_array_equal(after.actions[:2], before.actions[1:])
    longer = agent.plan(second, previous=before, horizon=5, num_samples=1, num_iterations=1)
    np.testing.assert_array_equal(longer.actions[:2], before.actions[1:])
    assert len(longer.actions) == 5
    acted, _ = agent.planner(seed=7, **FEW).act(second[None], before.state)
    assert acted[0] == agent.plan(second, previous=before, seed=7, **FEW).action


def test_a_plan_is_repeated_by_its_seed_alone(agent: WorldModelPolicy):
    [[observation]] = observations_of(1)
    before = torch.get_rng_state()
    assert same(agent.plan(observation, **FEW), agent.plan(observation, **FEW))
    assert not same(agent.plan(observation, **FEW), agent.plan(observation, seed=1, **FEW))
    assert not same(agent.plan(observation, seed=None, **FEW), agent.plan(observation, seed=None, **FEW))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"planner": "beam"}, 'planner is \'beam\', but must be "random" or "cem" or "mppi"'),
        ({"horizon": 0}, "horizon is 0"),
        ({"num_sample": 3}, "did you mean num_samples"),
        ({"mppi_temperature": 0}, "a number above 0"),
        ({"start_obs": np.zeros((3, 4)), "history_actions": np.zeros(3, int)}, r"actions of shape \(3,\)"),
        ({"start_obs": np.zeros((4, 3)), "history_actions": np.zeros(3, int)}, r"observations of shape \(4, 3\)"),
        ({"history_actions": np.zeros((3, 1), int), "start_obs": np.zeros((4, 4))}, r"actions of shape \(3, 1\)"),
        ({"start_obs": np.zeros((1, 4))}, "without a batch axis"),
    ],
    ids=str,
)
def test_mistakes(agent: WorldModelPolicy, how: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        agent.plan(**{"start_obs": np.zeros(4, np.float32), **how})


def test_every_setting_has_a_range_that_its_default_keeps():
    assert PLANNER_SETTINGS.keys() == vars(SearchConfig()).keys()
    assert search_config(vars(SearchConfig())) == SearchConfig()


def test_two_pasts_are_one_too_many(agent: WorldModelPolicy):
    with pytest.raises(ValueError, match="one of history_actions, memory and previous"):
        agent.plan(np.zeros((2, 4)), history_actions=np.zeros(1, int), memory=agent.initial_state(1))


@pytest.mark.integration
def test_the_algorithm_plans_as_its_checkpoint_does(tmp_path: Path, local_ray: None):
    algorithm = tiny_config("Pendulum-v1", gamma=GAMMA).build_algo()
    try:
        observation = np.array([1.0, 0.0, 0.5], np.float32)
        before = torch.get_rng_state()
        plan = algorithm.plan(observation, "mppi", seed=2, **FEW)
        assert torch.equal(torch.get_rng_state(), before)
        loaded = load_policy(algorithm.save_to_path(str(tmp_path)))
    finally:
        algorithm.stop()
    assert loaded.discount == GAMMA
    assert same(plan, loaded.plan(observation, "mppi", seed=2, **FEW))


# --- played one at a time --------------------------------------------------------------------------------------------


class Countdown(gym.Env[Any, Any]):
    """Episodes of five steps; the observation is the step's number."""

    observation_space = gym.spaces.Box(0.0, 5.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        observation = np.full(1, self.step_number, np.float32)
        return observation, float(action), self.step_number == 5, False, {}


class Counting:
    """Acts by how many steps it remembers, and notes how many threads torch has."""

    threads: int

    def initial_state(self, batch_size: int) -> int:
        return 0

    def act(self, observations: np.ndarray, state: int) -> tuple[np.ndarray, int]:
        assert observations.shape == (1, 1) and observations[0, 0] == state
        self.threads = torch.get_num_threads()
        return np.array([state % 2]), state + 1


def test_an_episode_is_played_to_its_end():
    policy = Counting()
    with one_thread():
        pass
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        episode = play_episode(policy, Countdown(), seed=0)
        assert (policy.threads, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(threads)
    assert episode.total_reward == 2.0
    assert len(episode.decision_seconds) == 5
    assert len(play_episode(policy, Countdown(), seed=0, max_steps=3).decision_seconds) == 3


class Endless(Countdown):
    """Goes on for ever."""

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


def test_an_episode_without_an_end_is_given_up():
    assert len(play_episode(Counting(), Endless(), seed=0).decision_seconds) == MAX_EPISODE_STEPS


def test_times_are_of_single_decisions_without_the_first():
    episodes = [Episode(0.0, [9.0, 0.001, 0.002]), Episode(0.0, [0.003] * 97 + [0.005])]
    times = DecisionTimes.of(episodes)
    assert (times.median_ms, times.p95_ms, times.count) == (3.0, 3.0, 100)
    assert DecisionTimes.of([Episode(0.0, [0.25])]).median_ms == 250.0
    assert time_decisions(Counting(), Countdown(), 12, seed=0).count == 11


# --- the command line ------------------------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(list(argv)) == 0
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


SMALL = ("--samples", "8", "--iterations", "1", "--horizon", "3")


def test_plan_plays_what_the_agent_would(checkpoint: Path, agent: WorldModelPolicy, capsys: pytest.CaptureFixture[str]):
    argv = ("plan", str(checkpoint), "--planner", "mppi", *SMALL, "--episodes", "2", "--seed", "3")
    figures = printed(capsys, *argv, "--json")
    planner: PlanningPolicy = agent.planner("mppi", seed=3, horizon=3, num_samples=8, num_iterations=1)
    env = gym.make("CartPole-v1")
    expected = [play_episode(planner, env, seed).total_reward for seed in (3, None)]
    assert figures["returns"] == expected
    assert (figures["episode_return_mean"], figures["episodes"]) == (np.mean(expected), 2)
    assert (figures["planner"], figures["horizon"], figures["num_samples"]) == ("mppi", 3, 8)
    assert 0 < figures["decision_ms_median"] <= figures["decision_ms_p95"]
    assert main([*argv, "--no-critic"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "and nothing after" in out[0]
    assert [line.partition(":")[0] for line in out[1:]] == ["episode 1", "episode 2", str(checkpoint)]


def test_evaluate_with_a_planner_adds_to_what_evaluate_says(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate, "TIMED_DECISIONS", 10)
    argv = ("evaluate", str(checkpoint), "--episodes", "2", "--seed", "3", "--json")
    plain = printed(capsys, *argv)
    assert plain.keys() == {"episode_return_mean", "episode_return_std", "episodes"}
    figures = printed(capsys, *argv, "--planner", "random")
    assert plain.items() <= figures.items()
    result = evaluate_policy(load_policy(checkpoint).planner("random", seed=3), "CartPole-v1", 2, 3)
    assert (figures["planner_return_mean"], figures["planner_return_std"]) == (result.mean, result.std)
    for who in ("planner", "policy"):
        assert 0 < figures[f"{who}_decision_ms_median"] <= figures[f"{who}_decision_ms_p95"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["plan"], "CHECKPOINT"),
        (["plan", "nowhere"], "checkpoint nowhere does not exist"),
        (["plan", "nowhere", "--planner", "beam"], "--planner is 'beam'"),
        (["plan", "nowhere", "--horizon", "0"], "--horizon is 0"),
        (["plan", "nowhere", "--samples", "many"], "--samples is 'many'"),
        (["plan", "nowhere", "--iterations", "1.5"], "--iterations is 1.5"),
        (["plan", "nowhere", "--episodes", "0"], "--episodes is 0"),
        (["plan", "nowhere", "--seed", "-1"], "--seed is -1"),
        (["evaluate", "nowhere", "--planner", "beam"], "--planner is 'beam'"),
    ],
    ids=str,
)
def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str], argv: list[str], expected: str):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("wm_rllib: error: ") and expected in err and "Traceback" not in err


def test_another_environment_that_does_not_fit(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(checkpoint), "--env", "Pendulum-v1"]) == 2
    assert "the agent was trained on (4,)" in capsys.readouterr().err
