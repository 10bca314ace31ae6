"""Imagination: trajectories of the policy inside the world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from wm_rllib.models.controller import Controller
from wm_rllib.models.cutting import Cuts, make_cutter
from wm_rllib.models.fused import FusedTransition, can_fuse
from wm_rllib.models.imagining import SMALLEST_UNIFORM, StepNoise, imagined_step
from wm_rllib.models.mdn_rnn import MDNRNN, State
from wm_rllib.models.mixture import MixtureNoise, draw_noise
from wm_rllib.models.stack import Stack, flat_layers
from wm_rllib.models.world_model import WorldModel

Policy = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Features [B, F] to (actions [B, ...] in policy space, their log-probabilities [B], distribution inputs [B, .])."""

MAX_BONUS = 5.0
"""Of a step: what is far away from all that is known is not worth more than what is just outside."""


@dataclass(frozen=True)
class Dream:
    """B lanes of H imagined transitions, every one of them valid.

    A lane whose dream terminates starts again from another start state at the next step, so that no arithmetic is spent
    on rows after a termination; a lane's last step is a truncation (contract 2).

    features [B, H, F]; actions [B, H, ...]; action_logp, rewards, terminateds [B, H]; action_dist_inputs [B, H, .];
    bootstrap_features [B, F]: what the policy would see after the last step.

    truncateds [B, H]: steps after which a dream was cut because M was unsure of them; the lane goes on from another
    start state, as after a termination. cut_features [N, F]: what the policy would have seen after each of the N cuts,
    lane by lane. Both None where dreams are not cut.
    """

    features: Tensor
    actions: Tensor
    action_logp: Tensor
    action_dist_inputs: Tensor
    rewards: Tensor
    terminateds: Tensor
    bootstrap_features: Tensor
    truncateds: Tensor | None = None
    cut_features: Tensor | None = None

    @property
    def num_cuts(self) -> int:
        """How many of them were cut because M was unsure."""
        return 0 if self.cut_features is None else len(self.cut_features)

    @property
    def num_segments(self) -> int:
        """How many separate imagined trajectories the lanes hold."""
        ends = self.terminateds if self.truncateds is None else self.terminateds | self.truncateds
        return ends.shape[0] + int(ends[:, :-1].sum())


@dataclass(frozen=True)
class DreamNoise:
    """All that is random in a dream, drawn before its first step.

    mixture: gumbel [H, B, .], normal [H, B, Z]; death_logit [H, B]: a step is terminal where M's logit of termination
    is above it; restart [H, B]: the start state that a lane goes on from after such a step; action [H, B, .], or None
    for a policy that draws its own.
    """

    mixture: MixtureNoise
    death_logit: Tensor
    restart: Tensor
    action: Tensor | None


def draw_dream_noise(world_model: WorldModel, policy: Policy, horizon: int, lanes: int) -> DreamNoise:
    """Noise for one dream, from torch's global generator."""
    config, device = world_model.config.mdn_rnn, world_model.device
    mixture = draw_noise((horizon, lanes), config.num_mixtures, config.latent_dim, config.mixture == "joint", device)
    # sigmoid(logit) > u, with the logarithms taken once for the whole dream.
    death_logit = torch.rand(horizon, lanes, device=device).clamp_(min=SMALLEST_UNIFORM).logit_()
    restart = torch.randint(lanes, (horizon, lanes), device=device)
    action = policy.sampler.draw((horizon, lanes), device) if isinstance(policy, Controller) else None
    return DreamNoise(mixture, death_logit, restart, action)


class Transition(Protocol):
    """All lanes in M, one step after the other."""

    @property
    def z(self) -> Tensor:
        """[B, Z]."""

    @property
    def h(self) -> Tensor:
        """[B, D]."""

    @property
    def action(self) -> Tensor:
        """[B, A], to be written before `advance`."""

    def advance(self, t: int, *, restarts: bool) -> None:
        """One step; lanes that end go on from a start state unless `restarts` is False."""

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """Rewards and terminateds of all steps so far, [B, H]."""

    def cuts(self) -> Cuts | None:
        """Where dreams were cut; None if they never are."""


