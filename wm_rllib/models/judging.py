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

    def start(self, world_model: WorldModel) -> tuple[Tensor, State]:
        """Z [N, Z] and the state at step L, from the burn-in."""
        length = self.burn_in
        return world_model.burn_in(self.observations[:, : length + 1], self.actions[:, :length], self.mask[:, :length])


@dataclass(frozen=True)
class Skill:
    """1 - error / error of the better of two trivial predictions, by steps ahead, [H] each; 1 is perfect, 0 useless.

    Observations are compared with "nothing changes" and "the mean"; rewards with their mean. NaN where no window is
    long enough; a reward that never varies has skill 1 if it is predicted.
    """

    observation: Tensor
    reward: Tensor


@torch.no_grad()
def open_loop_skill(world_model: WorldModel, windows: Windows) -> Skill:
    """M's expected next latents, fed back for H steps under the real actions, against what happened.

    Errors are squared, in the units of V's input and of the reward head, and summed over windows and dimensions.
    """
    length, vae = windows.burn_in, world_model.vae
    z, rewards = _expected_path(world_model, windows)
    valid = windows.mask[:, length:]
    real = vae.normalise(windows.observations[:, length:]).flatten(2)
    predicted = vae.normalise(vae.decode(z)).flatten(2)
    units = world_model.mdn_rnn.reward_scale
    real_rewards = windows.rewards[:, length:] / units
    mean_reward = real_rewards[valid].mean()

    def error(values: Tensor) -> Tensor:
        """Sum over windows, by steps ahead."""
        return torch.where(valid, values, torch.zeros_like(values)).sum(0)

    trivial = torch.minimum(error((real[:, :1] - real[:, 1:]).square().sum(-1)), error(real[:, 1:].square().sum(-1)))
    return Skill(
        observation=_skill(error((predicted - real[:, 1:]).square().sum(-1)), trivial, valid),
        reward=_skill(
            error((rewards / units - real_rewards).square()), error((real_rewards - mean_reward).square()), valid
        ),
    )


SMALLEST_ERROR = 1e-4
"""Squared error, in normalised units, below which a prediction counts as perfect: nothing can be gained there."""


def _skill(error: Tensor, trivial: Tensor, valid: Tensor) -> Tensor:
    floor = SMALLEST_ERROR * valid.sum(0)
    skill = 1.0 - error / torch.maximum(trivial, floor)
    return torch.where(valid.any(0), skill, torch.full_like(skill, torch.nan))


def _expected_path(world_model: WorldModel, windows: Windows) -> tuple[Tensor, Tensor]:
    """Expected latents [N, H, Z] of steps 1 .. H, and expected rewards [N, H]."""
    mdn_rnn, length = world_model.mdn_rnn, windows.burn_in
    z, state = windows.start(world_model)
    actions = world_model.codec.encode(windows.actions[:, length:])
    path, rewards = [], []
    for t in range(windows.horizon):
        state = mdn_rnn.step(z, actions[:, t], state)
        next_z = mdn_rnn.predict(state[0], z, actions[:, t]).expectation()
        outcome = mdn_rnn.outcome(z, actions[:, t], next_z)
        rewards.append(outcome.expected_reward())
        path.append(next_z)
        z = next_z
    return torch.stack(path, 1), torch.stack(rewards, 1)


@torch.no_grad()
def real_returns(world_model: WorldModel, windows: Windows, values: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """Discounted returns [N] of the H real steps, with the critic's value after them unless they terminate.

    Rows that neither terminate nor last H steps are NaN: there is nothing to compare a dream of H steps with.
    """
    length = windows.burn_in
    z = world_model.vae.encode(windows.observations[:, length:])
    _, state = windows.start(world_model)
    actions = world_model.codec.encode(windows.actions[:, length:])
    _, (h, _) = world_model.mdn_rnn.unroll(z[:, :-1], actions, state)
    valid, ended = windows.mask[:, length:], windows.terminateds[:, length:].any(1)
    end_values = values(world_model.features(z[:, -1], h))
    returns = discounted(torch.where(valid, windows.rewards[:, length:], torch.zeros(())), gamma)
    returns = returns + torch.where(ended, torch.zeros(()), gamma**windows.horizon * end_values)
    return torch.where(valid.all(1) | ended, returns, torch.full_like(returns, torch.nan))


def dreamed_returns(dream: Dream, values: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """Discounted returns [N] of each lane up to its first termination, with the critic's value after H steps."""
    ended = dream.terminateds.cumsum(1)
    counts = (ended - dream.terminateds.long()) == 0
    returns = discounted(torch.where(counts, dream.rewards, torch.zeros(())), gamma)
    survives = ended[:, -1] == 0
    horizon = dream.rewards.shape[1]
    return returns + torch.where(survives, gamma**horizon * values(dream.bootstrap_features), torch.zeros(()))


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """sum_k gamma^k r_k of rewards [N, H]; returns [N]."""
    return rewards @ gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
