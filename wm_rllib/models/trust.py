"""Whether a dream can be trusted: open-loop error against standing still, calibration of ends, what latents stand for.

All of it on real experience, `judging.Windows`, that M was not fitted to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.models.judging import Windows, expected_path
from wm_rllib.models.mixture import draw_noise, sample_mixture
from wm_rllib.models.world_model import WorldModel

PROBABILITY_EDGES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the reliability table's rows: ends are rare, and ten rows of a tenth each would hold all steps in the first."""
NUM_DRAWS = 16
"""Next latents that M's probability of an end is averaged over."""
TRAVERSAL_SPREAD = 2.0
"""Standard deviations to either side that a latent is moved by."""


@dataclass(frozen=True)
class OpenLoop:
    """Root mean squared errors by steps ahead and dimension of the observation, in V's units of observations.

    Attributes:
        predicted: [H, O] of M's expectation under the real actions.
        still: [H, O] of saying that nothing changes.
        counts: [H] windows that reach so far; without any, errors are NaN.
    """

    predicted: Tensor
    still: Tensor
    counts: Tensor

    @property
    def relative(self) -> Tensor:
        """M's error over standing still's, all dimensions together, [H]; 1 is no better, NaN where nothing moved."""
        predicted, still = (error.square().sum(-1) for error in (self.predicted, self.still))
        return torch.where(still > 0, predicted / still, torch.full_like(still, math.nan)).sqrt()

    @property
    def steps_ahead(self) -> int:
        """Steps ahead up to which M is better than standing still at every step."""
        worse = ~(self.relative < 1.0)
        return int(worse.nonzero()[0]) if worse.any() else len(worse)

    @property
    def num_measured(self) -> int:
        """Steps ahead that any window reaches."""
        return int((self.counts > 0).sum())


@torch.no_grad()
def open_loop_errors(world_model: WorldModel, windows: Windows) -> OpenLoop:
    """How far M's expectation, fed back under the real actions, is from what happened; and how far the start is."""
    length, vae = windows.burn_in, world_model.vae
    z, _ = expected_path(world_model, windows)
    valid = windows.mask[:, length:]
    counts = valid.sum(0)
    real = vae.normalise(windows.observations[:, length:]).flatten(2)

    def error(guess: Tensor) -> Tensor:
        squared = torch.where(valid[..., None], (guess - real[:, 1:]).square(), torch.zeros(()))
        return (squared.sum(0) / counts[:, None]).sqrt()

    return OpenLoop(error(vae.normalise(vae.decode(z)).flatten(2)), error(real[:, :1]), counts)


@dataclass(frozen=True)
class Calibration:
    """Whether ends come as often as M says.

    Attributes:
        edges: Of the table's rows of probability.
        counts: Steps in each row.
        predicted: Mean probability of an end in each row; NaN without a step.
        seen: Share of steps in each row that were ends; NaN without a step.
        expected_ends: Ends that M expected on all steps together.
        seen_ends: Ends that there were.
    """

    edges: tuple[float, ...]
    counts: list[int]
    predicted: list[float]
    seen: list[float]
    expected_ends: float
    seen_ends: int

    @property
    def num_steps(self) -> int:
        """Steps that this rests on."""
        return sum(self.counts)

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of predicted and seen over the rows, by their steps (Guo 2017)."""
        rows = zip(self.counts, self.predicted, self.seen, strict=True)
        return sum(n * abs(p - s) for n, p, s in rows if n) / max(1, self.num_steps)


def calibrate(probabilities: Tensor, ended: Tensor, edges: tuple[float, ...] = PROBABILITY_EDGES) -> Calibration:
    """The reliability table of probabilities [N] against what happened, [N] bool."""
    probabilities = probabilities.double()
    row = torch.bucketize(probabilities, torch.tensor(edges[1:-1], dtype=torch.double), right=True)
    size = len(edges) - 1
    counts = torch.bincount(row, minlength=size)
    predicted = torch.bincount(row, probabilities, minlength=size) / counts
    seen = torch.bincount(row, ended.double(), minlength=size) / counts
    return Calibration(
        edges, counts.tolist(), predicted.tolist(), seen.tolist(), float(probabilities.sum()), int(ended.sum())
    )


@torch.no_grad()
def end_probabilities(world_model: WorldModel, windows: Windows, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """M's probability of an end at each real step, before it knows where the step leads; and whether it was one.

    That is what a dream does: it draws where the step leads, and asks whether that is an end. Draws come from torch's
    global generator.

    Returns:
        Probabilities [N] and ends [N] bool of all N steps after the burn-in that happened.
    """
    length, mdn_rnn = windows.burn_in, world_model.mdn_rnn
    z = world_model.vae.encode(windows.observations[:, length:])
    _, state = windows.start(world_model)
    actions = world_model.codec.encode(windows.actions[:, length:])
    hidden, _ = mdn_rnn.unroll(z[:, :-1], actions, state)
    valid = windows.mask[:, length:]
    now, action = z[:, :-1][valid], actions[valid]
    mixture = mdn_rnn.predict(hidden[valid], now, action)
    config = mdn_rnn.config
    total = torch.zeros(len(now), device=now.device)
    for _ in range(NUM_DRAWS):
        noise = draw_noise((len(now),), config.num_mixtures, config.latent_dim, mixture.joint, now.device)
        outcome = mdn_rnn.outcome_of(hidden[valid], now, action, sample_mixture(mixture, temperature, noise))
        total += outcome.termination_logit.sigmoid()
    return total / NUM_DRAWS, windows.terminateds[:, length:][valid]


@dataclass(frozen=True)
class Traversal:
    """What V says when one latent moves and the others stay at their mean.

    Attributes:
        offsets: [S], in standard deviations of the latent.
        spread: [Z], standard deviation of each latent over real observations.
        decoded: [Z, S, *O], in the environment's units.
    """

    offsets: Tensor
    spread: Tensor
    decoded: Tensor


@torch.no_grad()
def traverse(world_model: WorldModel, observations: Tensor, steps: int = 9) -> Traversal:
    """Moves each latent over its range on real observations [N, *O] (Higgins et al. 2017, figure 2)."""
    z = world_model.vae.encode(observations)
    mean, spread = z.mean(0), z.std(0, correction=0)
    offsets = torch.linspace(-TRAVERSAL_SPREAD, TRAVERSAL_SPREAD, steps, device=z.device)
    moved = torch.diag_embed(spread)[:, None, :] * offsets[None, :, None]  # [Z, S, Z]
    return Traversal(offsets, spread, world_model.vae.decode(mean + moved))
