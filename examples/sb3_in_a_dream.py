"""Stable-Baselines3's PPO, trained in the dream alone: not one real step.

    python examples/sb3_in_a_dream.py runs/cartpole-.../checkpoints/best --env CartPole-v1 --seed 0

A dream that reaches its horizon is truncated, not terminated. SB3's DummyVecEnv passes that on, with the observation
after the last step, and SB3's PPO bootstraps from its critic there, as with any time limit.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import wm_rllib  # registers the environment's id
from wm_rllib.dream_env import ENV_ID


def main() -> None:
    """Trains, and prints the return in the real environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--env", default="CartPole-v1", help="the real environment, for the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=100_000, help="dreamed steps")
    parser.add_argument("--horizon", type=int, default=50, help="longest dream")
    parser.add_argument("--start", default="replay", help="replay or episode_start")
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()

    print(f"wm_rllib {wm_rllib.__version__}: {args.timesteps:,} dreamed steps of at most {args.horizon} each")
    dream = {"checkpoint": args.checkpoint, "horizon": args.horizon, "start": args.start}
    envs = make_vec_env(ENV_ID, n_envs=8, seed=args.seed, env_kwargs=dream)
    agent = PPO("MlpPolicy", envs, n_steps=128, batch_size=256, learning_rate=1e-3, seed=args.seed, device="cpu")
    agent.learn(args.timesteps)
    real = gym.wrappers.RecordEpisodeStatistics(gym.make(args.env))
    real.reset(seed=args.seed)
    returns, _ = evaluate_policy(agent, real, args.episodes, return_episode_rewards=True)
    print(f"real return: {sum(returns) / len(returns):.1f} over {len(returns)} greedy episodes")


if __name__ == "__main__":
    main()
