"""Models with a defect, named by import path."""

import torch

from wm_rllib.models import MDNRNN


class RaisesInDreams(MDNRNN):
    """Fails wherever it predicts without gradients, which is in dreams alone: fits and env runners work."""

    def predict(self, next_h: torch.Tensor, z: torch.Tensor, action: torch.Tensor):
        if not torch.is_grad_enabled():
            raise RuntimeError("this M cannot dream")
        return super().predict(next_h, z, action)
