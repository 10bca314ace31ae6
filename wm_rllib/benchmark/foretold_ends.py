"""Whether M knows when episodes end, on episodes that it never saw: a dream is worth no more than its dangers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.look.episodes import Episode
from wm_rllib.models.imagining import draw_step_noise
from wm_rllib.models.mixture import sample_mixture
from wm_rllib.models.world_model import WorldModel

NUM_DRAWS = 8
"""Of each next latent, as a dream draws one."""


@dataclass(frozen=True)
class ForetoldEnds:
    """What M said of the ends of some episodes, step by step, before they came.

    Attributes:
        steps: Real steps.
        seen: Episodes that ended by themselves.
        foretold: M's probabilities of an end, summed over all steps; those of a calibrated M are as many as were seen.
        cross_entropy: Nats a step.
        of_the_rate: The same of who knows nothing but how often ends come.
    """

    steps: int
    seen: int
    foretold: float
    cross_entropy: float
    of_the_rate: float

    def __str__(self) -> str:
        """All of it in a line."""
        return (
            f"ends in {self.steps:,} steps: {self.seen} came, M's probabilities add up to {self.foretold:.1f}; "
            f"cross-entropy {self.cross_entropy:.4f} nats a step, {self.of_the_rate:.4f} by how often they come alone"
        )


def foretold_ends(world_model: WorldModel, episodes: Sequence[Episode]) -> ForetoldEnds:
    """How M foretells the ends of episodes, from their beginnings on and under the real actions.

    Args:
        world_model: V and M.
        episodes: None that M was fitted to.
    """
    steps = sum(map(len, episodes))
    seen = sum(episode.terminated for episode in episodes)
    foretold = lost = 0.0
    for episode in episodes:
        probabilities = end_probabilities(world_model, episode).double().clamp(1e-12, 1.0 - 1e-12)
        foretold += float(probabilities.sum())
        likelihoods = 1.0 - probabilities
        if episode.terminated:
            likelihoods[-1] = probabilities[-1]
        lost -= float(likelihoods.log().sum())
    return ForetoldEnds(steps, seen, foretold, lost / steps, _entropy(seen / steps))


@torch.no_grad()
def end_probabilities(world_model: WorldModel, episode: Episode) -> Tensor:
    """M's probability [T] that each step of a real episode ends it, averaged over draws of what comes next."""
    mdn_rnn = world_model.mdn_rnn
    z = world_model.vae.encode(torch.as_tensor(episode.observations[:-1]))
    actions = world_model.codec.encode(torch.as_tensor(episode.actions))
    hidden = mdn_rnn.unroll(z.unsqueeze(0), actions.unsqueeze(0))[0].squeeze(0)
    predicted = mdn_rnn.predict(hidden, z, actions)
    total = torch.zeros(len(z))
    for _ in range(NUM_DRAWS):
        drawn = sample_mixture(predicted, 1.0, draw_step_noise(mdn_rnn, len(z)).mixture)
        total += mdn_rnn.outcome_of(hidden, z, actions, drawn).termination_logit.sigmoid()
    return total / NUM_DRAWS


def _entropy(rate: float) -> float:
    """Of an event with this probability, in nats."""
    return -sum(p * math.log(p) for p in (rate, 1.0 - rate) if p > 0.0)
