"""V and M classes that tests name by import path, as users do."""

import dataclasses

import torch
from torch import nn

from wm_rllib.models import MDNRNN, VariationalAutoencoder
from wm_rllib.models.outcome import Outcome


class CustomVAE(VariationalAutoencoder):
    """A linear encoder in place of the default one."""

    def make_encoder(self) -> nn.Module:
        return nn.Linear(self.config.observation_shape[0], 2 * self.config.latent_dim)


class CustomMDNRNN(MDNRNN):
    """Foretells a reward of 7, whatever comes."""

    def outcome(self, z: torch.Tensor, action: torch.Tensor, next_z: torch.Tensor) -> Outcome:
        outcome = super().outcome(z, action, next_z)
        return dataclasses.replace(outcome, reward=torch.full_like(outcome.reward, 7.0), last_reward=None)


class NotAVAE(nn.Module):
    """No subclass of VariationalAutoencoder."""


class ImageVAE(VariationalAutoencoder):
    """The default networks on images, pixel by pixel: for images of a few pixels."""
