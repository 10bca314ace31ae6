"""A fit of the world model in calls to the learners that each move a bounded number of bytes.

Pretraining may be hours of such calls. An iteration makes some of them, so that after a signal a checkpoint is written
soon, a kill costs no more than the iterations since the last one, and whoever watches sees it going on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from wm_rllib.actors.calling import call
from wm_rllib.learners.calls import fit_world_model

if TYPE_CHECKING:
    from wm_rllib.training.stages import Stages

CALL_BYTES = 128 * 2**20
"""Of frames or sequences that the replay puts into the object store at once, for each learner."""

FIT, VAE_FIT, MDN_RNN_FIT = "fit", "fit/vae", "fit/mdn"
FITTED_BY = {FIT: ("vae", "mdn"), VAE_FIT: ("vae",), MDN_RNN_FIT: ("mdn",)}
"""Fits by name, and whose losses they have: vectors have V and M fitted together."""

PRETRAINING_CALLS = 4
"""To learners in one iteration of pretraining, at most."""


@dataclass
class Instalment:
    """The part of pretraining that an iteration makes.

    Attributes:
        done: Gradient steps so far by the fit's name; the training state's own, written to.
        calls: How many more this iteration may make.
    """

    done: dict[str, int]
    calls: int = PRETRAINING_CALLS

    def takes_call(self, stages: Stages) -> bool:
        """Whether there may be one more, and counts it; after `WorldModelPPO.cut_short` there may not."""
        if not self.calls or stages.is_cut_short:
            return False
        self.calls -= 1
        return True


def fit_in_calls(
    stages: Stages,
    name: str,
    num_updates: int,
    batch_size: int,
    update_bytes: int,
    batches: Callable[[int], list[ray.ObjectRef]],
    vae_lr_scale: float,
    instalment: Instalment | None = None,
) -> bool:
    """So many gradient steps; learning rates fall over all of them.

    Args:
        stages: Of the algorithm.
        name: Of the fit: its seed's, and its stage's in the metrics with _ for /.
        num_updates: Gradient steps in all.
        batch_size: Rows of each.
        update_bytes: Of each one's rows.
        batches: Makes a batch of so many gradient steps for each learner, in the object store.
        vae_lr_scale: Factor of V's learning rate.
        instalment: How many calls may be made now, and what earlier ones did; None: all of them are made.

    Returns:
        Whether all gradient steps are done.
    """
    seed, service = stages.seed(name), stages.parts.replay.service
    most, done = max(1, CALL_BYTES // update_bytes), instalment.done.get(name, 0) if instalment else 0
    if seed is not None:
        call(service, "reseed", seed)
    while done < num_updates:
        if instalment and not instalment.takes_call(stages):
            return False
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
        del refs  # their memory in the object store is free before the next ones are put there
        stages.take_fit_results(results, count, name, begins=not done)
        done += count
        if instalment:
            instalment.done[name] = done
    return True
