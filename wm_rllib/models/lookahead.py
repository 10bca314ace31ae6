"""What plans lead to inside the world model: the return that M, and a value at the horizon, promise each of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wm_rllib.models.fused import Cell, EndsHead, Lanes, MixtureHead, can_fuse, outcome_layers
from wm_rllib.models.mdn_rnn import MDNRNN, TERMINATION, State
from wm_rllib.models.mixture import MixtureNoise, draw_noise, sample_mixture
from wm_rllib.models.outcome import Outcome
from wm_rllib.models.stack import Stack

Values = Callable[[Tensor, Tensor], Tensor]
"""Latents [B, Z] and hidden states [B, D] to the returns [B] that are expected from there on."""


@dataclass(frozen=True)
class Forecast:
    """What N plans in each of B rows are expected to bring, means over the particles.

    Attributes:
        returns: [B, N], discounted, with what the value promises after the horizon.
        rewards: [B, N, H], each weighted by the probability that the episode has not ended before.
        survival: [B, N, H], the probability that the episode goes on after each step.
    """

    returns: Tensor
    rewards: Tensor
    survival: Tensor


def discounted(outcome: Outcome, last_values: Tensor | None, discount: float) -> Forecast:
    """The forecast of R runs through M, [R] and [R, H].

    An episode that ends brings nothing more, neither rewards nor the value at the horizon. Ends are not sampled: each
    step counts with the probability that it is reached, which costs no variance and keeps every run whole.

    Args:
        outcome: Of each step, fields [H, R].
        last_values: At the horizon [R]; None: nothing is expected from there on.
        discount: gamma.
    """
    survival = torch.sigmoid(-outcome.termination_logit).cumprod(0)
    reached = torch.cat([torch.ones_like(survival[:1]), survival[:-1]])
    rewards = reached * outcome.expected_reward()
    powers = discount ** torch.arange(len(rewards) + 1, device=rewards.device, dtype=rewards.dtype)
    returns = powers[:-1] @ rewards
    if last_values is not None:
        returns = returns + powers[-1] * survival[-1] * last_values
    return Forecast(returns, rewards.t(), survival.t())


class Simulation(Protocol):
    """R runs through M, side by side."""

    def __call__(self, z: Tensor, state: State, actions: Tensor, noise: MixtureNoise) -> tuple[Outcome, Tensor, Tensor]:
        """Takes actions one after the other.

        Args:
            z: [R, Z].
            state: [R, D] each.
            actions: [H, R, A], M's input.
            noise: gumbel [H, R, .] and normal [H, R, Z], the temperature included.

        Returns:
            The outcome of each step, fields [H, R]; the last z [R, Z] and h [R, D], valid until the next call.
        """


class PlainSimulation:
    """By M's public methods, for an M that overrides them."""

    def __init__(self, mdn_rnn: MDNRNN):
        self._mdn_rnn = mdn_rnn

    def __call__(self, z: Tensor, state: State, actions: Tensor, noise: MixtureNoise) -> tuple[Outcome, Tensor, Tensor]:
        """See `Simulation`."""
        mdn_rnn, outcomes = self._mdn_rnn, []
        for action, gumbel, normal in zip(actions, noise.gumbel, noise.normal, strict=True):
            state = mdn_rnn.step(z, action, state)
            next_z = sample_mixture(mdn_rnn.predict(state[0], z, action), 1.0, MixtureNoise(gumbel, normal))
            outcomes.append(mdn_rnn.outcome_of(state[0], z, action, next_z))
            z = next_z
        return _stacked(outcomes), z, state[0]


