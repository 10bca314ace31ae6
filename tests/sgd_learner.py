"""Learners whose steps can be compared, and one that fails."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.evaluation.postprocessing import Postprocessing

from wm_rllib.advantages import standardise
from wm_rllib.agreement import mean_and_std, moments
from wm_rllib.learner import WorldModelPPOLearner


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


class OwnStatisticsLearner(SGDLearner):
    """Standardises advantages over its own rows alone, as RLlib does."""

    def _standardise(self, real: Any, imagined: Any) -> None:
        for source in (real, imagined):
            column = source[Postprocessing.ADVANTAGES]
            source[Postprocessing.ADVANTAGES] = standardise(column, mean_and_std(moments(column)))


class OwnMeanLearner(SGDLearner):
    """Weighs its loss as the other one's, however many rows each is a mean of, as DDP does."""

    def _descend(self, module_id: str, loss: torch.Tensor) -> None:
        self._share = 1.0
        super()._descend(module_id, loss)


class FailingLearner(WorldModelPPOLearner):
    """The second learner of a group fails in its third gradient step, when the first one waits for its gradients."""

    def _descend(self, module_id: str, loss: torch.Tensor) -> None:
        if self._learner_index == 1 and self._steps_done == 3:
            raise RuntimeError("this learner has a defect")
        super()._descend(module_id, loss)
