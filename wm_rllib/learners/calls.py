"""Calls on RLlib's LearnerGroup that check their answers.

A remote learner that raised once is out of service for good, and `update` then returns an empty list in no time:
training would go on without learning. So every answer is counted.
"""

from __future__ import annotations

import functools
from typing import Any

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

from wm_rllib.learners.learner import WorldModelPPOLearner


class LearnerError(RuntimeError):
    """A learner is lost; the run must go on from its last checkpoint."""


def check_results(group: LearnerGroup, results: list[Any]) -> list[Any]:
    """Returns `results` if every learner answered.

    Raises:
        LearnerError: One did not.
    """
    expected = max(1, group.config.num_learners)
    if len(results) != expected:
        raise LearnerError(
            f"{expected - len(results)} of {expected} learners are out of service after an earlier error. Resume the "
            "run from its last checkpoint (train --resume auto, or Tune's FailureConfig(max_failures=...))."
        )
    return results


def on_learners(group: LearnerGroup, method: str, **kwargs: Any) -> list[Any]:
    """Calls a method on every learner and returns the answers, raising what any of them raised."""
    results = [result.get() for result in group.foreach_learner(functools.partial(_call, method=method, kwargs=kwargs))]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return check_results(group, results)


def _call(learner: WorldModelPPOLearner, method: str, kwargs: dict[str, Any]) -> Any:
    return getattr(learner, method)(**kwargs)


def put_on_first(group: LearnerGroup, method: str, **kwargs: Any) -> ray.ObjectRef:
    """Has learner 0 put something into the object store; the driver sees the reference only."""
    function = functools.partial(_call_first, method=method, kwargs=kwargs)
    results = [result.get() for result in group.foreach_learner(function)]
    refs = [result for result in check_results(group, results) if isinstance(result, ray.ObjectRef)]
    if not refs:
        raise LearnerError(f"no learner delivered {method}: {results}")
    return refs[0]


def _call_first(learner: WorldModelPPOLearner, method: str, kwargs: dict[str, Any]) -> Any:
    return getattr(learner, method)(**kwargs) if learner._learner_index == 0 else None


def fit_world_model(
    group: LearnerGroup,
    batch_refs: list[ray.ObjectRef],
    *,
    batch_size: int,
    vae_lr_scale: float,
    timesteps: dict[str, int],
    seed: int | None,
    progress: tuple[int, int],
) -> list[Any]:
    """Fits V and M, in one call of maybe several: a gradient step for every `batch_size` rows of each learner's batch.

    Args:
        group: The learners.
        batch_refs: A batch for each learner, of sequences, of single frames or of sequences of latents.
        batch_size: Rows of a gradient step.
        vae_lr_scale: Factor of V's learning rate.
        timesteps: For RLlib's schedules.
        seed: Seed of this call, or None.
        progress: Gradient steps of this fit before this call, and in all of its calls.
    """
    results = group.update(
        batch_refs=batch_refs,
        minibatch_size=batch_size,
        num_epochs=1,
        timesteps=timesteps,
        stage_seed=seed,
        vae_lr_scale=vae_lr_scale,
        fit_progress=progress,
    )
    return check_results(group, results)


def update_policy(
    group: LearnerGroup,
    *,
    episodes_refs: list[ray.ObjectRef],
    imagined: list[list[ray.ObjectRef]] | None,
    ratio: float | None,
    real_rows: list[int] | None,
    rows: list[tuple[int, int]],
    lr_scale: float,
    timesteps: dict[str, int],
    seed: int | None,
) -> list[Any]:
    """One PPO update on the merge.

    Args:
        group: The learners.
        episodes_refs: Real episodes on features, those of learner 0 first, equally many references for each learner.
        imagined: For each learner its dreams; None without any.
        ratio: The imagined fraction, which the learners keep if rows are lost on the way; None for RLlib's own update.
        real_rows: For each learner the real rows to keep; None keeps all.
        rows: For each learner the real and the imagined rows of its merged batch.
        lr_scale: Factor of C's learning rate.
        timesteps: For RLlib's schedules.
        seed: Seed of this stage, or None.
    """
    config = group.config
    merged = [sum(counts) for counts in rows]
    minibatch_size = min(config.minibatch_size, *filter(None, merged)) if config.minibatch_size else None
    minibatches = 0
    if len(rows) > 1 and minibatch_size:
        # Shards of unequal length would have DDP learners wait for each other for ever.
        minibatches = max(1, int(config.num_epochs * sum(merged) / (len(rows) * minibatch_size)))
    results = group.update(
        episodes_refs=episodes_refs,
        imagined=imagined,
        ratio=ratio,
        expected_rows=rows,
        real_rows=real_rows,
        policy_lr_scale=lr_scale,
        timesteps=timesteps,
        num_epochs=config.num_epochs,
        minibatch_size=minibatch_size,
        shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
        num_total_minibatches=minibatches,
        stage_seed=seed,
    )
    return check_results(group, results)
