"""The fit on images: V on single frames, then every frame's latent once, then M on sequences of latents.

V's convolutions cost a hundred times what M costs a step. Run on M's sequences, they would be computed again with each
gradient step, for latents that hardly change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from wm_rllib.calling import call
from wm_rllib.learner_calls import fit_world_model, put_on_first
from wm_rllib.transfer import MDN_RNN, VAE

if TYPE_CHECKING:
    from wm_rllib.stages import Stages

CALL_BYTES = 128 * 2**20
"""Of frames or sequences that the replay puts into the object store at once, for each learner."""


def fit_on_frames(stages: Stages, vae_updates: int, mdn_updates: int, vae_lr_scale: float) -> None:
    """Fits V, encodes what has no latent from V as it is now, and fits M."""
    config, service = stages.config, stages.parts.replay.service
    frame_bytes = stages.frame_bytes
    if vae_updates and vae_lr_scale and VAE not in config.frozen_parts:
        size = config.vae_batch_size

        def frames(count: int) -> Any:
            return call(service, "frame_batches", count, size, stages.num_shards)

        _fit(stages, "vae", vae_updates, size, 2 * size * frame_bytes, frames, vae_lr_scale)
        call(service, "forget_latents")
    encode_replay(stages)
    if mdn_updates and MDN_RNN not in config.frozen_parts:
        size, length = config.sequence_batch_size, config.sequence_length

        def latents(count: int) -> Any:
            return call(service, "latent_batches", count, size, length, stages.num_shards)

        update_bytes = 4 * size * (length + 1) * (config.latent_dim + 4)
        _fit(stages, "mdn", mdn_updates, size, update_bytes, latents, 1.0)


def encode_replay(stages: Stages) -> None:
    """Gives every frame in the replay its latent; frames and latents pass from process to process by reference."""
    service = stages.parts.replay.service
    most = max(1, CALL_BYTES // stages.frame_bytes)
    with stages.report.stage("encode"):
        while (waiting := call(service, "frames_to_encode", most)) is not None:
            numbers, frames_ref = waiting
            latents_ref = put_on_first(stages.parts.learners, "put_latents", frames_ref=frames_ref)
            call(service, "take_latents", numbers, [latents_ref])
            del frames_ref, waiting  # their memory in the object store is free before the next ones are put there


def _fit(
    stages: Stages,
    name: str,
    num_updates: int,
    batch_size: int,
    update_bytes: int,
    batches: Callable[[int], list[ray.ObjectRef]],
    vae_lr_scale: float,
) -> None:
    """So many gradient steps, in calls that each move a bounded number of bytes; rates fall over all of them."""
    seed, service = stages.seed(f"fit/{name}"), stages.parts.replay.service
    most, done = max(1, CALL_BYTES // update_bytes), 0
    if seed is not None:
        call(service, "reseed", seed)
    while done < num_updates:
        count = min(most, num_updates - done)
        with stages.report.stage("replay"):
            refs = batches(count)
        with stages.report.stage(f"fit_{name}"):
            results = fit_world_model(
                stages.parts.learners,
                refs,
                batch_size=batch_size,
                vae_lr_scale=vae_lr_scale,
                timesteps=stages.timesteps,
                seed=None if seed is None else seed + done,
                progress=(done, num_updates),
            )
        done += count
        stages.take_fit_results(results, count)
