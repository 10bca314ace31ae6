"""The fit on images: V on single frames, then every frame's latent once, then M on sequences of latents.

V's convolutions cost a hundred times what M costs a step. Run on M's sequences, they would be computed again with each
gradient step, for latents that hardly change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wm_rllib.actors.calling import call
from wm_rllib.learners.calls import put_on_first
from wm_rllib.models.parts import MDN_RNN, VAE
from wm_rllib.training.fit_calls import CALL_BYTES, MDN_RNN_FIT, VAE_FIT, Instalment, fit_in_calls

if TYPE_CHECKING:
    from wm_rllib.training.stages import Stages


def fit_on_frames(
    stages: Stages, vae_updates: int, mdn_updates: int, vae_lr_scale: float, instalment: Instalment | None = None
) -> bool:
    """Fits V, encodes what has no latent from V as it is now, and fits M.

    Args:
        stages: Of the algorithm.
        vae_updates: Gradient steps of V.
        mdn_updates: Gradient steps of M.
        vae_lr_scale: Factor of V's learning rate.
        instalment: See `fit_in_calls`.

    Returns:
        Whether all of it is done.
    """
    config, service = stages.config, stages.parts.replay.service
    frame_bytes = stages.observation_bytes
    fits_vae = vae_updates and vae_lr_scale and VAE not in config.frozen_parts
    if fits_vae and not (instalment and instalment.done.get(VAE_FIT, 0) >= vae_updates):
        size = config.vae_batch_size

        def frames(count: int) -> Any:
            return call(service, "frame_batches", count, size, stages.num_shards)

        update_bytes = 2 * size * frame_bytes
        if not fit_in_calls(stages, VAE_FIT, vae_updates, size, update_bytes, frames, vae_lr_scale, instalment):
            return False
        call(service, "forget_latents")
    if not encode_replay(stages, instalment):
        return False
    if mdn_updates and MDN_RNN not in config.frozen_parts:
        size, length = config.sequence_batch_size, config.sequence_length

        def latents(count: int) -> Any:
            return call(service, "latent_batches", count, size, length, stages.num_shards)

        update_bytes = 4 * size * (length + 1) * (config.latent_dim_for(stages.observation_space) + 4)
        return fit_in_calls(stages, MDN_RNN_FIT, mdn_updates, size, update_bytes, latents, 1.0, instalment)
    return True


def encode_replay(stages: Stages, instalment: Instalment | None = None) -> bool:
    """Gives every frame in the replay its latent; frames and latents pass from process to process by reference.

    Returns:
        Whether they all have one; without an instalment to be kept to they have.
    """
    service = stages.parts.replay.service
    most = max(1, CALL_BYTES // stages.observation_bytes)
    with stages.report.stage("encode"):
        while (waiting := call(service, "frames_to_encode", most)) is not None:
            if instalment and not instalment.takes_call(stages):
                return False
            numbers, frames_ref = waiting
            latents_ref = put_on_first(stages.parts.learners, "put_latents", frames_ref=frames_ref)
            call(service, "take_latents", numbers, [latents_ref])
            del frames_ref, waiting  # their memory in the object store is free before the next ones are put there
    return True
