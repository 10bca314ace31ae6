"""V and M classes that tests name by import path, as users do."""

import torch
from torch import nn

from wm_rllib.models import MDNRNN, VariationalAutoencoder


class CustomVAE(VariationalAutoencoder):
    """A linear encoder in place of the default one."""

    def make_encoder(self) -> nn.Module:
        return nn.Linear(self.config.observation_shape[0], 2 * self.config.latent_dim)


class CustomMDNRNN(MDNRNN):
    """Foretells a reward of 7, whatever comes."""

    def predict(self, next_h: torch.Tensor, z: torch.Tensor, action: torch.Tensor):
        prediction = super().predict(next_h, z, action)
        return type(prediction)(
            prediction.next_latent, torch.full_like(prediction.reward, 7.0), prediction.termination_logit
        )


class NotAVAE(nn.Module):
    """No subclass of VariationalAutoencoder."""
