"""`imagine_rollout`: which index means what, where dreams start, whose actions they hold, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from test_dreaming import FIRST_BIRTH, Clockwork
from test_merge import SPACES, config_of, make_learner
from torch import Tensor

from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.models import MDNRNN
from wm_rllib.models.outcome import Outcome

pytestmark = pytest.mark.usefixtures("no_ray")

STEPS, HORIZON = 4, 6
OBSERVATIONS = np.random.default_rng(0).normal(size=(3, STEPS + 1, 4)).astype(np.float32)
STARTS = OBSERVATIONS[:, -1]


@functools.cache
def agent(space: str = "discrete", **overrides: Any) -> WorldModelPolicy:
    """An agent with its critic, and with units that make its actions and its dreams vary."""
    learner = make_learner(config_of(space, **overrides))
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    with torch.no_grad():
        for weights in module.pi.parameters():
            weights.normal_()
    return WorldModelPolicy(learner.world_model.eval(), module)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- what the indices mean -------------------------------------------------------------------------------------------


def test_time_is_that_of_the_convention_and_lanes_go_on_after_their_end():
    policy = agent(mdn_rnn_class=Clockwork)
    policy.world_model.vae.encode = lambda observations: observations[..., :3]  # type: ignore[method-assign]
    starts = torch.tensor([[FIRST_BIRTH + 2, 0.0, 5.0, 0.0], [FIRST_BIRTH + 99, 0.0, 5.0, 0.0]])
    result = policy.imagine_rollout(starts, horizon=5)
    ages = torch.arange(5.0)
    for lane, birth in enumerate((FIRST_BIRTH + 2, FIRST_BIRTH + 99)):
        torch.testing.assert_close(result["latents"][lane], torch.tensor([[birth, age, 5.0] for age in ages]))
        torch.testing.assert_close(result["hidden_states"][lane, :, 0], ages)
        torch.testing.assert_close(result["rewards"][lane], birth + 0.01 * ages)
    torch.testing.assert_close(result["bootstrap_latents"][:, 1], torch.full((2,), 5.0))
    torch.testing.assert_close(result["bootstrap_hidden_states"], torch.full((2, 8), 5.0))
    # The second step leads to age 2, and out of the first lane's life.
    assert result["terminateds"].tolist() == [[False, True, True, True, True], [False] * 5]
    assert result["termination_probs"].tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 5]
    assert result["valid"].tolist() == [[True, True, False, False, False], [True] * 5]


@pytest.mark.parametrize("space", SPACES)
def test_every_column_is_what_its_name_says(space: str):
    policy = agent(space)
    result = policy.imagine_rollout(STARTS, HORIZON, explore=True, seed=1)
    model, latents, hidden = policy.world_model, result["latents"], result["hidden_states"]
    with torch.no_grad():
        torch.testing.assert_close(latents[:, 0], model.vae.encode(torch.as_tensor(STARTS)))
        for prefix in ("", "bootstrap_"):
            z, h = result[f"{prefix}latents"], result[f"{prefix}hidden_states"]
            torch.testing.assert_close(result[f"{prefix}observations"], model.vae.decode(z))
            features = torch.cat([z, h], -1)
            values = policy.module.compute_values({Columns.OBS: features.reshape(-1, features.shape[-1])})
            torch.testing.assert_close(result[f"{prefix}values"].flatten(), values)
        assert not hidden[:, 0].any()
        # An LSTM of its own, run over what is in the columns.
        actions = np.stack([model.codec.env_to_policy(result["actions"][:, t].numpy()) for t in range(HORIZON)], 1)
        encoded = model.codec.encode(torch.as_tensor(actions))
        following, _ = model.mdn_rnn.lstm(torch.cat([latents, encoded], -1))
        torch.testing.assert_close(hidden[:, 1:], following[:, :-1])
        torch.testing.assert_close(result["bootstrap_hidden_states"], following[:, -1])
    assert not any(column.requires_grad for column in result.values())
    assert policy.action_space.contains(result["actions"][0, 0].numpy().astype(policy.action_space.dtype))
    assert len(result["actions"].flatten(0, 1).unique(dim=0)) > 1


class Mortal(MDNRNN):
    """A quarter of all steps are terminal, and worth 5."""

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        chance = torch.full_like(z[..., 0], 0.25)
        return Outcome(torch.ones_like(chance), torch.logit(chance), torch.full_like(chance, 5.0))


def test_terminations_are_sampled_and_have_the_reward_of_their_case():
    result = agent(mdn_rnn_class=Mortal).imagine_rollout(STARTS[0], 20, num_samples=2000, seed=0)
    torch.testing.assert_close(result["termination_probs"], torch.full((2000, 20), 0.25))
    assert result["terminateds"].float().mean().item() == pytest.approx(0.25, abs=0.01)  # 4.6 standard errors
    assert torch.equal(result["rewards"], torch.where(result["terminateds"], 5.0, 1.0))
    # The first is geometric: 1 / 0.25 steps, but for the end of the dream.
    assert result["valid"].sum(1).float().mean().item() == pytest.approx(4 * (1 - 0.75**20), abs=0.3)


# --- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_a_history_sets_h_as_acting_does(space: str):
    policy = agent(space)
    state, history = policy.initial_state(3), []
    for t in range(STEPS):
        actions, state = policy.act(OBSERVATIONS[:, t], state, explore=True)
        history.append(actions)
    expected, _ = policy.act(STARTS, state)
    actions = np.stack(history, 1)
    result = policy.imagine_rollout(OBSERVATIONS, HORIZON, history_actions=actions, seed=2)
    torch.testing.assert_close(result["hidden_states"][:, 0], state[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result["actions"][:, 0], expected, rtol=1e-3, atol=1e-5)
    alone = policy.imagine_rollout(OBSERVATIONS[1], HORIZON, history_actions=actions[1], seed=2)
    torch.testing.assert_close(alone["hidden_states"][:, 0], state[0][1:2], rtol=1e-4, atol=1e-6)


def test_a_history_of_one_observation_is_that_observation():
    policy = agent()
    one = policy.imagine_rollout(STARTS[:, None], HORIZON, history_actions=np.zeros((3, 0), int), seed=0)
    assert_same(one, policy.imagine_rollout(STARTS, HORIZON, seed=0))


def test_one_observation_is_a_batch_of_one():
    policy = agent()
    one = policy.imagine_rollout(STARTS[0], HORIZON, seed=0)
    assert one["rewards"].shape == (1, HORIZON)
    assert_same(one, policy.imagine_rollout(torch.as_tensor(STARTS[:1]), HORIZON, seed=0))


def test_samples_of_a_start_follow_each_other():
    result = agent().imagine_rollout(STARTS, HORIZON, num_samples=4, seed=0)
    latents = result["latents"].view(3, 4, HORIZON, -1)
    assert torch.equal(latents[:, :, 0], latents[:, :1, 0].expand(-1, 4, -1))
    assert len(result["latents"][:, 0].unique(dim=0)) == 3
    assert len(result["latents"][:, 1].unique(dim=0)) == 12


# --- actions, temperature, seeds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_given_actions_are_done(space: str):
    policy = agent(space)
    free = policy.imagine_rollout(STARTS, HORIZON, num_samples=1, seed=5)  # greedy: no noise but M's
    again = policy.imagine_rollout(STARTS, actions=free["actions"].numpy(), seed=5)
    for name, column in free.items():
        torch.testing.assert_close(again[name], column, rtol=1e-3, atol=1e-4)
    others = np.stack([[policy.action_space.sample() for _ in range(HORIZON)] for _ in range(3)])
    result = policy.imagine_rollout(STARTS, HORIZON, actions=others, num_samples=2, seed=5)
    np.testing.assert_array_equal(result["actions"], np.repeat(others, 2, 0))
    assert not torch.equal(result["hidden_states"][::2, -1], free["hidden_states"][:, -1])


def test_greedy_and_exploring_actions():
    policy = agent("box")
    greedy = policy.imagine_rollout(STARTS[0], 2, num_samples=50, seed=0)["actions"][:, 0]
    explored = policy.imagine_rollout(STARTS[0], 2, num_samples=50, seed=0, explore=True)["actions"][:, 0]
    assert len(greedy.unique(dim=0)) == 1 < len(explored.unique(dim=0))


def test_a_seed_is_all_that_matters_and_touches_nothing_else():
    policy = agent()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = policy.imagine_rollout(STARTS, HORIZON, explore=True, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert_same(one, policy.imagine_rollout(STARTS, HORIZON, explore=True, seed=7))
    other = policy.imagine_rollout(STARTS, HORIZON, explore=True, seed=8)
    assert not torch.equal(one["latents"][:, 1], other["latents"][:, 1])
    drawn = [policy.imagine_rollout(STARTS, HORIZON)["latents"][:, 1] for _ in range(2)]
    assert not torch.equal(*drawn)


def test_the_temperature_is_the_training_runs_unless_another_is_given():
    policy = agent(temperature=0.3)
    result = policy.imagine_rollout(STARTS, HORIZON, seed=0)
    assert_same(result, policy.imagine_rollout(STARTS, HORIZON, temperature=0.3, seed=0))
    cold = policy.imagine_rollout(STARTS[0], 1, temperature=1e-6, num_samples=200, seed=0)["bootstrap_latents"]
    warm = policy.imagine_rollout(STARTS[0], 1, temperature=1.0, num_samples=200, seed=0)["bootstrap_latents"]
    assert (cold.std(0) < 0.01 * warm.std(0)).all()


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"start_obs": np.zeros(5)},
            r"start_obs has shape \[5\], but must be one observation \[4\] or a batch \[B, 4\]",
        ),
        ({"start_obs": np.zeros((2, 3, 4))}, r"start_obs has shape \[2, 3, 4\], but must be one observation \[4\]"),
        ({"start_obs": np.zeros((0, 4))}, r"start_obs has shape \[0, 4\]"),
        (
            {"start_obs": np.zeros(4), "history_actions": [0]},
            r"start_obs has shape \[4\], but must be one history \[L \+ 1, 4\] or a batch \[B, L \+ 1, 4\]",
        ),
        (
            {"start_obs": np.zeros((2, 5, 4)), "history_actions": np.zeros((2, 5), int)},
            r"history_actions has shape \[2, 5\], but must have \[2, 4\]",
        ),
        ({"actions": np.zeros((2, 3), int)}, r"actions has shape \[2, 3\], but must have \[3, 3\]"),
        ({"actions": np.zeros((3, 4), int), "horizon": 5}, r"actions has shape \[3, 4\], but must have \[3, 5\]"),
        ({"actions": np.full((3, 4), 2)}, r"actions holds values that are no actions of Discrete\(2\)"),
        ({"actions": np.zeros((3, 4))}, "actions holds values that are no actions"),
        ({"horizon": None}, "horizon is None, but must be a whole number of at least 1"),
        ({"horizon": 0}, "horizon is 0, but must be"),
        ({"num_samples": 0}, "num_samples is 0, but must be"),
        ({"temperature": 0.0}, "temperature is 0.0, but must be a number above 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], message: str):
    defaults = {"start_obs": STARTS} | ({} if "actions" in arguments else {"horizon": 3})
    with pytest.raises(ValueError, match=message):
        agent().imagine_rollout(**{**defaults, **arguments})
