"""Imagination: trajectories of the policy inside the world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.mixture import MixtureNoise, draw_noise, sample_mixture
from wm_rllib.models.world_model import WorldModel

Policy = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Features [B, F] to (actions [B, ...] in policy space, their log-probabilities [B], distribution inputs [B, .])."""


@dataclass(frozen=True)
class Dream:
    """B lanes of H imagined transitions, every one of them valid.

    A lane whose dream terminates starts again from another start state at the next step, so that no arithmetic is spent
    on rows after a termination; a lane's last step is a truncation (contract 2).

    features [B, H, F]; actions [B, H, ...]; action_logp, rewards, terminateds [B, H]; action_dist_inputs [B, H, .];
    bootstrap_features [B, F]: what the policy would see after the last step.
    """

    features: Tensor
    actions: Tensor
    action_logp: Tensor
    action_dist_inputs: Tensor
    rewards: Tensor
    terminateds: Tensor
    bootstrap_features: Tensor

    @property
    def num_segments(self) -> int:
        """How many separate imagined trajectories the lanes hold."""
        return self.terminateds.shape[0] + int(self.terminateds[:, :-1].sum())


@torch.no_grad()
def dream(
    world_model: WorldModel, policy: Policy, start_z: Tensor, start_state: State, horizon: int, temperature: float
) -> Dream:
    """Imagines `horizon` steps in each of B lanes, from start latents [B, Z] and states [B, D].

    Termination is sampled, not thresholded: a hard threshold at 0.5 would hide every rare end. All noise comes from
    torch's global generator, drawn before the loop.
    """
    config = world_model.config.mdn_rnn
    lanes, device = start_z.shape[0], start_z.device
    noise = draw_noise((horizon, lanes), config.num_mixtures, config.latent_dim, config.mixture == "joint", device)
    death = torch.rand(horizon, lanes, device=device)
    restart = torch.randint(lanes, (horizon, lanes), device=device)
    rows: list[tuple[Tensor, ...]] = []
    z, state = start_z, start_state
    features = world_model.features(z, state[0])
    for t in range(horizon):
        actions, logp, dist_inputs = policy(features)
        encoded = world_model.codec.encode(actions)
        state = world_model.mdn_rnn.step(z, encoded, state)
        mixture = world_model.mdn_rnn.predict(state[0], z, encoded)
        next_z = sample_mixture(mixture, temperature, MixtureNoise(noise.gumbel[t], noise.normal[t]))
        outcome = world_model.mdn_rnn.outcome(z, encoded, next_z)
        terminated = death[t] < torch.sigmoid(outcome.termination_logit)
        rows.append((features, actions, logp, dist_inputs, outcome.reward_if(terminated), terminated))
        z = next_z
        if t + 1 < horizon:
            z = torch.where(terminated[:, None], start_z[restart[t]], z)
            state = (
                torch.where(terminated[:, None], start_state[0][restart[t]], state[0]),
                torch.where(terminated[:, None], start_state[1][restart[t]], state[1]),
            )
        features = world_model.features(z, state[0])
    features_, actions_, logp_, dist_inputs_, rewards_, terminateds_ = (
        torch.stack(column, dim=1) for column in zip(*rows, strict=True)
    )
    return Dream(features_, actions_, logp_, dist_inputs_, rewards_, terminateds_, features)
