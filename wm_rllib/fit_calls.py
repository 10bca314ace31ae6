"""A fit of the world model in calls to the learners that each move a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import ray

from wm_rllib.calling import call
from wm_rllib.learner_calls import fit_world_model

if TYPE_CHECKING:
    from wm_rllib.stages import Stages

CALL_BYTES = 128 * 2**20
"""Of frames or sequences that the replay puts into the object store at once, for each learner."""


def fit_in_calls(
    stages: Stages,
    name: str,
    num_updates: int,
    batch_size: int,
    update_bytes: int,
    batches: Callable[[int], list[ray.ObjectRef]],
    vae_lr_scale: float,
) -> None:
    """So many gradient steps; learning rates fall over all of them.

    Args:
        stages: Of the algorithm.
        name: Of the fit: its seed's, and its stage's in the metrics with _ for /.
        num_updates: Gradient steps in all.
        batch_size: Rows of each.
        update_bytes: Of each one's rows.
        batches: Makes a batch of so many gradient steps for each learner, in the object store.
        vae_lr_scale: Factor of V's learning rate.
    """
    seed, service = stages.seed(name), stages.parts.replay.service
    most, done = max(1, CALL_BYTES // update_bytes), 0
    if seed is not None:
        call(service, "reseed", seed)
    while done < num_updates:
        count = min(most, num_updates - done)
        with stages.report.stage("replay"):
            refs = batches(count)
        with stages.report.stage(name.replace("/", "_")):
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