class FusedSimulation:
    """MDNRNN's own steps, in place (`wm_rllib.models.fused`); its weights are copied once for all calls.

    Args:
        mdn_rnn: One that `can_fuse` accepts.
        rows: R.
        horizon: H.
    """

    def __init__(self, mdn_rnn: MDNRNN, rows: int, horizon: int):
        self._mdn_rnn = mdn_rnn
        state = mdn_rnn.initial_state(rows)
        self._lanes = Lanes(mdn_rnn, state[0].new_zeros(rows, mdn_rnn.config.latent_dim), state)
        # The outcome head sees all steps at once: nothing in them depends on what it says.
        self._transitions = state[0].new_empty(horizon, *self._lanes.outcome_input.shape)
        self._cell = Cell(mdn_rnn.lstm, rows)
        self._head = MixtureHead(mdn_rnn, rows)
        with _untouched_generators(mdn_rnn):  # new layers draw weights, though theirs are overwritten
            self._outcome = Stack(outcome_layers(mdn_rnn), horizon * rows)
        self._ends = EndsHead(mdn_rnn, rows)
        self._end_logits = state[0].new_empty(horizon, rows)

    def __call__(self, z: Tensor, state: State, actions: Tensor, noise: MixtureNoise) -> tuple[Outcome, Tensor, Tensor]:
        """See `Simulation`."""
        lanes = self._lanes
        lanes.z.copy_(z)
        lanes.h.copy_(state[0])
        lanes.c.copy_(state[1])
        for t, transition in enumerate(self._transitions):
            lanes.action.copy_(actions[t])
            self._cell(lanes.step_input, lanes.h, lanes.c)
            self._head.sample(lanes.step_input, noise.gumbel[t], noise.normal[t], lanes.z, lanes.next_z)
            self._ends.write(lanes.step_input, self._end_logits[t])
            transition.copy_(lanes.outcome_input)
            lanes.z.copy_(lanes.next_z)
        outcome = self._outcome(self._transitions.flatten(0, 1)).view(*self._transitions.shape[:2], -1)
        if self._ends.is_there:
            outcome[..., TERMINATION] = self._end_logits
        return self._mdn_rnn.decode_outcome(outcome), lanes.z, lanes.h


class Lookahead:
    """Judges plans by running them through M.

    All plans of a call meet the same noise, so that they differ by what they do and not by their luck.

    Args:
        mdn_rnn: M; a stock one is copied, so build a new lookahead when its weights have changed.
        values: What is expected at the horizon; None: nothing.
        discount: gamma.
        num_particles: P, runs of each plan with other noise.
        temperature: tau of M's mixture; 0 takes the mean of its most probable component.
    """

    def __init__(
        self, mdn_rnn: MDNRNN, values: Values | None, *, discount: float, num_particles: int, temperature: float
    ):
        self._mdn_rnn, self._values = mdn_rnn, values
        self._discount, self._num_particles, self._temperature = discount, num_particles, temperature
        self._fused = can_fuse(mdn_rnn)
        self._simulations: dict[tuple[int, int], Simulation] = {}

    def __call__(self, z: Tensor, state: State, plans: Tensor, generator: torch.Generator) -> Forecast:
        """The forecast for plans [B, N, H, A] from z [B, Z] and state [B, D] each."""
        batch, candidates, horizon, _ = plans.shape
        copies = candidates * self._num_particles
        runs = plans.permute(2, 0, 1, 3).unsqueeze(3).expand(-1, -1, -1, self._num_particles, -1)
        # A user's own M may keep tensors that it meets, and want gradients of them later.
        with torch.inference_mode() if self._fused else torch.no_grad():
            start_z, *start_state = (x.repeat_interleave(copies, 0) for x in (z, *state))
            noise = self._noise(horizon, batch * candidates, generator)
            simulate = self._simulation(batch * copies, horizon)
            outcome, last_z, last_h = simulate(start_z, (start_state[0], start_state[1]), runs.flatten(1, 3), noise)
            values = None if self._values is None else self._values(last_z, last_h)
            forecast = discounted(outcome, values, self._discount)
        shape = (batch, candidates, self._num_particles)
        parts = (forecast.returns, forecast.rewards, forecast.survival)
        return Forecast(*(x.reshape(*shape, *x.shape[1:]).mean(2) for x in parts))

    def _noise(self, horizon: int, repeats: int, generator: torch.Generator) -> MixtureNoise:
        config = self._mdn_rnn.config
        shape, joint = (horizon, self._num_particles), config.mixture == "joint"
        device = self._mdn_rnn.reward_mean.device
        noise = draw_noise(shape, config.num_mixtures, config.latent_dim, joint, device, generator)
        scaled = self._temperature * noise.gumbel, math.sqrt(self._temperature) * noise.normal
        return MixtureNoise(*(x.repeat(1, repeats, *[1] * (x.ndim - 2)) for x in scaled))

    def _simulation(self, rows: int, horizon: int) -> Simulation:
        if not self._fused:
            return PlainSimulation(self._mdn_rnn)
        size = rows, horizon
        if size not in self._simulations:
            self._simulations[size] = FusedSimulation(self._mdn_rnn, *size)
        return self._simulations[size]


def _stacked(outcomes: list[Outcome]) -> Outcome:
    lasts = [outcome.last_reward for outcome in outcomes if outcome.last_reward is not None]
    return Outcome(
        torch.stack([outcome.reward for outcome in outcomes]),
        torch.stack([outcome.termination_logit for outcome in outcomes]),
        torch.stack(lasts) if lasts else None,
    )


def _untouched_generators(mdn_rnn: MDNRNN) -> contextlib.AbstractContextManager[None]:
    device = mdn_rnn.reward_mean.device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
