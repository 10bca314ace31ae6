"""Learners whose steps can be compared, and defects for learners of a group: each replaces a method of one instance."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.evaluation.postprocessing import Postprocessing

from wm_rllib.learners.advantages import standardise
from wm_rllib.learners.agreement import mean_and_std, moments
from wm_rllib.learners.learner import WorldModelPPOLearner


class SGDLearner(WorldModelPPOLearner):
    """Plain gradient descent: a step is the gradient, where Adam's first is little more than its sign."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        if module_id != DEFAULT_MODULE_ID:
            super().configure_optimizers_for_module(module_id, config)
            return
        params = list(self.get_parameters(self.module[module_id]))
        self.register_optimizer(
            module_id=module_id, optimizer=torch.optim.SGD(params), params=params, lr_or_lr_schedule=config.lr
        )


def standardises_alone(learner: WorldModelPPOLearner) -> None:
    """Standardises advantages over its own rows alone, as RLlib does."""

    def standardise_own(real: Any, imagined: Any, greedy: Any) -> None:
        for source in (real, imagined):
            column = source[Postprocessing.ADVANTAGES]
            source[Postprocessing.ADVANTAGES] = standardise(column, mean_and_std(moments(column)))

    learner._standardise = standardise_own


def weighs_alone(learner: WorldModelPPOLearner) -> None:
    """Weighs its loss as the other one's, however many rows each is a mean of, as DDP does."""
    descend = learner._descend

    def descend_alone(module_id: str, loss: torch.Tensor) -> None:
        learner._share = 1.0
        descend(module_id, loss)

    learner._descend = descend_alone


def fails_in_its_third_step(learner: WorldModelPPOLearner) -> None:
    """The second learner of a group fails when the first one waits for its gradients."""
    descend = learner._descend

    def descend_or_fail(module_id: str, loss: torch.Tensor) -> None:
        if learner._learner_index == 1 and learner._steps_done == 3:
            raise RuntimeError("this learner has a defect")
        descend(module_id, loss)

    learner._descend = descend_or_fail


def mend(learner: WorldModelPPOLearner) -> None:
    """Takes the defects away."""
    for name in ("_standardise", "_descend"):
        learner.__dict__.pop(name, None)
