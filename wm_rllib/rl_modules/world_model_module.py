"""The world model as a learner-only RLModule: DDP, optimisers and checkpoints come with RLlib's Learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from wm_rllib.columns import LATENTS, MASK, STEPS_LEFT, TERMINATES
from wm_rllib.models.config import WorldModelConfig
from wm_rllib.models.mdn_rnn import Ahead, MDNRNNLosses
from wm_rllib.models.vae import VAELosses
from wm_rllib.models.world_model import SequenceBatch, WorldModel
from wm_rllib.rl_modules.gradient_steps import LENGTHS

WORLD_MODEL_CONFIG = "world_model_config"
"""Key of the module's `model_config` that holds its `WorldModelConfig`."""
PIXEL_SETTINGS = "pixel_settings"
"""Key with the `PixelSettings` of its environment: no layer needs them, but whoever plays with the checkpoint does."""

LOSS = "loss"


class WorldModelRLModule(TorchRLModule, SelfSupervisedLossAPI):
    """Wraps `WorldModel`; trained on batches of sequences only, never by PPO's loss."""

    def setup(self) -> None:
        """Builds the networks."""
        config: WorldModelConfig = self.model_config[WORLD_MODEL_CONFIG]
        self.world_model = WorldModel(config)
        self._frame_losses: Callable[[Tensor], VAELosses] | None = None

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Losses of V and M on a batch of sequences, of V on single frames, or of M on sequences of latents."""
        if MASK not in batch:
            vae = self._losses_on_frames(batch[Columns.OBS])
            return {LOSS: vae.total, **_of_vae(vae)}
        sequences = SequenceBatch(
            batch.get(Columns.OBS),
            batch[Columns.ACTIONS],
            batch[Columns.REWARDS],
            batch[Columns.TERMINATEDS],
            batch[MASK],
            batch.get(LENGTHS),
            Ahead(batch[STEPS_LEFT], batch[TERMINATES]) if STEPS_LEFT in batch else None,
        )
        if LATENTS in batch:
            mdn = self.world_model.latent_losses(batch[LATENTS], sequences)
            return {LOSS: mdn.total, **_of_mdn(mdn)}
        vae, mdn = self.world_model.losses(sequences)
        return {LOSS: vae.total + mdn.total, **_of_vae(vae), **_of_mdn(mdn)}

    def _losses_on_frames(self, frames: Tensor) -> VAELosses:
        """V's; compiled when they are first asked for, where that is wanted: env runners and dreamers never ask."""
        vae = self.world_model.vae
        if self._frame_losses is None:
            compiles = self.world_model.config.vae.compiles
            self._frame_losses = torch.compile(vae.frame_losses, dynamic=False) if compiles else vae.frame_losses
        return self._frame_losses(frames)

    def compute_self_supervised_loss(
        self, *, learner: Any, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor], **_: Any
    ) -> Tensor:
        """The sum of V's and M's losses: they touch disjoint parameters, each with an optimiser of its own."""
        learner.record_fit_losses({name: value.detach() for name, value in fwd_out.items() if name != LOSS})
        return fwd_out[LOSS]


def _of_vae(losses: VAELosses) -> dict[str, Tensor]:
    named = {
        "vae/reconstruction_loss": losses.reconstruction,
        "vae/kl_divergence": losses.kl_divergence,
        "vae/explained": losses.explained,
        "vae/moving_explained": losses.moving_explained,
    }
    return {name: value for name, value in named.items() if value is not None}


def _of_mdn(losses: MDNRNNLosses) -> dict[str, Tensor]:
    return {"mdn/nll": losses.nll, "mdn/reward_loss": losses.reward, "mdn/termination_loss": losses.termination}