class PlainTransition:
    """Steps by M's public methods, for an M that overrides them."""

    def __init__(
        self,
        world_model: WorldModel,
        start_z: Tensor,
        start_state: State,
        noise: DreamNoise,
        temperature: float,
        max_disagreement: float | None,
    ):
        self._mdn_rnn = world_model.mdn_rnn
        self._cutter = make_cutter(world_model.mdn_rnn, max_disagreement)
        self._start_z, self._start_state = start_z, start_state
        self._noise, self._temperature = noise, temperature
        self.z, self._state = start_z, start_state
        self.action = self._blank_action()
        self._rewards: list[Tensor] = []
        self._terminateds: list[Tensor] = []

    def _blank_action(self) -> Tensor:
        return self.z.new_empty(len(self.z), self._mdn_rnn.config.action_dim)

    @property
    def h(self) -> Tensor:
        """[B, D]."""
        return self._state[0]

    def advance(self, t: int, *, restarts: bool) -> None:
        """See `Transition`."""
        z, action, mixture = self.z, self.action, self._noise.mixture
        noise = StepNoise(MixtureNoise(mixture.gumbel[t], mixture.normal[t]), self._noise.death_logit[t])
        step = imagined_step(self._mdn_rnn, z, action, self._state, self._temperature, noise)
        next_z, state, terminated = step.z, step.state, step.terminated
        self._rewards.append(step.reward)
        self._terminateds.append(terminated)
        if restarts:
            ended = self._cutter.cut(z, action, terminated, next_z, state[0]) if self._cutter else terminated
            died, start = ended[:, None], self._noise.restart[t]
            next_z = torch.where(died, self._start_z[start], next_z)
            h, c = (torch.where(died, at[start], now) for at, now in zip(self._start_state, state, strict=True))
            state = h, c
        self.z, self._state, self.action = next_z, state, self._blank_action()

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """See `Transition`."""
        return torch.stack(self._rewards, 1), torch.stack(self._terminateds, 1)

    def cuts(self) -> Cuts | None:
        """See `Transition`."""
        return self._cutter.cuts() if self._cutter else None


