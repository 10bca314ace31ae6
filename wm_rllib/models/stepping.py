"""Lanes in M that somebody else steers: one step at a time, with noise of their own, to be put back where they were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wm_rllib.models.imagining import ImaginedStep, draw_step_noise, imagined_step
from wm_rllib.models.mdn_rnn import State
from wm_rllib.models.world_model import WorldModel


@dataclass(frozen=True)
class Place:
    """Where B lanes are: z [B, Z], state [B, D] each."""

    z: Tensor
    state: State


class Stepper:
    """B lanes in M. Unlike `dreaming.dream`, they go on after an end, may be steered by hand, and may be put back.

    Args:
        world_model: V and M, in eval mode.
        place: Where the lanes start.
        seed: Of their noise, which is drawn from no global generator.
    """

    def __init__(self, world_model: WorldModel, place: Place, seed: int):
        self.world_model = world_model
        self.place = place
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Starts the noise afresh."""
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def features(self) -> Tensor:
        """What C sees, [B, F]."""
        return self.world_model.features(self.place.z, self.place.state[0])

    @property
    def observations(self) -> Tensor:
        """What V makes of the latents, [B, *O] in the environment's units."""
        with torch.no_grad():
            return self.world_model.vae.decode(self.place.z)

    @torch.no_grad()
    def step(self, actions: Tensor, temperature: float) -> ImaginedStep:
        """One step under actions [B, ...] in policy space, at a temperature of M's mixture."""
        mdn_rnn, z = self.world_model.mdn_rnn, self.place.z
        noise = draw_step_noise(mdn_rnn, len(z), self._generator)
        encoded = self.world_model.codec.encode(actions)
        step = imagined_step(mdn_rnn, z, encoded, self.place.state, temperature, noise)
        self.place = Place(step.z, step.state)
        return step
