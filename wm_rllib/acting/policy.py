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

from wm_rllib.acting.imagination import check_dream_settings, planned_actions, seeded, start_states
from wm_rllib.acting.pipelines import actions_for_env
from wm_rllib.acting.planning import Plan, PlanningPolicy, PlanningState
from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.environments.pixels import AS_IT_IS, PixelSettings
from wm_rllib.models.imagining import Imagined, imagine
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel
from wm_rllib.rl_modules.world_model_module import PIXEL_SETTINGS
from wm_rllib.settings.planner import search_config

UNRECORDED_DISCOUNT = 0.99
"""The default gamma, for checkpoints from before it was written into them."""


class WorldModelPolicy:
    """V, M and C as one agent with memory.

    For one environment: `reset`, then `compute_action` for each observation. For B of them: `initial_state` and `act`.

    Args:
        world_model: V and M, in eval mode.
        module: The PPO RLModule, acting on features.
        discount: gamma, which its critic was trained with.
        pixels: What was done to its environment.

    Attributes:
        world_model: As given.
        module: As given; one that was loaded from a checkpoint has its critic.
        action_space: The environment's.
        discount: As given.
        pixels: As given. An environment of your own has to be treated alike:
            `wm_rllib.environments.pixels.preprocess(env, pixels)`.
    """

    def __init__(
        self,
        world_model: WorldModel,
        module: Any,
        discount: float = UNRECORDED_DISCOUNT,
        pixels: PixelSettings = AS_IT_IS,
    ):
        self.world_model = world_model
        self.discount = discount
        self.pixels = pixels
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
        """The action, ready for `env.step`, for one observation [*O]; greedy unless `explore`.

        Raises:
            ValueError: The observation has another shape.
        """
        shape = self.world_model.config.vae.observation_shape
        if np.shape(observation) != shape:
            raise ValueError(
                f"the observation must be of shape {shape}, and is of {np.shape(observation)}. Fix: the "
                "environment that it was trained in; images as policy.pixels makes them (docs/images.md)."
            )
        actions, self._state = self.act(np.asarray(observation)[None], self._state, explore=explore)
        return actions[0]

    @torch.no_grad()
    def act(self, observations: np.ndarray, state: State, *, explore: bool = False) -> tuple[np.ndarray, State]:
        """Actions [B, ...] in env space for observations [B, *O], and the memory after them."""
        z = self.world_model.vae.encode(torch.as_tensor(observations))
        actions = self.choose(z, state[0], explore)
        return self._to_env(actions.numpy()), self.world_model.advance(z, actions, state)

    def choose(self, z: Tensor, h: Tensor, explore: bool) -> Tensor:
        """C's actions [B, ...] in policy space on latents [B, Z] and hidden states [B, D]; greedy unless `explore`."""
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        logits = forward({Columns.OBS: self.world_model.features(z, h)})[Columns.ACTION_DIST_INPUTS]
        if explore:
            return self.module.get_exploration_action_dist_cls().from_logits(logits).sample()
        return self.module.get_inference_action_dist_cls().from_logits(logits).to_deterministic().sample()

    @torch.no_grad()
    def imagine_rollout(
        self,
        start_obs: Any,
        horizon: int | None = None,
        *,
        history_actions: Any = None,
        actions: Any = None,
        explore: bool = False,
        temperature: float | None = None,
        num_samples: int = 1,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Imagines what would happen: H steps inside the world model from each of B starts.

        Rows: B * num_samples of them, called B below; the samples of one start follow each other, so that
        `result["rewards"].view(B, num_samples, H)` has them apart. Time is that of `wm_rllib.models`: index t of
        everything is what the action at t was chosen on, that action, or what it brought. A sampled termination is
        marked, and the lane goes on as if the episode did: `valid` says which transitions count.

        Args:
            start_obs: One observation [*O] or B of them [B, *O]; with `history_actions` one history [L + 1, *O] or B of
                them [B, L + 1, *O], whose last observation is the start. Without a history h is 0, as when an episode
                begins.
            horizon: H; may be left out where `actions` are given.
            history_actions: [L, ...] or [B, L, ...] in env space, between the observations of the history.
            actions: [B, H, ...] in env space ([H, ...] too for a single start): done instead of what C would do.
            explore: Whether C's actions are sampled, as in training, or greedy.
            temperature: tau of M's mixture; None: that of the training run.
            num_samples: Lanes for each start.
            seed: Makes the result reproducible and leaves torch's global generator alone; None draws from that.

        Returns:
            CPU tensors. observations [B, H, *O] (decoded from latents, the first one too), latents [B, H, Z],
            hidden_states [B, H, D], actions [B, H, ...] in env space, rewards [B, H], terminateds [B, H] bool (sampled
            from) termination_probs [B, H], values [B, H] (the critic's, of latents and hidden states), valid [B, H]
            bool (up to and including the first termination). What follows the last action: bootstrap_observations
            [B, *O], bootstrap_latents [B, Z], bootstrap_hidden_states [B, D] and bootstrap_values [B], which count only
            where nothing terminated.

        Raises:
            ValueError: A shape, an action or a number does not fit; the message has the expected and the given one.
        """
        model = self.world_model
        z, state = start_states(model, start_obs, history_actions)
        given = None if actions is None else planned_actions(self.action_space, actions, len(z), horizon)
        if horizon is None and given is not None:
            horizon = given.shape[1]
        temperature = model.config.mdn_rnn.temperature if temperature is None else temperature
        check_dream_settings(horizon, temperature, num_samples)
        assert horizon is not None
        z, h, c = (start.repeat_interleave(num_samples, 0) for start in (z, *state))
        planned: Tensor | None = None
        if given is not None:
            given = given.repeat(num_samples, 0)
            planned = torch.as_tensor(model.codec.env_to_policy(given))

        def act(t: int, z: Tensor, h: Tensor) -> Tensor:
            return self.choose(z, h, explore) if planned is None else planned[:, t]

        with seeded(seed):
            dream = imagine(model, act, z, (h, c), horizon, temperature)
        return self._as_trajectory(dream, self._to_env(dream.actions.numpy()) if given is None else given)

    def _as_trajectory(self, dream: Imagined, actions: np.ndarray) -> dict[str, Tensor]:
        """What `imagine_rollout` returns, of a dream and its actions [B, H, ...] in env space."""
        states = {
            "observations": self.world_model.vae.decode(dream.latents),
            "latents": dream.latents,
            "hidden_states": dream.hidden_states,
            "values": self.values(dream.latents, dream.hidden_states),
        }
        return {
            **{name: column[:, :-1] for name, column in states.items()},
            "actions": torch.as_tensor(actions),
            "rewards": dream.rewards,
            "terminateds": dream.terminateds,
            "termination_probs": dream.termination_probs,
            "valid": dream.valid,
            **{f"bootstrap_{name}": column[:, -1] for name, column in states.items()},
        }

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
        ValueError: It is a URI.
    """
    module = load_module(checkpoint)
    discount = module.model_config.get("gamma", UNRECORDED_DISCOUNT)
    loaded = load_world_model(checkpoint)
    pixels = loaded.model_config.get(PIXEL_SETTINGS, AS_IT_IS)
    return WorldModelPolicy(loaded.world_model.eval(), module, discount, pixels)


def load_module(checkpoint: str | Path) -> Any:
    """Loads C from a checkpoint of WorldModelPPO, as RLlib's module.

    Args:
        checkpoint: As for `load_policy`.

    Raises:
        FileNotFoundError: The folder does not exist or is no such checkpoint.
    """
    return RLModule.from_checkpoint(_module_folder(checkpoint, DEFAULT_MODULE_ID))


def load_world_model(checkpoint: str | Path) -> Any:
    """Loads V and M from a checkpoint of WorldModelPPO, as a `WorldModelRLModule`: with the environment's spaces.

    Args:
        checkpoint: As for `load_policy`.

    Raises:
        FileNotFoundError: The folder does not exist or is no such checkpoint.
    """
    return RLModule.from_checkpoint(_module_folder(checkpoint, WORLD_MODEL_MODULE_ID))


def _module_folder(checkpoint: str | Path, name: str) -> Path:
    if "://" in str(checkpoint):
        raise ValueError(f"checkpoint {checkpoint} is a URI, but must be a local folder. Fix: copy it to this machine.")
    folder = Path(checkpoint) / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE / name
    if not Path(checkpoint).is_dir():
        raise FileNotFoundError(f"checkpoint {checkpoint} does not exist.")
    if not folder.is_dir():
        inside = [f"{checkpoint}/checkpoints/{name}" for name in ("best", "last")]
        if found := next((path for path in inside if Path(path).is_dir()), None):
            raise FileNotFoundError(f"{checkpoint} is a run folder, not a checkpoint. Fix: {found}.")
        raise FileNotFoundError(
            f"{checkpoint} is not a checkpoint of WorldModelPPO: it has no folder {folder.relative_to(checkpoint)}. "
            "Name a folder written by `train` (runs/.../checkpoints/best), by Tune or by save_to_path."
        )
    return folder.absolute()
