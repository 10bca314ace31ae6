"""Planning in the dream: an agent whose actions are searched for inside M, with no policy network proposing any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wm_rllib.acting.pipelines import actions_for_env
from wm_rllib.models.lookahead import Lookahead
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.plan_distributions import PlanDistribution, first_distribution
from wm_rllib.models.search import IterationStats, SearchConfig, search, shifted

if TYPE_CHECKING:
    from wm_rllib.acting.policy import WorldModelPolicy  # its method `plan` comes here


@dataclass(frozen=True)
class PlanningState:
    """What a planning agent remembers of B episodes: M's state, and the plans [B, H, A] that it follows, if any."""

    memory: State
    plans: Tensor | None


@dataclass(frozen=True)
class Plan:
    """What a search found for one observation.

    Attributes:
        action: The first action, ready for `env.step`.
        actions: All of them [H, ...], in env space.
        predicted_return: Discounted return that M and the critic expect of the plan, on noise that the search has not
            seen: a search picks what was lucky, too.
        rewards: Expected rewards [H], each weighted by the probability that the episode has not ended before.
        survival: Probability [H] that the episode goes on after each step.
        iterations: The candidates' predicted returns in each iteration of the search.
        state: What is remembered after this observation and `action`: the next plan can start from this one.
    """

    action: Any
    actions: np.ndarray
    predicted_return: float
    rewards: np.ndarray
    survival: np.ndarray
    iterations: list[dict[str, float]]
    state: PlanningState


class PlanningPolicy:
    """An agent that plans anew at each step, from the plan before.

    `wm_rllib.acting.evaluation.evaluate_policy` takes it. Weights are copied: make a new one when the agent has learnt.

    Args:
        agent: Whose V, M and critic are used, never its policy network.
        config: How to search.
        seed: Seeds the search; torch's global generator is left alone. None draws one.

    Raises:
        ValueError: The critic is wanted, but the agent has none.
    """

    def __init__(self, agent: WorldModelPolicy, config: SearchConfig, seed: int | None = None):
        if config.critic and agent.module.inference_only:
            raise ValueError(
                "critic is True, but this agent's module is for inference only and has no critic. "
                "Fix: critic=False, or an agent from load_policy or algo.get_policy()."
            )
        self.agent, self.config = agent, config
        self._generator = torch.Generator(device=agent.world_model.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._lookahead = Lookahead(
            agent.world_model.mdn_rnn,
            agent.values if config.critic else None,
            discount=agent.discount,
            num_particles=config.num_particles,
            temperature=config.temperature,
        )

    def initial_state(self, batch_size: int) -> PlanningState:
        """The memory of B new episodes."""
        return PlanningState(self.agent.initial_state(batch_size), None)

    @torch.no_grad()
    def act(self, observations: np.ndarray, state: PlanningState) -> tuple[np.ndarray, PlanningState]:
        """The first actions [B, ...] of the plans, in env space, and the memory after them."""
        z = self.agent.world_model.vae.encode(torch.as_tensor(observations))
        plans, _ = self._search(z, state.memory, state.plans)
        actions = self.agent.world_model.codec.decode(plans[:, 0])
        memory = self.agent.world_model.advance(z, actions, state.memory)
        return self._to_env(actions), PlanningState(memory, plans)

    @torch.no_grad()
    def plan(self, observation: np.ndarray, state: PlanningState | None = None) -> Plan:
        """The plan for one observation [*O], and what is expected of it.

        Args:
            observation: The present one.
            state: What is remembered of this episode, of one row; None: nothing.

        Raises:
            ValueError: The observation's shape is not the one that the agent was trained on.
        """
        model = self.agent.world_model
        observation, shape = np.asarray(observation), model.config.vae.observation_shape
        if observation.shape != shape:
            raise ValueError(
                f"the observation has shape {observation.shape}, but the agent was trained on {shape}. "
                "Fix: give one observation, without a batch axis."
            )
        state = state or self.initial_state(1)
        z = model.vae.encode(torch.as_tensor(observation)[None])
        plans, statistics = self._search(z, state.memory, state.plans)
        actions = model.codec.decode(plans)
        in_env = self._to_env(actions[0])
        forecast = self._lookahead(z, state.memory, plans[:, None], self._generator)
        return Plan(
            action=in_env[0],
            actions=in_env,
            predicted_return=forecast.returns.item(),
            rewards=forecast.rewards[0, 0].cpu().numpy(),
            survival=forecast.survival[0, 0].cpu().numpy(),
            iterations=[_figures(iteration) for iteration in statistics],
            state=PlanningState(model.advance(z, actions[:, 0], state.memory), plans),
        )

    @torch.no_grad()
    def remember(self, observations: np.ndarray, actions: Any) -> PlanningState:
        """What is remembered of one episode at its present observation.

        Args:
            observations: [L + 1, *O], the present one last.
            actions: [L, ...] in env space, between them.

        Raises:
            ValueError: The two do not fit each other, or the agent.
        """
        model = self.agent.world_model
        observations, taken = np.asarray(observations), np.asarray(actions)
        shape, action_shape = model.config.vae.observation_shape, self.agent.action_space.shape or ()
        if observations.shape != (len(taken) + 1, *shape) or taken.shape[1:] != action_shape:
            raise ValueError(
                f"the history has observations of shape {observations.shape} and actions of shape {taken.shape}, but "
                f"must have (L + 1, *{shape}) and (L, *{action_shape}). Fix: give all observations, the present one "
                "last, and the actions between them."
            )
        in_policy_space = torch.as_tensor(model.codec.env_to_policy(taken))[None]
        mask = torch.ones(in_policy_space.shape[:2], dtype=torch.bool)
        _, memory = model.burn_in(torch.as_tensor(observations)[None], in_policy_space, mask)
        return PlanningState(memory, None)

    def _search(self, z: Tensor, memory: State, before: Tensor | None) -> tuple[Tensor, list[IterationStats]]:
        first = self._first_distribution(len(z))
        previous = None if before is None else shifted(before, first)
        return search(self._lookahead, first, (z, memory), self.config, self._generator, previous)

    def _first_distribution(self, rows: int) -> PlanDistribution:
        model = self.agent.world_model
        return first_distribution(model.codec, rows, self.config.horizon, model.device)

    def _to_env(self, actions: Tensor) -> np.ndarray:
        config = self.agent.world_model.config
        how = {"normalize": config.normalize_actions, "clip": config.clip_actions}
        return actions_for_env(actions.cpu().numpy(), self.agent.action_space, **how)


def _figures(iteration: IterationStats) -> dict[str, float]:
    return {name: value.item() for name, value in vars(iteration).items()}
