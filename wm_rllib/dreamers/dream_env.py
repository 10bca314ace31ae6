"""The dream as an environment: any agent can train in it (RLlib's, Stable-Baselines3's, CleanRL's)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from wm_rllib.acting.imagination import check_dream_settings, checked_actions
from wm_rllib.acting.policy import load_world_model
from wm_rllib.dreamers.starts import DreamStarts, Start
from wm_rllib.models.dreaming import unsureness
from wm_rllib.models.imagining import draw_step_noise, imagined_step
from wm_rllib.models.mdn_rnn import State

ENV_ID = "wm_rllib/Dream-v0"

Info = dict[str, Any]


class _Lanes:
    """B dreams side by side, each begun and ended by itself; what both kinds of environment are made of."""

    def __init__(
        self,
        num_lanes: int,
        checkpoint: str | Path,
        horizon: int,
        temperature: float | None,
        start: Start,
        burn_in: int,
        uncertainty_penalty: float,
    ):
        loaded = load_world_model(checkpoint)
        self._model = loaded.world_model.eval()
        self._temperature = self._model.config.mdn_rnn.temperature if temperature is None else temperature
        check_dream_settings(horizon, self._temperature)
        if isinstance(uncertainty_penalty, bool) or not 0 <= uncertainty_penalty < np.inf:
            raise ValueError(f"uncertainty_penalty is {uncertainty_penalty!r}, but must be a number of at least 0.")
        self._starts = DreamStarts(checkpoint, start, burn_in)
        self._horizon, self._penalty = horizon, uncertainty_penalty
        self.observation_space: Box = loaded.observation_space
        self.action_space: gym.Space[Any] = self._model.config.action_space
        self._noise = torch.Generator()
        self._z: Tensor = torch.zeros(num_lanes, self._model.config.vae.latent_dim)
        self._state: State = self._model.mdn_rnn.initial_state(num_lanes)
        self._steps = np.zeros(num_lanes, int)

    def seed(self, rng: np.random.Generator) -> None:
        """Makes M's noise follow from `rng`; torch's global generator is neither used nor touched."""
        self._noise.manual_seed(int(rng.integers(2**63)))

    def begin(self, lanes: np.ndarray, rng: np.random.Generator) -> None:
        """Starts new dreams in the lanes [B] bool that are chosen."""
        if lanes.any():
            rows = torch.as_tensor(lanes)
            z, (h, c) = self._starts.draw(self._model, int(lanes.sum()), rng)
            self._z[rows], self._state[0][rows], self._state[1][rows] = z, h, c
            self._steps[lanes] = 0

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, terminateds and truncateds [B] of env-space actions [B, ...] in all lanes."""
        checked = checked_actions(self.action_space, actions, (len(self._steps),), "the actions")
        with torch.no_grad():
            encoded = self._model.codec.encode(torch.as_tensor(self._model.codec.env_to_policy(checked)))
            noise = draw_step_noise(self._model.mdn_rnn, len(encoded), self._noise)
            step = imagined_step(self._model.mdn_rnn, self._z, encoded, self._state, self._temperature, noise)
            rewards = step.reward
            if self._penalty:
                rewards = rewards - self._penalty * unsureness(self._model.mdn_rnn, self._z, encoded)
        self._z, self._state = step.z, step.state
        self._steps += 1
        terminateds = step.terminated.numpy()
        return rewards.numpy().astype(float), terminateds, ~terminateds & (self._steps >= self._horizon)

    def observations(self) -> np.ndarray:
        """What the agent sees, [B, *O], decoded and within the space."""
        space = self.observation_space
        with torch.no_grad():
            decoded = self._model.vae.decode(self._z).numpy()
        if np.issubdtype(space.dtype, np.integer):
            decoded = decoded.round()
        # Low and high may be infinite, and float32 may not reach a float64 bound: clip before and after the cast.
        return np.clip(np.clip(decoded, space.low, space.high).astype(space.dtype), space.low, space.high)


