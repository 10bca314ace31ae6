"""The trained agent outside of training: observation in, action out. No env runner, no Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor

from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel
from wm_rllib.pipelines import actions_for_env
from wm_rllib.planner_settings import search_config
from wm_rllib.planning import Plan, PlanningPolicy, PlanningState
from wm_rllib.replay import WORLD_MODEL_MODULE_ID

UNRECORDED_DISCOUNT = 0.99
"""The default gamma, for checkpoints from before it was written into them."""


class WorldModelPolicy:
    """V, M and C as one agent with memory.

    For one environment: `reset`, then `compute_action` for each observation. For B of them: `initial_state` and `act`.

    Args:
        world_model: V and M, in eval mode.
        module: The PPO RLModule, acting on features.
        discount: gamma, which its critic was trained with.

    Attributes:
        world_model: As given.
        module: As given; one that was loaded from a checkpoint has its critic.
        action_space: The environment's.
        discount: As given.
    """

    def __init__(self, world_model: WorldModel, module: Any, discount: float = UNRECORDED_DISCOUNT):
        self.world_model = world_model
        self.discount = discount
        self.action_space = world_model.config.action_space
        self.module = module
        self._state = self.initial_state(1)

    def initial_state(self, batch_size: int) -> State:
        """The memory of B new episodes."""
        return self.world_model.mdn_rnn.initial_state(batch_size)

    def reset(self) -> None:
        """Forgets the past; call it when an episode starts."""
        self._state = self.initial_state(1)

    def compute_action(self, observation: np.ndarray, *, explore: bool = False) -> Any:
        """The action, ready for `env.step`, for one observation [*O]; greedy unless `explore`."""
        actions, self._state = self.act(np.asarray(observation)[None], self._state, explore=explore)
        return actions[0]

    @torch.no_grad()
    def act(self, observations: np.ndarray, state: State, *, explore: bool = False) -> tuple[np.ndarray, State]:
        """Actions [B, ...] in env space for observations [B, *O], and the memory after them."""
        z = self.world_model.vae.encode(torch.as_tensor(observations))
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        logits = forward({Columns.OBS: self.world_model.features(z, state[0])})[Columns.ACTION_DIST_INPUTS]
        if explore:
            actions = self.module.get_exploration_action_dist_cls().from_logits(logits).sample()
        else:
            actions = self.module.get_inference_action_dist_cls().from_logits(logits).to_deterministic().sample()
        return self._to_env(actions.numpy()), self.world_model.advance(z, actions, state)

    @torch.no_grad()
    def values(self, z: Tensor, h: Tensor) -> Tensor:
        """The critic's values [...] of latents [..., Z] and hidden states [..., D], in the environment's units."""
        features = self.world_model.features(z, h)
        return self.module.compute_values({Columns.OBS: features.flatten(0, -2)}).view(features.shape[:-1])

    def planner(self, planner: str = "cem", *, seed: int | None = None, **settings: Any) -> PlanningPolicy:
        """An agent that searches for its actions in the dream; C's policy network has no part in it.

        Args:
            planner: "random", "cem" or "mppi".
            seed: Seeds the search; None draws a seed.
            **settings: Of `wm_rllib.models.search.SearchConfig`: horizon, num_samples, num_iterations, ...

        Raises:
            SettingError: For an unknown setting or a value that is not allowed (a ValueError).
        """
        return PlanningPolicy(self, search_config({"planner": planner, **settings}), seed)

    def plan(
        self,
        start_obs: np.ndarray,
        planner: str = "cem",
        *,
        history_actions: Any = None,
        memory: State | None = None,
        previous: Plan | None = None,
        seed: int | None = 0,
        **settings: Any,
    ) -> Plan:
        """The first action and the plan for one observation; to act for long, make a `planner` once instead.

        Args:
            start_obs: [*O]; with `history_actions` a history [L + 1, *O], whose last observation is the present one.
            planner: "random", "cem" or "mppi".
            history_actions: [L, ...] in env space, between the observations of the history.
            memory: M's state before the observation, [1, D] each, in place of a history. Without either the episode
                starts here.
            previous: The plan of the step before, whose action was taken: it goes on from there, memory included.
            seed: Seeds the search; None draws a seed.
            **settings: See `planner`.

        Raises:
            ValueError: An observation has another shape than in training, or two pasts are given.
        """
        if sum(past is not None for past in (history_actions, memory, previous)) > 1:
            raise ValueError("give one of history_actions, memory and previous: each says what happened before.")
        search = self.planner(planner, seed=seed, **settings)
        if history_actions is not None:
            state = search.remember(start_obs, history_actions)
            return search.plan(start_obs[-1], state)
        if memory is not None:
            return search.plan(start_obs, PlanningState(memory, None))
        return search.plan(start_obs, previous.state if previous else None)

    def _to_env(self, actions: np.ndarray) -> np.ndarray:
        """Policy space to env space, as RLlib's module-to-env pipeline does it."""
        config = self.world_model.config
        return actions_for_env(actions, self.action_space, normalize=config.normalize_actions, clip=config.clip_actions)


def load_policy(checkpoint: str | Path) -> WorldModelPolicy:
    """Loads the agent from a checkpoint of WorldModelPPO.

    Args:
        checkpoint: Folder written by `save_to_path`, by Ray Tune, or by the command line.

    Raises:
        FileNotFoundError: The folder does not exist or is no such checkpoint.
    """
    modules = Path(checkpoint) / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE
    for name in (DEFAULT_MODULE_ID, WORLD_MODEL_MODULE_ID):
        if not (modules / name).is_dir():
            raise FileNotFoundError(
                f"{checkpoint} is not a checkpoint of WorldModelPPO: it has no folder "
                f"{(modules / name).relative_to(checkpoint)}. "
                "Name a folder written by `train` (runs/.../checkpoints/best), by Tune or by save_to_path."
            )
    module = RLModule.from_checkpoint((modules / DEFAULT_MODULE_ID).absolute())
    world_model = RLModule.from_checkpoint((modules / WORLD_MODEL_MODULE_ID).absolute()).world_model.eval()
    return WorldModelPolicy(world_model, module, module.model_config.get("gamma", UNRECORDED_DISCOUNT))
