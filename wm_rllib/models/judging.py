"""How far M can be trusted: open-loop error on real episodes it was not fitted to, dreamed against real returns.

Both start at the same real states, with h from the real steps before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.models.dreaming import Dream
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel

SMALLEST_VARIANCE = torch.tensor(1e-4)
"""Of a dimension, in normalised units: what varies less is constant, and its noise need not be explained."""


@dataclass(frozen=True)
class Windows:
    """N stretches of real experience, each within one episode: L steps of burn-in and up to H steps after them.

    burn_in is L; observations [N, L + H + 1, *O]; actions [N, L + H, ...] in policy space; rewards, terminateds and
    mask [N, L + H].
    Padding of the burn-in comes first, padding of the H steps last, so that step L is real in every row.
    """

    burn_in: int
    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminateds: Tensor
    mask: Tensor

    @property
    def horizon(self) -> int:
        """H."""
        return self.mask.shape[1] - self.burn_in

    def first(self, horizon: int) -> Windows:
        """The same windows, no longer than this after their burn-in."""
        stop = self.burn_in + horizon
        columns = (self.actions, self.rewards, self.terminateds, self.mask)
        return Windows(self.burn_in, self.observations[:, : stop + 1], *(column[:, :stop] for column in columns))

    def start(self, world_model: WorldModel) -> tuple[Tensor, State]:
        """Z [N, Z] and the state at step L, from the burn-in."""
        length = self.burn_in
        return world_model.burn_in(self.observations[:, : length + 1], self.actions[:, :length], self.mask[:, :length])


@dataclass(frozen=True)
class Skill:
    """Share of the variance that M explains, 1 - error / variance, by steps ahead, [H] each.

    1 is perfect, 0 no better than the mean. NaN where no window is long enough.
    """

    observation: Tensor
    reward: Tensor


@torch.no_grad()
def open_loop_skill(world_model: WorldModel, windows: Windows) -> Skill:
    """How well M's expected next latents, fed back for H steps under the real actions, predict what happened.

    Errors are squared, in the units of V's input and of the reward head, and summed over windows and dimensions.
    """
    length, vae = windows.burn_in, world_model.vae
    z, rewards = expected_path(world_model, windows)
    valid = windows.mask[:, length:]
    real = vae.normalise(windows.observations[:, length + 1 :]).flatten(2)
    predicted = vae.normalise(vae.decode(z)).flatten(2)
    units = world_model.mdn_rnn.reward_scale
    real_rewards = windows.rewards[:, length:, None] / units
    # A reward that hardly varies is not worth more precision than a tenth of its size.
    reward_floor = torch.maximum(0.01 * real_rewards[valid].square().mean(), SMALLEST_VARIANCE)
    return Skill(
        observation=_explained(predicted, real, valid, SMALLEST_VARIANCE * real.shape[-1]),
        reward=_explained(rewards[..., None] / units, real_rewards, valid, reward_floor),
    )


def _explained(predicted: Tensor, real: Tensor, valid: Tensor, least_variance: Tensor) -> Tensor:
    """Share of the variance of real [N, H, .] over all valid [N, H] steps that is explained, by steps ahead [H]."""
    variance = real[valid].var(0, correction=0).sum()
    error = torch.where(valid, (predicted - real).square().sum(-1), torch.zeros(())).sum(0) / valid.sum(0)
    return 1.0 - error / torch.maximum(variance, least_variance)


def expected_path(world_model: WorldModel, windows: Windows) -> tuple[Tensor, Tensor]:
    """Expected latents [N, H, Z] of steps 1 .. H, and expected rewards [N, H]."""
    mdn_rnn, length = world_model.mdn_rnn, windows.burn_in
    z, state = windows.start(world_model)
    actions = world_model.codec.encode(windows.actions[:, length:])
    path, rewards = [], []
    for t in range(windows.horizon):
        state = mdn_rnn.step(z, actions[:, t], state)
        next_z = mdn_rnn.predict(state[0], z, actions[:, t]).expectation()
        outcome = mdn_rnn.outcome_of(state[0], z, actions[:, t], next_z)
        rewards.append(outcome.expected_reward())
        path.append(next_z)
        z = next_z
    return torch.stack(path, 1), torch.stack(rewards, 1)


@torch.no_grad()
def real_returns(world_model: WorldModel, windows: Windows, values: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """Discounted returns [N] of the up to H real steps, with the critic's value after them unless they terminate."""
    length = windows.burn_in
    z = world_model.vae.encode(windows.observations[:, length:])
    _, state = windows.start(world_model)
    actions = world_model.codec.encode(windows.actions[:, length:])
    hidden, _ = world_model.mdn_rnn.unroll(z[:, :-1], actions, state)
    valid, ended = windows.mask[:, length:], windows.terminateds[:, length:].any(1)
    steps, rows = valid.sum(1), torch.arange(len(z), device=z.device)
    end_values = values(world_model.features(z[rows, steps], hidden[rows, steps - 1]))
    returns = discounted(torch.where(valid, windows.rewards[:, length:], torch.zeros(())), gamma)
    return returns + torch.where(ended, torch.zeros(()), gamma**steps * end_values)


def dreamed_returns(dream: Dream, values: Callable[[Tensor], Tensor], gamma: float, reach: Tensor) -> Tensor:
    """Discounted returns [N] of each lane up to its first termination, with the critic's value if none comes in time.

    Args:
        dream: N lanes of H steps, none of them cut.
        values: The critic, of features.
        gamma: Discount.
        reach: [N], steps of each lane that count, 1 to H: as many as there would be real ones if no episode ended. To
            compare only windows that are whole or end would be to compare mostly those that end.
    """
    lanes, horizon = dream.rewards.shape
    ended = dream.terminateds.cumsum(1)
    in_time = torch.arange(horizon, device=reach.device) < reach[:, None]
    counts = in_time & ((ended - dream.terminateds.long()) == 0)
    returns = discounted(torch.where(counts, dream.rewards, torch.zeros(())), gamma)
    rows = torch.arange(lanes, device=reach.device)
    after = torch.cat([dream.features, dream.bootstrap_features[:, None]], 1)[rows, reach]
    survives = ended[rows, reach - 1] == 0
    return returns + torch.where(survives, gamma**reach * values(after), torch.zeros(()))


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """sum_k gamma^k r_k of rewards [N, H]; returns [N]."""
    return rewards @ gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