class DreamEnv(gym.Env[np.ndarray, Any]):
    """The dream of a checkpoint as a Gymnasium environment.

    Spaces are the real environment's. Observations are decoded latents, clipped to the space's bounds, which real
    observations never leave. Termination is sampled from M, and a dream that lasts `horizon` steps is truncated: what
    learns in it should bootstrap there, as with any time limit. Everything random follows from the seed of `reset`.

    Args:
        checkpoint: Folder written by `train` (runs/.../checkpoints/best), by Tune or by `save_to_path`.
        horizon: Longest dream, in steps.
        temperature: tau of M's mixture; None: that of the training run.
        start: "replay": dreams start at real steps drawn evenly from the checkpoint's replay, with h from the real
            steps before them, as in training. "episode_start": at the first observations of real episodes, with h = 0.
        burn_in: Real steps before a start from the replay that h is computed from, at most.
        uncertainty_penalty: Taken off the reward for steps on which M's ensemble (if it has one) disagrees more than is
            usual on real steps: so many units of the reward's scale for each multiple (MOPO, Yu et al. 2020). What
            learns in a dream alone is never set right by a real step, and goes where M is wrong to its advantage.
            0: rewards are what M predicts.
        render_mode: None; a dream has no pictures.

    Raises:
        FileNotFoundError: The folder is no checkpoint of WorldModelPPO.
        ValueError: An argument is out of range.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's own form)

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        horizon: int = 200,
        temperature: float | None = None,
        start: Start = "replay",
        burn_in: int = 15,
        uncertainty_penalty: float = 1.0,
        render_mode: str | None = None,
    ):
        self._lanes = _Lanes(1, checkpoint, horizon, temperature, start, burn_in, uncertainty_penalty)
        self.observation_space, self.action_space = self._lanes.observation_space, self._lanes.action_space
        self.render_mode = render_mode
        self._is_seeded = False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Starts a dream; `options` has none."""
        super().reset(seed=seed)
        if seed is not None or not self._is_seeded:
            self._lanes.seed(self.np_random)
            self._is_seeded = True
        self._lanes.begin(np.ones(1, bool), self.np_random)
        return self._lanes.observations()[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        """One imagined step.

        Raises:
            ValueError: The action is not in the action space.
        """
        rewards, terminateds, truncateds = self._lanes.step(np.asarray(action)[None])
        return self._lanes.observations()[0], float(rewards[0]), bool(terminateds[0]), bool(truncateds[0]), {}


class DreamVectorEnv(gym.vector.VectorEnv[np.ndarray, Any, np.ndarray]):
    """Many dreams at once, in one batch: `gymnasium.make_vec("wm_rllib/Dream-v0", num_envs=64, checkpoint=...)`.

    As `DreamEnv`. One seed stands for all lanes. A lane that has ended starts anew: at the next step, whose action is
    ignored in that lane and whose reward is 0, or at once (gymnasium's autoreset modes).

    Args:
        num_envs: B.
        checkpoint: See `DreamEnv`, also for what follows.
        horizon: The same.
        temperature: The same.
        start: The same.
        burn_in: The same.
        uncertainty_penalty: The same.
        render_mode: The same.
        autoreset_mode: "NextStep" or "SameStep"; with the latter `infos["final_obs"]` has a dream's last observation.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  (gymnasium's own form)

    def __init__(
        self,
        num_envs: int,
        checkpoint: str | Path,
        *,
        horizon: int = 200,
        temperature: float | None = None,
        start: Start = "replay",
        burn_in: int = 15,
        uncertainty_penalty: float = 1.0,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ):
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise ValueError(f"autoreset_mode is {autoreset_mode!r}, but must be 'NextStep' or 'SameStep'.")
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self._resets_at_once = mode is AutoresetMode.SAME_STEP
        self._lanes = _Lanes(num_envs, checkpoint, horizon, temperature, start, burn_in, uncertainty_penalty)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self._lanes.observation_space
        self.single_action_space = self._lanes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended = np.zeros(num_envs, bool)
        self._is_seeded = False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Starts a dream in every lane; `options` has none."""
        super().reset(seed=seed)
        if seed is not None or not self._is_seeded:
            self._lanes.seed(self.np_random)
            self._is_seeded = True
        self._ended = np.zeros(self.num_envs, bool)
        self._lanes.begin(~self._ended, self.np_random)
        return self._lanes.observations(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """One imagined step in each lane, and new starts as the autoreset mode says.

        Raises:
            ValueError: An action is not in the action space.
        """
        rewards, terminateds, truncateds = self._lanes.step(actions)
        infos: Info = {}
        if self._resets_at_once:
            begins = terminateds | truncateds
            last = self._lanes.observations()
            for lane in np.flatnonzero(begins):
                infos = self._add_info(infos, {"final_obs": last[lane], "final_info": {}}, int(lane))
        else:
            begins = self._ended
            rewards[begins], terminateds, truncateds = 0.0, terminateds & ~begins, truncateds & ~begins
            self._ended = terminateds | truncateds
        self._lanes.begin(begins, self.np_random)
        return self._lanes.observations(), rewards, terminateds, truncateds, infos


def register_dream() -> None:
    """Makes both known to `gymnasium.make` and `gymnasium.make_vec`; importing the package does it."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, f"{__name__}:DreamEnv", vector_entry_point=f"{__name__}:DreamVectorEnv")
