"""Learners whose steps can be compared, and one that fails."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from wm_rllib.learner import WorldModelPPOLearner


class SGDLearner(WorldModelPPOLearner):
    """Plain gradient descent in float64: a step is the gradient, where Adam's first is little more than its sign."""

    def build(self) -> None:
        torch.set_default_dtype(torch.float64)
        super().build()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        if module_id != DEFAULT_MODULE_ID:
            super().configure_optimizers_for_module(module_id, config)
            return
        params = list(self.get_parameters(self.module[module_id]))
        self.register_optimizer(
            module_id=module_id, optimizer=torch.optim.SGD(params), params=params, lr_or_lr_schedule=config.lr
        )


class FailingLearner(WorldModelPPOLearner):
    """The second learner of a group fails in its third gradient step, when the first one waits for its gradients."""

    def _descend(self, module_id: str, loss: torch.Tensor) -> None:
        if self._learner_index == 1 and self._steps_done == 3:
            raise RuntimeError("this learner has a defect")
        super()._descend(module_id, loss)
