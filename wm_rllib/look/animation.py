"""Real beside dreamed, step by step, from the same start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from wm_rllib.environments.names import AnyEnv
from wm_rllib.look.acting import greedy_actions
from wm_rllib.look.frames import Painter, make_painter
from wm_rllib.look.pictures import PANEL_WIDTH, cut_height, shrink, side_by_side
from wm_rllib.models.stepping import Place, Stepper
from wm_rllib.runs.agents import Agent

TITLES = ("real", "dreamed, same actions", "dreamed, policy acts in it")


@dataclass(frozen=True)
class Track:
    """One way in which it went on from the start.

    Attributes:
        observations: [T + 1, *O], T being where it ended or the horizon.
        rewards: [T].
        ended: Whether it ended by itself.
    """

    observations: np.ndarray
    rewards: np.ndarray
    ended: bool


@dataclass(frozen=True)
class Tracks:
    """The real one, and two dreams of it."""

    real: Track
    same_actions: Track
    own_actions: Track

    @property
    def all(self) -> tuple[Track, Track, Track]:
        """In the order of `TITLES`."""
        return self.real, self.same_actions, self.own_actions


def make_tracks(agent: Agent, horizon: int, seed: int, temperature: float) -> Tracks:
    """Plays one real episode greedily, and dreams it twice from its first observation.

    Args:
        agent: The checkpoint.
        horizon: Steps, at most.
        seed: Of the environment's reset, and of the dreams.
        temperature: Of M's mixture.
    """
    env = agent.make_env()
    try:
        real, actions = _play(agent, env, horizon, seed)
    finally:
        env.close()  # type: ignore[no-untyped-call]
    start = torch.as_tensor(real.observations[:1])
    world_model = agent.policy.world_model
    with torch.no_grad():
        place = Place(world_model.vae.encode(start), agent.policy.initial_state(1))
    repeated, own = (Stepper(world_model, place, seed) for _ in range(2))
    own_actions = (greedy_actions(agent.policy, own.features) for _ in range(horizon))
    return Tracks(real, _dream(repeated, iter(actions), temperature), _dream(own, own_actions, temperature))


def _play(agent: Agent, env: AnyEnv, horizon: int, seed: int) -> tuple[Track, list[torch.Tensor]]:
    """The real track, and its actions [1, ...] in policy space."""
    policy, codec = agent.policy, agent.policy.world_model.codec
    observation, _ = env.reset(seed=seed)
    policy.reset()
    observations, terminated = [np.asarray(observation)], False
    rewards: list[float] = []
    actions: list[torch.Tensor] = []
    while len(rewards) < horizon:
        action = policy.compute_action(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(np.asarray(observation))
        rewards.append(float(reward))
        actions.append(torch.as_tensor(codec.env_to_policy(np.asarray(action)))[None])
        if terminated or truncated:
            break
    return Track(np.stack(observations), np.array(rewards), bool(terminated)), actions


def _dream(stepper: Stepper, actions: Iterator[torch.Tensor], temperature: float) -> Track:
    """Up to the first end, the last action, or where there is nothing left to draw."""
    observations, rewards, ended = [stepper.observations[0].numpy()], [], False
    for action in actions:
        step = stepper.step(action, temperature)
        observation = stepper.observations[0].numpy()
        if not np.isfinite(observation).all():  # M has left all that it knows
            break
        observations.append(observation)
        rewards.append(float(step.reward[0]))
        if step.terminated[0]:
            ended = True
            break
    return Track(np.stack(observations), np.array(rewards), ended)


def draw_tracks(agent: Agent, tracks: Tracks) -> list[np.ndarray]:
    """Frames of all three beside each other; one that has ended stands still."""
    length = max(len(track.rewards) for track in tracks.all)
    everything = np.concatenate([track.observations for track in tracks.all])
    painter = make_painter(agent.env_id, agent.env_config, everything, length)
    try:
        painted = [_paint(painter, track, t) for t in range(length + 1) for track in tracks.all]
    finally:
        painter.close()
    painted, width = cut_height(painted), len(TITLES)
    return [
        side_by_side(painted[width * t : width * (t + 1)], TITLES, [_caption(track, t) for track in tracks.all])
        for t in range(length + 1)
    ]


def _paint(painter: Painter, track: Track, t: int) -> np.ndarray:
    return shrink(painter.paint(track.observations[: min(t, len(track.rewards)) + 1]), PANEL_WIDTH)


def _caption(track: Track, t: int) -> str:
    step = min(t, len(track.rewards))
    over = " - ended" if track.ended and step == len(track.rewards) else ""
    return f"step {step}, reward {track.rewards[:step].sum():.1f}{over}"
