"""Every supported kind of action trains; what is not supported is one clear error before any actor."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from multi_discrete_env import TwoLevers
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from tiny import ROUNDS, tiny_config

from wm_rllib.metrics import progress_row

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

ITERATIONS = 6
LOSSES = ("vae/reconstruction_loss", "vae/kl_divergence", "mdn/nll", "mdn/reward_loss", "mdn/termination_loss")
PPO_LOSSES = ("ppo/policy_loss", "ppo/vf_loss", "ppo/entropy")


@pytest.mark.parametrize("env", ["Acrobot-v1", "Pendulum-v1", "LunarLander-v3", TwoLevers])
def test_all_phases(env):
    algorithm = tiny_config(env, evaluation_interval_steps=200, num_envs_per_env_runner=2).build_algo()
    try:
        rows = [progress_row(algorithm.train()) for _ in range(ITERATIONS)]
        evaluation = algorithm.evaluate_return(2)
    finally:
        algorithm.stop()
    assert [row["phase"] for row in rows] == ["random", "pretrain", *["mixed"] * (ITERATIONS - 2)]
    for row in rows[1:]:  # a missing or infinite loss is None in the row
        assert all(isinstance(row[name], float) and math.isfinite(row[name]) for name in LOSSES), row
    for row in rows[2:]:
        assert all(isinstance(row[name], float) and math.isfinite(row[name]) for name in PPO_LOSSES), row
        assert row["rows/imagined"] == row["rows/real"] > 0
    assert rows[-1]["policy/version"] == ROUNDS * (ITERATIONS - 2)
    assert len(evaluation.returns) == 2 and np.isfinite(evaluation.returns).all()
    # What V and M see are numbers of ordinary size, whatever the units of the environment.
    assert max(row["vae/reconstruction_loss"] for row in rows[1:]) < 100


# --- what is not supported -------------------------------------------------------------------------------------------


class WithSpaces(gym.Env):
    """An environment of any spaces."""

    def __init__(self, config=None):
        self.observation_space, self.action_space = self.make_spaces()

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
TWO = spaces.Discrete(2)
UNSUPPORTED = {
    "Dict observations": (spaces.Dict({"a": BOX}), TWO, "Dict"),
    "Tuple observations": (spaces.Tuple((BOX, BOX)), TWO, "Tuple"),
    "Text observations": (spaces.Text(5), TWO, "Text"),
    "Discrete observations": (spaces.Discrete(4), TWO, "Discrete"),
    "float pixels": (spaces.Box(0.0, 1.0, (8, 8, 3), np.float32), TWO, "uint8"),
    "channels first": (spaces.Box(0, 255, (3, 32, 32), np.uint8), TWO, "channels last"),
    "stacked pixels": (spaces.Box(0, 255, (4, 8, 8, 3), np.uint8), TWO, "one axis"),
    "Dict actions": (BOX, spaces.Dict({"a": TWO}), "Dict"),
    "Tuple actions": (BOX, spaces.Tuple((TWO, TWO)), "Tuple"),
    "Discrete actions from 1": (BOX, spaces.Discrete(2, start=1), "starting at 0"),
    "matrix actions": (BOX, spaces.Box(-1.0, 1.0, (2, 2), np.float32), "one axis"),
}


@pytest.fixture
def no_actor_starts(monkeypatch):
    """Fails the test if an actor is created."""

    def create(*_, **__):
        pytest.fail("an actor was started")

    monkeypatch.setattr("ray.actor.ActorClass._remote", create)


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_unsupported_spaces(no_actor_starts, name, num_env_runners):
    observation_space, action_space, words = UNSUPPORTED[name]
    env = type("Env", (WithSpaces,), {"make_spaces": lambda self: (observation_space, action_space)})
    config = tiny_config(env, num_env_runners=num_env_runners, num_cpus_per_env_runner=0.2)
    with pytest.raises(ValueError, match="not supported") as caught:
        config.build_algo()
    message = str(caught.value)
    assert words in message and "Fix: " in message
    assert len(message.splitlines()) == 1


class Fails(gym.Env):
    """Its second episode has what is no number, as a simulation that blew up has."""

    observation_space, action_space = BOX, TWO
    reward, observation = 1.0, 0.0

    def __init__(self, config=None):
        self.episode, self.t = 0, 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        broken = self.episode == 2 and self.t == 3
        observation = np.full(2, self.observation if broken else 0.5, np.float32)
        return observation, self.reward if broken else 1.0, self.t == 10, False, {}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"reward": math.nan}, "a reward of nan"),
        ({"reward": -math.inf}, "a reward of -inf"),
        ({"observation": math.nan}, "an observation of nan"),
    ],
    ids=str,
)
def test_what_is_no_number_is_one_error_and_not_a_policy_that_learns_no_more(broken, words):
    algorithm = tiny_config(type("Broken", (Fails,), broken)).build_algo()
    try:
        with pytest.raises(ValueError, match=f"the environment returned {words}, .*Fix: "):
            for _ in range(3):
                algorithm.train()
    finally:
        algorithm.stop()


class TwoAgents(MultiAgentEnv):
    """Two agents in a Box."""

    def __init__(self, config=None):
        super().__init__()
        self.agents = self.possible_agents = ["a", "b"]
        self.observation_spaces = {agent: BOX for agent in self.agents}
        self.action_spaces = {agent: TWO for agent in self.agents}

    def reset(self, *, seed=None, options=None):
        return {agent: BOX.sample() for agent in self.agents}, {}

    def step(self, action_dict):
        done = {"__all__": False}
        return {agent: BOX.sample() for agent in self.agents}, dict.fromkeys(self.agents, 0.0), done, done, {}


def test_multi_agent_environments(no_actor_starts):
    config = tiny_config(TwoAgents).multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda agent, *_, **__: agent)
    with pytest.raises(ValueError, match="multi-agent environments are not supported"):
        config.build_algo()


def test_multi_agent_environments_without_a_mapping(no_actor_starts):
    """RLlib knows from the environment alone, once it has made one."""
    with pytest.raises(ValueError, match="multi-agent"):
        tiny_config(TwoAgents).build_algo()
