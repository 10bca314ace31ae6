"""Stable-Baselines3's PPO, trained in the dream alone: not one real step.

    python examples/sb3_in_a_dream.py runs/cartpole-.../checkpoints/best --seed 0

`DreamEnv` works in SB3 like any Gymnasium environment. Here many dreams go through the world model in one batch, which
is several times faster; SB3 has a form of its own for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from wm_rllib import DreamVectorEnv


class SB3Dreams(VecEnv):
    """Dreams as SB3 has its vector environments.

    SB3 resets a lane at once. A dream that reaches its horizon is truncated, not terminated: with the observation after
    its last step, and told so, SB3's PPO bootstraps from its critic there.
    """

    def __init__(self, dreams: DreamVectorEnv):
        self._dreams = dreams
        super().__init__(dreams.num_envs, dreams.single_observation_space, dreams.single_action_space)

    def reset(self) -> np.ndarray:
        """New dreams in all lanes, from the seed that SB3 gave."""
        observations, _ = self._dreams.reset(seed=self._seeds[0])
        self._reset_seeds()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """What SB3 calls first."""
        self._actions = actions

    def step_wait(self) -> Any:
        """One step in all lanes."""
        observations, rewards, terminateds, truncateds, infos = self._dreams.step(self._actions)
        by_lane: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        dones = terminateds | truncateds
        for lane in np.flatnonzero(dones):
            by_lane[lane] = {"terminal_observation": infos["final_obs"][lane], "TimeLimit.truncated": truncateds[lane]}
        return observations, rewards, dones, by_lane

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same for all lanes."""
        return [getattr(self._dreams, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Lanes have no attributes of their own."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Nor methods."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Sequence[bool]:
        """None is."""
        return [False] * len(list(self._get_indices(indices)))


def main() -> None:
    """Trains in the dream, and prints the return in the real environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--env", default="CartPole-v1", help="the real environment, for the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=200_000, help="dreamed steps")
    parser.add_argument("--num-dreams", type=int, default=32, help="dreams side by side")
    parser.add_argument("--horizon", type=int, default=200, help="longest dream")
    parser.add_argument("--start", default="replay", choices=["replay", "episode_start"])
    parser.add_argument("--episodes", type=int, default=20, help="real episodes of the evaluation")
    args = parser.parse_args()

    dreams = DreamVectorEnv(
        args.num_dreams, args.checkpoint, horizon=args.horizon, start=args.start, autoreset_mode="SameStep"
    )
    agent = PPO(
        "MlpPolicy", SB3Dreams(dreams), n_steps=64, batch_size=256, learning_rate=1e-3, seed=args.seed, device="cpu"
    )
    agent.learn(args.timesteps)
    real = Monitor(gym.make(args.env))
    real.reset(seed=1_000_000 + args.seed)
    returns, _ = evaluate_policy(agent, real, args.episodes, return_episode_rewards=True)
    print(f"seed {args.seed}: real return {np.mean(returns):.1f} over {len(returns)} greedy episodes")


if __name__ == "__main__":
    main()
