"""V and M together: what env runners, dreamers, the learner and the inference helper hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wm_rllib.models.config import WorldModelConfig, load_class
from wm_rllib.models.conv_vae import ConvolutionalVAE, is_image
from wm_rllib.models.fused import can_fuse_step, fused_burn_in
from wm_rllib.models.mdn_rnn import MDNRNN, Ahead, MDNRNNLosses, State
from wm_rllib.models.vae import VAELosses, VariationalAutoencoder
from wm_rllib.spaces import ActionCodec


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences of raw experience, each within one episode and padded at its end.

    observations [B, T + 1, *O], actions [B, T, ...] in policy space, rewards [B, T], terminateds [B, T] bool,
    mask [B, T] bool (True on transitions that happened). observations are None where latents are given beside.
    lengths: how many happened in each row, B, if the host knows.
    ahead: what comes after each step of the episode, or None; see `MDNRNN.losses`.
    """

    observations: Tensor | None
    actions: Tensor
    rewards: Tensor
    terminateds: Tensor
    mask: Tensor
    lengths: Sequence[int] | None = None
    ahead: Ahead | None = None

    @property
    def num_transitions(self) -> int | None:
        """That happened, if the host knows."""
        return None if self.lengths is None else sum(self.lengths)

    @property
    def num_observations(self) -> int | None:
        """That a transition leaves or enters, if the host knows."""
        return None if self.lengths is None else sum(length + 1 for length in self.lengths if length)


class WorldModel(nn.Module):
    """V and M over one environment's spaces. New ones are in training mode, as all modules; callers choose."""

    def __init__(self, config: WorldModelConfig):
        super().__init__()
        self.config = config
        self.codec = ActionCodec(config.action_space, normalized=config.normalize_actions, clipped=config.clip_actions)
        vae_class = load_class(config.vae_class, VariationalAutoencoder, "world_model.vae.class")
        if config.vae_class is None and self.takes_frames:
            vae_class = ConvolutionalVAE
        mdn_rnn_class = load_class(config.mdn_rnn_class, MDNRNN, "world_model.mdn_rnn.class")
        self.vae: VariationalAutoencoder = vae_class(config.vae)
        self.mdn_rnn: MDNRNN = mdn_rnn_class(config.mdn_rnn)

    @property
    def takes_frames(self) -> bool:
        """Whether observations are images: V is fitted to single frames, and M to latents that are computed once."""
        return is_image(self.config.vae.observation_shape)

    @property
    def feature_dim(self) -> int:
        """F, the width of what the controller sees."""
        hidden = self.config.mdn_rnn.hidden_dim if self.config.controller_inputs == "zh" else 0
        return self.config.vae.latent_dim + hidden

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mdn_rnn.reward_mean.device

    def features(self, z: Tensor, h: Tensor) -> Tensor:
        """The controller's input [..., F]: [z, h], or z alone for the paper's ablation."""
        return torch.cat([z, h], -1) if self.config.controller_inputs == "zh" else z

    def advance(self, z: Tensor, actions: Tensor, state: State) -> State:
        """The state after z_t [B, Z] and policy-space actions a_t [B, ...]."""
        return self.mdn_rnn.step(z, self.codec.encode(actions), state)

    def burn_in(
        self, observations: Tensor, actions: Tensor, mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, State]:
        """Z and the state at the last observation of each row, from its real past.

        Args:
            observations: [B, L + 1, *O], aligned at the end: the last one is where the dream starts.
            actions: [B, L, ...] policy space.
            mask: [B, L] bool; False on the padding before a row's first real transition.
            dtype: What large products of M's own LSTM are computed in; the result is float32.
        """
        return self.burn_in_latents(self.vae.encode(observations), actions, mask, dtype)

    def burn_in_latents(
        self, z: Tensor, actions: Tensor, mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, State]:
        """As `burn_in`, from latents [B, L + 1, Z]."""
        encoded = self.codec.encode(actions)
        if can_fuse_step(self.mdn_rnn) and not torch.is_grad_enabled():
            return z[:, -1], fused_burn_in(self.mdn_rnn, z, encoded, mask, dtype)
        state = self.mdn_rnn.initial_state(z.shape[0])
        for t in range(mask.shape[1]):
            h, c = self.mdn_rnn.step(z[:, t], encoded[:, t], state)
            keep = mask[:, t, None]
            # Rows whose past is shorter than L keep the zero state until their first real transition.
            state = torch.where(keep, h, state[0]), torch.where(keep, c, state[1])
        return z[:, -1], state

    @torch.no_grad()
    def latents(self, observations: Tensor) -> Tensor:
        """Z as C sees them, [..., Z] of observations [..., *O], whatever mode V is in, which it stays in."""
        if type(self.vae) in (VariationalAutoencoder, ConvolutionalVAE):
            return self.vae.posterior(observations).mean  # the same, in two thirds of the time
        mode = self.vae.training
        self.vae.eval()
        try:
            return self.vae.encode(observations)
        finally:
            self.vae.train(mode)

    @torch.no_grad()
    def changes(self, observations: Tensor, mask: Tensor) -> Tensor:
        """How latents change in the N unmasked steps, [N, Z], of observations [B, T + 1, *O] and mask [B, T]."""
        return latent_changes(self.latents(observations), mask)

    def losses(self, batch: SequenceBatch) -> tuple[VAELosses, MDNRNNLosses]:
        """V's and M's losses on one batch. V gets no gradient through M: their totals touch disjoint parameters."""
        assert batch.observations is not None
        # An observation counts for V when a transition leaves or enters it.
        leaves = torch.nn.functional.pad(batch.mask, (0, 1))
        enters = torch.nn.functional.pad(batch.mask, (1, 0))
        vae_losses = self.vae.losses(batch.observations, leaves | enters, batch.num_observations)
        # bfloat16's rounding is as large as the finest sigma: M is fitted to latents in float32, as dreams have them.
        with torch.autocast(batch.mask.device.type, enabled=False):
            z = self.latents(batch.observations)
        return vae_losses, self.latent_losses(z, batch)

    def latent_losses(self, z: Tensor, batch: SequenceBatch) -> MDNRNNLosses:
        """M's losses on latents [B, T + 1, Z]; of the batch everything but the observations is read."""
        encoded = self.codec.encode(batch.actions)
        rows = batch.rewards, batch.terminateds, batch.mask
        return self.mdn_rnn.losses(z, encoded, *rows, batch.num_transitions, batch.ahead)


def latent_changes(z: Tensor, mask: Tensor) -> Tensor:
    """Changes [N, Z] in the N unmasked steps of latents [B, T + 1, Z] and mask [B, T]."""
    return (z[:, 1:] - z[:, :-1])[mask]