class PlainActor:
    """Asks a policy at every step."""

    def __init__(self, policy: Policy, world_model: WorldModel):
        self._policy, self._codec = policy, world_model.codec
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def act(self, t: int, features: Tensor, out: Tensor) -> None:
        """Chooses actions on features [B, F] and writes them as M's input [B, A]."""
        row = self._policy(features)
        self._rows.append(row)
        self._codec.encode_into(row[0], out)

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B, H, ...], log-probabilities [B, H] and distribution inputs [B, H, .] of all steps so far."""
        actions, logp, inputs = (torch.stack(column, 1) for column in zip(*self._rows, strict=True))
        return actions, logp, inputs


class ControllerActor:
    """Runs a controller's network in place; log-probabilities are computed for all steps at once."""

    def __init__(self, controller: Controller, world_model: WorldModel, noise: Tensor, dtype: torch.dtype):
        self._codec = world_model.codec
        network, self._sampler, self._noise = controller.network, controller.sampler, noise
        rows = noise.shape[1]
        self._network = Stack(flat_layers(network), rows, dtype=dtype) if isinstance(network, nn.Module) else network
        self._inputs: list[Tensor] = []
        self._actions: list[Tensor] = []

    def act(self, t: int, features: Tensor, out: Tensor) -> None:
        """See `PlainActor`."""
        inputs = self._network(features).clone()
        actions = self._sampler.sample(inputs, self._noise[t])
        self._codec.encode_into(actions, out)
        self._inputs.append(inputs)
        self._actions.append(actions)

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `PlainActor`."""
        inputs, actions = torch.stack(self._inputs, 1), torch.stack(self._actions, 1)
        logp = self._sampler.logp(inputs.flatten(0, 1), actions.flatten(0, 1))
        return actions, logp.view(inputs.shape[:2]), inputs


def dream(
    world_model: WorldModel,
    policy: Policy,
    start_z: Tensor,
    start_state: State,
    horizon: int,
    temperature: float,
    max_disagreement: float | None = None,
    noise: DreamNoise | None = None,
    exploration_bonus: float = 0.0,
    optimism: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Dream:
    """Imagines `horizon` steps in each of B lanes, from start latents [B, Z] and states [B, D].

    Termination is sampled, not thresholded: a hard threshold at 0.5 would hide every rare end. All noise comes from
    torch's global generator, drawn before the loop, unless it is given. Nothing in the loop waits for the device.

    Args:
        world_model: V and M; an M of your own is stepped by its own methods.
        policy: C; fastest as a `Controller`.
        start_z: [B, Z].
        start_state: [B, D] each.
        horizon: H.
        temperature: tau of M's mixture.
        max_disagreement: A dream is cut after a step on which M's ensemble disagrees by more than this many times what
            is usual on real steps; None: never.
        noise: What `draw_dream_noise` returned.
        exploration_bonus: Reward for steps of which M is unsure; see `bonus`.
        optimism: How many standard deviations of M's ensemble above its expectation rewards are; see
            `MDNRNN.optimism`.
        dtype: What large products are computed in: float32, or bfloat16, whose three digits are less than what M gets
            wrong. The result is float32, and what is known of rewards and ends is not rounded. An M or a C of your own
            is not touched.
    """
    with torch.no_grad():
        noise = noise or draw_dream_noise(world_model, policy, horizon, len(start_z))
        # Made outside of inference mode: whoever gets the dream may compute gradients of what is made of it.
        features = start_z.new_empty(len(start_z), horizon, world_model.feature_dim)
        bootstrap = start_z.new_empty(len(start_z), world_model.feature_dim)
        transition = make_transition(world_model, start_z, start_state, noise, temperature, max_disagreement, dtype)
        actor = make_actor(policy, world_model, noise, dtype)
        # A user's own code may keep tensors that it meets, and want gradients of them later.
        ours = isinstance(transition, FusedTransition) and isinstance(actor, ControllerActor)
        with torch.inference_mode() if ours else torch.no_grad():
            for t in range(horizon):
                _write_features(transition, features[:, t])
                actor.act(t, features[:, t], transition.action)
                transition.advance(t, restarts=t + 1 < horizon)
            _write_features(transition, bootstrap)
        cuts = transition.cuts() if horizon > 1 else None  # the last step is a truncation in any case
        after = () if cuts is None else (cuts.truncateds, cuts.features[:, : world_model.feature_dim])
        actions, logp, inputs = actor.columns()
        rewards, terminateds = transition.outcomes()
        if exploration_bonus or optimism:
            rewards = rewards + bonus(world_model, features, actions, exploration_bonus, optimism)
        return Dream(features, actions, logp, inputs, rewards, terminateds, bootstrap, *after)


def bonus(
    world_model: WorldModel, features: Tensor, actions: Tensor, exploration_bonus: float, optimism: float
) -> Tensor:
    """What it is worth to try steps of which M is unsure, [B, H], in the environment's units.

    Of two things M may be unsure: of what a step leads to, and of what it brings. M's ensemble disagrees on the former
    by 1 at most, usually, on real steps; what exceeds that, up to `MAX_BONUS`, counts in units of the reward's scale.
    The latter has the units of rewards. As real steps come in, M becomes sure of both and the bonus goes (Pathak et al.
    2019; Sekar et al. 2020).

    Args:
        world_model: V and M.
        features: [B, H, F]; the latents come first in them.
        actions: [B, H, ...] in policy space.
        exploration_bonus: Weight of the former.
        optimism: Weight of the latter.
    """
    mdn_rnn = world_model.mdn_rnn
    z = features[..., : world_model.config.vae.latent_dim].flatten(0, 1)
    encoded = world_model.codec.encode(actions.flatten(0, 1))
    total = torch.zeros(len(z), device=z.device)
    if exploration_bonus:
        total += exploration_bonus * unsureness(mdn_rnn, z, encoded)
    if optimism:
        total += optimism * mdn_rnn.optimism(z, encoded)
    return total.view(features.shape[:2])


def unsureness(mdn_rnn: MDNRNN, z: Tensor, action: Tensor) -> Tensor:
    """How far M's ensemble disagrees beyond what is usual on real steps, [B], in units of the reward's scale.

    Args:
        mdn_rnn: M.
        z: [B, Z].
        action: [B, A], model input.
    """
    return mdn_rnn.reward_scale * (mdn_rnn.disagreement(z, action) - 1.0).clamp(0.0, MAX_BONUS)


def make_actor(
    policy: Policy, world_model: WorldModel, noise: DreamNoise, dtype: torch.dtype = torch.float32
) -> PlainActor | ControllerActor:
    """The fastest way to ask this C."""
    if isinstance(policy, Controller) and noise.action is not None:
        return ControllerActor(policy, world_model, noise.action, dtype)
    return PlainActor(policy, world_model)


def make_transition(
    world_model: WorldModel,
    start_z: Tensor,
    start_state: State,
    noise: DreamNoise,
    temperature: float,
    max_disagreement: float | None,
    dtype: torch.dtype = torch.float32,
) -> Transition:
    """The fastest way to step this M."""
    if not can_fuse(world_model.mdn_rnn):
        return PlainTransition(world_model, start_z, start_state, noise, temperature, max_disagreement)
    return FusedTransition(
        world_model.mdn_rnn,
        start_z,
        start_state,
        noise.mixture,
        temperature,
        noise.death_logit,
        noise.restart,
        make_cutter(world_model.mdn_rnn, max_disagreement),
        dtype,
    )


def _write_features(transition: Transition, out: Tensor) -> None:
    """C's input [B, F]: [z, h], or z alone, as `WorldModel.features` has it."""
    z = transition.z
    out[:, : z.shape[1]] = z
    if out.shape[1] > z.shape[1]:
        out[:, z.shape[1] :] = transition.h
