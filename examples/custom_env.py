r"""An environment of your own, with its observations preprocessed on the way to V.

    python examples/custom_env.py
    python -m wm_rllib train --env examples.custom_env:make_env --set env.config="{horizon: 60}" --run-dir runs/room \
        --total-timesteps 3000 --set evaluation.interval=500

Preprocess in a Gymnasium wrapper, as here for a Dict observation that has to become a Box: it runs wherever the trained
agent is used, in evaluation and after `load_policy` too.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import ray
from gymnasium.spaces import Box, Dict, Discrete
from ray.tune.registry import register_env

from wm_rllib import WorldModelPPOConfig


class Thermostat(gym.Env[dict[str, np.ndarray], int]):
    """Keep a room at its target: heat or do nothing; the outside temperature drifts."""

    def __init__(self, horizon: int = 100):
        self.observation_space = Dict({"room": Box(-40.0, 60.0, (1,)), "outside": Box(-40.0, 60.0, (1,))})
        self.action_space = Discrete(2)
        self._horizon = horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A cold room."""
        super().reset(seed=seed)
        self._t, self._room, self._outside = 0, 15.0, float(self.np_random.uniform(-5.0, 10.0))
        return self._observation(), {}

    def step(self, action: int) -> Any:
        """One minute; the reward is minus the distance from 21 degrees."""
        self._t += 1
        self._outside += float(self.np_random.normal(0.0, 0.2))
        self._room += 1.5 * action + 0.05 * (self._outside - self._room)
        return self._observation(), -abs(self._room - 21.0), False, self._t >= self._horizon, {}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"room": np.float32([self._room]), "outside": np.float32([self._outside])}


def make_env(horizon: int = 100) -> gym.Env[Any, Any]:
    """As V wants it: a Box of one axis. By import path it gets `env.config` as keyword arguments."""
    return gym.wrappers.FlattenObservation(Thermostat(horizon))


def main() -> None:
    """Trains for a few iterations."""
    ray.init(address="local", include_dashboard=False)
    register_env("Thermostat", lambda env_config: make_env(**env_config))  # what is registered gets one dict
    config = (
        WorldModelPPOConfig()
        .environment("Thermostat", env_config={"horizon": 60})
        .world_model(pretrain_epochs=100)
        .dreamers(imagination_ratio=0.9)
    )
    algo = config.build_algo()
    for _ in range(5):
        result = algo.train()
        print(result["phase"], result["num_env_steps_sampled_lifetime"], result["mdn"])
    algo.stop()


if __name__ == "__main__":
    main()
