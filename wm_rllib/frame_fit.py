"""The fit on images: V on single frames, then every frame's latent once, then M on sequences of latents.

V's convolutions cost a hundred times what M costs a step. Run on M's sequences, they would be computed again with each
gradient step, for latents that hardly change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wm_rllib.calling import call
from wm_rllib.fit_calls import CALL_BYTES, fit_in_calls
from wm_rllib.learner_calls import put_on_first
from wm_rllib.transfer import MDN_RNN, VAE

if TYPE_CHECKING:
    from wm_rllib.stages import Stages


def fit_on_frames(stages: Stages, vae_updates: int, mdn_updates: int, vae_lr_scale: float) -> None:
    """Fits V, encodes what has no latent from V as it is now, and fits M."""
    config, service = stages.config, stages.parts.replay.service
    frame_bytes = stages.observation_bytes
    if vae_updates and vae_lr_scale and VAE not in config.frozen_parts:
        size = config.vae_batch_size

        def frames(count: int) -> Any:
            return call(service, "frame_batches", count, size, stages.num_shards)

        fit_in_calls(stages, "fit/vae", vae_updates, size, 2 * size * frame_bytes, frames, vae_lr_scale)
        call(service, "forget_latents")
    encode_replay(stages)
    if mdn_updates and MDN_RNN not in config.frozen_parts:
        size, length = config.sequence_batch_size, config.sequence_length

        def latents(count: int) -> Any:
            return call(service, "latent_batches", count, size, length, stages.num_shards)

        update_bytes = 4 * size * (length + 1) * (config.latent_dim + 4)
        fit_in_calls(stages, "fit/mdn", mdn_updates, size, update_bytes, latents, 1.0)


def encode_replay(stages: Stages) -> None:
    """Gives every frame in the replay its latent; frames and latents pass from process to process by reference."""
    service = stages.parts.replay.service
    most = max(1, CALL_BYTES // stages.observation_bytes)
    with stages.report.stage("encode"):
        while (waiting := call(service, "frames_to_encode", most)) is not None:
            numbers, frames_ref = waiting
            latents_ref = put_on_first(stages.parts.learners, "put_latents", frames_ref=frames_ref)
            call(service, "take_latents", numbers, [latents_ref])
            del frames_ref, waiting  # their memory in the object store is free before the next ones are put there
