"""Imagined trajectories as they are: one step of M by its public methods, and lanes of such steps.

`wm_rllib.models.dreaming` makes training data, as fast as it can; this makes trajectories to look at, to plan with and
to play in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.models.mdn_rnn import MDNRNN, State
from wm_rllib.models.mixture import MixtureNoise, draw_noise, sample_mixture
from wm_rllib.models.world_model import WorldModel

Act = Callable[[int, Tensor, Tensor], Tensor]
"""Policy-space actions a_t [B, ...] of t, z_t [B, Z] and h_t [B, D]."""

SMALLEST_UNIFORM = 2.0**-25
"""Below every positive number that torch.rand draws; its logit is finite."""


@dataclass(frozen=True)
class StepNoise:
    """All that is random in one step of B lanes.

    mixture: gumbel [B, .], normal [B, Z]; death_logit [B]: the step is terminal where M's logit of termination is above
    it.
    """

    mixture: MixtureNoise
    death_logit: Tensor


@dataclass(frozen=True)
class ImaginedStep:
    """What one step of B lanes led to.

    z [B, Z] and state [B, D] each, after the step; reward, terminated (sampled) and termination_prob [B].
    """

    z: Tensor
    state: State
    reward: Tensor
    terminated: Tensor
    termination_prob: Tensor


@dataclass(frozen=True)
class Imagined:
    """B lanes of H imagined transitions; a lane goes on after a sampled termination.

    latents [B, H + 1, Z] and hidden_states [B, H + 1, D]: the action at t was chosen on those at t. actions [B, H, ...]
    in policy space; rewards, terminateds and termination_probs [B, H] of the transition from t to t + 1.
    """

    latents: Tensor
    hidden_states: Tensor
    actions: Tensor
    rewards: Tensor
    terminateds: Tensor
    termination_probs: Tensor

    @property
    def valid(self) -> Tensor:
        """[B, H] bool: transitions up to a lane's first termination, and that one too."""
        return self.terminateds.cumsum(1) - self.terminateds.long() == 0


def draw_step_noise(mdn_rnn: MDNRNN, lanes: int, generator: torch.Generator | None = None) -> StepNoise:
    """Noise of one step, from torch's global generator unless one is given."""
    config, device = mdn_rnn.config, mdn_rnn.reward_mean.device
    joint = config.mixture == "joint"
    mixture = draw_noise((lanes,), config.num_mixtures, config.latent_dim, joint, device, generator)
    uniform = torch.rand(lanes, device=device, generator=generator)
    return StepNoise(mixture, uniform.clamp_(min=SMALLEST_UNIFORM).logit_())


def imagined_step(
    mdn_rnn: MDNRNN, z: Tensor, action: Tensor, state: State, temperature: float, noise: StepNoise
) -> ImaginedStep:
    """One step of all lanes; termination is sampled, and the reward is the one for that case.

    Args:
        mdn_rnn: M.
        z: [B, Z].
        action: [B, A], model input.
        state: [B, D] each.
        temperature: tau of M's mixture.
        noise: What `draw_step_noise` returned.
    """
    next_state = mdn_rnn.step(z, action, state)
    next_z = sample_mixture(mdn_rnn.predict(next_state[0], z, action), temperature, noise.mixture)
    outcome = mdn_rnn.outcome_of(next_state[0], z, action, next_z)
    terminated = outcome.termination_logit > noise.death_logit
    return ImaginedStep(
        next_z, next_state, outcome.reward_if(terminated), terminated, torch.sigmoid(outcome.termination_logit)
    )


@torch.no_grad()
def imagine(world_model: WorldModel, act: Act, z: Tensor, state: State, horizon: int, temperature: float) -> Imagined:
    """Imagines H steps in each of B lanes, with noise from torch's global generator.

    Args:
        world_model: V and M.
        act: Chooses the actions.
        z: Start latents [B, Z].
        state: Start states, [B, D] each.
        horizon: H, at least 1.
        temperature: tau of M's mixture.
    """
    mdn_rnn = world_model.mdn_rnn
    latents, hidden, actions, steps = [z], [state[0]], [], []
    for t in range(horizon):
        actions.append(act(t, z, state[0]))
        noise = draw_step_noise(mdn_rnn, len(z))
        step = imagined_step(mdn_rnn, z, world_model.codec.encode(actions[-1]), state, temperature, noise)
        steps.append(step)
        z, state = step.z, step.state
        latents.append(z)
        hidden.append(state[0])
    return Imagined(
        torch.stack(latents, 1),
        torch.stack(hidden, 1),
        torch.stack(actions, 1),
        torch.stack([step.reward for step in steps], 1),
        torch.stack([step.terminated for step in steps], 1),
        torch.stack([step.termination_prob for step in steps], 1),
    )
