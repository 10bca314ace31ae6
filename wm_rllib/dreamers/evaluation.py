"""What an agent is worth in its own dream: whole episodes from real first observations, until the dream ends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wm_rllib.acting.evaluation import EvaluationResult
from wm_rllib.acting.imagination import check_dream_settings, seeded, start_states
from wm_rllib.models.imagining import draw_step_noise, imagined_step

if TYPE_CHECKING:
    from wm_rllib.acting.policy import WorldModelPolicy

DEFAULT_MAX_STEPS = 1000
"""Of a dream whose environment sets no limit: M may say for ever that nothing ends."""


@dataclass(frozen=True)
class DreamScore(EvaluationResult):
    """Undiscounted returns and lengths (steps) of N dreamed episodes.

    Attributes:
        returns: [N], as M's outcome head has them: neither bonus nor optimism is in them.
        lengths: [N].
        num_unfinished: Dreams that went on at the limit: their survival is longer than it was measured.
    """

    num_unfinished: int


@torch.no_grad()
def evaluate_in_dream(
    policy: WorldModelPolicy,
    first_observations: np.ndarray,
    *,
    temperature: float,
    max_steps: int,
    explore: bool = False,
    seed: int | None = None,
) -> DreamScore:
    """Dreams an episode from each first observation, all of them side by side.

    Args:
        policy: V, M and C.
        first_observations: [N, *O], those of episodes: h is 0 there.
        temperature: tau of M's mixture.
        max_steps: Steps after which a dream is given up.
        explore: Whether C's actions are sampled, as in training, or greedy.
        seed: Makes the result reproducible and leaves torch's global generator alone; None draws from that.

    Raises:
        ValueError: A shape or a number does not fit.
    """
    check_dream_settings(max_steps, temperature)
    model = policy.world_model
    z, state = start_states(model, first_observations)
    lanes = len(z)
    returns, lengths = torch.zeros(lanes, dtype=torch.float64), torch.zeros(lanes, dtype=torch.long)
    playing = torch.ones(lanes, dtype=torch.bool)
    with seeded(seed):
        for _ in range(max_steps):
            action = model.codec.encode(policy.choose(z, state[0], explore))
            step = imagined_step(model.mdn_rnn, z, action, state, temperature, draw_step_noise(model.mdn_rnn, lanes))
            # A lane whose dream has ended goes on, and nothing of that counts.
            returns += torch.where(playing, step.reward, torch.zeros(()))
            lengths += playing
            playing &= ~step.terminated
            if not playing.any():
                break
            z, state = step.z, step.state
    return DreamScore(returns.tolist(), lengths.tolist(), int(playing.sum()))


def dream_step_limit(configured: int | None, make_env: Callable[[], Any]) -> int:
    """Longest dreamed episode: as configured, else as the environment limits its own, else `DEFAULT_MAX_STEPS`.

    Args:
        configured: `evaluation_max_dream_steps`.
        make_env: Makes the environment, to look at its time limit; one that cannot be made here has none.
    """
    if configured is not None:
        return configured
    try:
        env = make_env()
    except Exception:  # a head node may lack its packages
        return DEFAULT_MAX_STEPS
    try:
        return getattr(getattr(env, "spec", None), "max_episode_steps", None) or DEFAULT_MAX_STEPS
    finally:
        env.close()
