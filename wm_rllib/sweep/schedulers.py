"""Tune's schedulers and searchers for sweeps that may be killed, and whose trials are not evaluated in each iteration.

Tune saves its trials and its searcher, but no scheduler: after Tuner.restore ASHA's rungs would be empty and PBT would
not know its population. Both learn it again here from the evaluations that each restored trial's checkpoints hold.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator
from ray.tune.utils.util import flatten_dict

from wm_rllib.sweep.search import ASHA, OPTUNA, PBT, TIME_ATTR
from wm_rllib.sweep.spaces import INTERVALS
from wm_rllib.sweep.spec import SweepSpec


def past_evaluations(trial: Any, metric: str) -> list[tuple[dict[str, Any], Any]]:
    """A restored trial's evaluations, oldest first: flat results, and Tune's record of their checkpoints.

    There are none of a new trial.
    """
    checkpoints = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    return [(result, kept) for kept in checkpoints if metric in (result := flatten_dict(kept.metrics))]


class ResumableASHA(ASHAScheduler):
    """ASHA whose rungs are filled again when a sweep goes on."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Enters what a restored trial has reached."""
        super().on_trial_add(tune_controller, trial)
        for result, _ in past_evaluations(trial, self._metric):
            super().on_trial_result(tune_controller, trial, result)  # its decision was taken then


class ResumablePBT(PopulationBasedTraining):
    """PBT that knows its population again when a sweep goes on, and says which trial took over from which.

    Evaluations come in the first iteration past each interval, some iterations late at times; the next one may then be
    less than an interval away, and is no less due. So times of perturbations are counted in whole intervals.

    Never with `synch`: there Tune (2.60) may pause a trial that is still writing its checkpoint, keeps a decision to
    stop it, and ends it at its next checkpoint.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Enters a restored trial's last evaluation as its last perturbation."""
        super().on_trial_add(tune_controller, trial)
        past = past_evaluations(trial, self._metric)
        if not past:
            return
        (result, kept), state = past[-1], self._trial_state[trial]
        self._save_trial_state(state, result[TIME_ATTR], result, trial)
        state.last_perturbation_time = result[TIME_ATTR]
        # Without, nobody could take over from it before its next evaluation, and would lose an interval.
        state.last_checkpoint, state.last_result = kept.checkpoint, kept.metrics
        self._count_in_intervals(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Perturbs a trial whose interval is over."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        self._count_in_intervals(trial)
        return decision

    def _count_in_intervals(self, trial: Any) -> None:
        state = self._trial_state[trial]
        state.last_perturbation_time -= state.last_perturbation_time % self._perturbation_interval

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        mine, theirs = (self._trial_state[each].last_score * self._metric_op for each in (trial, trial_to_clone))
        print(
            f"exploit: {trial.trial_id} ({mine:.1f}) takes over from {trial_to_clone.trial_id} ({theirs:.1f})",
            flush=True,
        )


def make_scheduler(spec: SweepSpec) -> Any:
    """The scheduler of a sweep; metric and mode come from Tune's config."""
    search = spec.search
    if search["scheduler"] == ASHA:
        return ResumableASHA(
            time_attr=TIME_ATTR,
            max_t=spec.total_steps,
            grace_period=spec.grace_period,
            reduction_factor=search["asha.reduction_factor"],
            brackets=search["asha.brackets"],
            # Otherwise a trial whose first evaluation passes two rungs would later be judged at the lower one, too.
            stop_last_trials=False,
        )
    if search["scheduler"] == PBT:
        bounds = {space.attr: space.arguments for space in spec.spaces.values() if space.kind in INTERVALS}
        return ResumablePBT(
            time_attr=TIME_ATTR,
            perturbation_interval=search["pbt.perturbation_interval"] or spec.interval,
            hyperparam_mutations={space.attr: space.for_pbt() for space in spec.spaces.values()},
            quantile_fraction=search["pbt.quantile_fraction"],
            resample_probability=search["pbt.resample_probability"],
            custom_explore_fn=functools.partial(clip_to_bounds, bounds=bounds),
            require_attrs=False,
        )
    return FIFOScheduler()


def clip_to_bounds(config: dict[str, Any], bounds: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """PBT's changed config, with its numbers back within the bounds of their spaces."""
    clipped = {attr: min(max(config[attr], low), high) for attr, (low, high) in bounds.items()}
    return {**config, **clipped}


def make_searcher(spec: SweepSpec) -> Any:
    """The searcher of a sweep, seeded with the trials' seed."""
    seed = spec.values.get("seed", 0)
    if seed is not None:
        random.seed(seed)  # PBT draws from the generators of the process
        np.random.seed(seed % 2**32)
    if spec.search["searcher"] == OPTUNA:
        from wm_rllib.sweep.optuna import PatientOptuna

        return PatientOptuna(seed=seed)
    return BasicVariantGenerator(random_state=seed, max_concurrent=spec.search["max_concurrent_trials"] or 0)
