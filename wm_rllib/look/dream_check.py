"""Fresh episodes of a checkpoint, the figures from them, and frames of one stretch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wm_rllib.acting.evaluation import VectorEnv, make_vector_env
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.look.episodes import Episode, play, policy_actor, random_actor, step_limit
from wm_rllib.look.frames import TracePainter, make_painter
from wm_rllib.look.measuring import DreamSettings, Traces, TrustFigures, measure
from wm_rllib.look.pictures import cut_height, strip
from wm_rllib.runs.agents import Agent
from wm_rllib.runs.checkpoints import read_meta, read_settings

STRIP_FRAMES, STRIP_WIDTH = 6, 132


@dataclass(frozen=True)
class DreamCheck:
    """What a checkpoint's dream was found to be.

    Attributes:
        figures: The figures.
        obs_scale: [O], V's units of observations.
        film: Real frames above dreamed ones; None where the environment has no picture of a dreamed state.
    """

    figures: TrustFigures
    obs_scale: np.ndarray
    film: np.ndarray | None


def dream_settings(agent: Agent) -> DreamSettings:
    """How the run of this checkpoint dreams; the defaults where it does not say."""
    default = WorldModelPPOConfig()
    settings = read_settings(agent.checkpoint) if read_meta(agent.checkpoint) else {}  # Tune's have none of ours
    return DreamSettings(
        horizon=settings.get("world_model.training.imagination_horizon", default.imagination_horizon),
        burn_in=settings.get("world_model.training.burn_in", default.burn_in),
        temperature=agent.policy.world_model.config.mdn_rnn.temperature,
    )


def check_dream(agent: Agent, num_episodes: int, seed: int) -> DreamCheck:
    """Plays fresh episodes, half as the exploring policy does and half at random, and holds the dream against them.

    Args:
        agent: The checkpoint.
        num_episodes: Of each kind.
        seed: Of environments, actions and dreams.
    """
    policy = agent.policy
    env = _vector_env(agent, num_episodes)
    try:
        played = _play_as_policy(agent, env, seed)
        wandered = play(env, random_actor(env, seed), policy, (seed + num_episodes) % 2**31)
        limit = step_limit(env)
    finally:
        env.close()
    figures = measure(policy, played, wandered, dream_settings(agent), step_limit=limit, seed=seed)
    film = _film(agent, figures.traces)
    return DreamCheck(figures, policy.world_model.vae.obs_scale.flatten().numpy(), film)


def fresh_episodes(agent: Agent, num_episodes: int, seed: int) -> list[Episode]:
    """Fresh episodes of the exploring policy."""
    env = _vector_env(agent, num_episodes)
    try:
        return _play_as_policy(agent, env, seed)
    finally:
        env.close()


def _vector_env(agent: Agent, num_envs: int) -> VectorEnv:
    return make_vector_env(agent.vector_env, num_envs, agent.env_config)


def _play_as_policy(agent: Agent, env: VectorEnv, seed: int) -> list[Episode]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return play(env, policy_actor(agent.policy, env.num_envs, explore=True), agent.policy, seed)


def _film(agent: Agent, traces: Traces) -> np.ndarray | None:
    painter = make_painter(agent.env_id, agent.env_config, traces.real, len(traces.real))
    try:
        if isinstance(painter, TracePainter):
            return None
        times = np.linspace(0, len(traces.real) - 1, STRIP_FRAMES).round().astype(int)
        rows = (traces.real, traces.expected, traces.dreamed[0])
        blank = np.full_like(painter.paint(traces.real[:1]), 255)
        frames = [painter.paint(row[: t + 1]) if np.isfinite(row[t]).all() else blank for row in rows for t in times]
        frames = cut_height(frames)
        by_row = [frames[at : at + STRIP_FRAMES] for at in range(0, len(frames), STRIP_FRAMES)]
        return strip(by_row, ("real", "expected", "dreamed"), [f"step {t}" for t in times], STRIP_WIDTH)
    finally:
        painter.close()
