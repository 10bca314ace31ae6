"""The world model's fit in the learner: its batches, M's units, its optimisers and their learning rates."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

from wm_rllib.columns import LATENTS, MASK, WORLD_MODEL_MODULE_ID
from wm_rllib.learners.agreement import change_over_learners, moments, sum_over_learners
from wm_rllib.learners.dreamed_rows import RowColumns
from wm_rllib.learners.fit_losses import FitLosses
from wm_rllib.learners.learning_rates import MDN_RNN_OPTIMIZER, VAE_OPTIMIZER
from wm_rllib.learners.merging_learner import MergingLearner
from wm_rllib.mixing import may_dream
from wm_rllib.models.parts import MDN_RNN, VAE
from wm_rllib.models.world_model import WorldModel, latent_changes

MEASURED_SEQUENCES = 1024
"""Of a fit, that M's units of change are measured on."""


class FittingLearner(MergingLearner):
    """MergingLearner that also knows how V and M are fitted; `WorldModelPPOLearner` runs the gradient steps."""

    def build(self) -> None:
        """Builds RLlib's learner."""
        self._fit_losses = FitLosses()
        self._num_steps = 1
        self._vae_lr_scale = 1.0
        self._fit_progress: tuple[int, int] | None = None
        super().build()

    @property
    def world_model(self) -> WorldModel:
        """The networks of the world-model module."""
        return self.module[WORLD_MODEL_MODULE_ID].unwrapped().world_model

    def _fit_columns(self, training_data: TrainingData) -> tuple[str, RowColumns]:
        """The stacked sequences of a fit, one row each."""
        batch = super()._make_batch_if_necessary(training_data).policy_batches[WORLD_MODEL_MODULE_ID]
        fits_m = MASK in batch  # single frames are for V alone
        if fits_m and not (MDN_RNN in self.config.frozen_parts and self.world_model.mdn_rnn.has_change_scale):
            self._measure_change({name: batch[name][:MEASURED_SEQUENCES] for name in batch})
        if fits_m and MDN_RNN not in self.config.frozen_parts:
            self._measure_rewards(batch[Columns.REWARDS][batch[MASK]], batch[Columns.TERMINATEDS][batch[MASK]])
        return WORLD_MODEL_MODULE_ID, {name: batch[name] for name in batch}

    def _measure_change(self, columns: dict[str, Tensor]) -> None:
        """M's units of one step's change, the same ones for all learners, before a fit's first gradient."""
        if LATENTS in columns:
            changes = latent_changes(columns[LATENTS], columns[MASK])
        else:
            changes = self.world_model.changes(columns[Columns.OBS], columns[MASK])
        self.world_model.mdn_rnn.grow_change_scale(change_over_learners(changes))

    def _measure_rewards(self, rewards: Tensor, ends: Tensor) -> None:
        """The same of M's units of rewards [N], which may have been fixed before those that count were seen."""
        mdn_rnn = self.world_model.mdn_rnn
        ordinary = sum_over_learners(moments(rewards[~ends] - mdn_rnn.reward_mean))
        last = sum_over_learners(moments(rewards[ends]))
        mdn_rnn.grow_reward_scales(*((squares / count).sqrt().float() for count, _, squares in (ordinary, last)))

    def _share_buffers(self) -> None:
        """Gives all learners rank 0's record of what disagreement is usual, which each kept of its own batches."""
        if torch.distributed.is_initialized():
            for buffer in self.world_model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def record_fit_losses(self, losses: dict[str, Tensor]) -> None:
        """Keeps one gradient step's scalar losses; their means over the fit become its metrics."""
        self._fit_losses.add(losses)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One Adam for C (RLlib's), one each for V and M, with learning rates of their own."""
        if module_id != WORLD_MODEL_MODULE_ID:
            super().configure_optimizers_for_module(module_id, config)
            if may_dream(self.config.imagination_ratio):
                for _, optimizer in self.get_optimizers_for_module(module_id):
                    optimizer.param_groups[0].update(fused=True, foreach=None)
            return
        for name, network, lr in (
            (VAE_OPTIMIZER, self.world_model.vae, config.vae_lr),
            (MDN_RNN_OPTIMIZER, self.world_model.mdn_rnn, config.mdn_lr),
        ):
            params = list(network.parameters())
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(params, fused=True),
                params=params,
                lr_or_lr_schedule=lr,
            )

    def _anneal(self, name: str, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
        """Sets a fit's learning rate, which falls linearly to a fraction of itself on the fit's way.

        Adam's noise at a constant rate moves V's latents by about as much as M's finest sigma: M chases them, and
        dreams get blurred. Annealed, each published world model is a settled one.
        """
        before, steps = self._fit_progress or (0, self._num_steps)
        done = (before + steps_done - 1) / max(1, steps - 1)
        scale = 1.0 - (1.0 - self.config.fit_final_lr_fraction) * done
        base = float(self._optimizer_lr_schedules[optimizer].get_current_value())
        self._set_optimizer_lr(optimizer, lr=base * self._own_lr_scale(name) * scale)

    def _own_lr_scale(self, optimizer_name: str) -> float:
        """Factor of V's or M's learning rate in a fit; 0 keeps Adam from changing a single bit."""
        is_m = optimizer_name.endswith(MDN_RNN_OPTIMIZER)
        if (MDN_RNN if is_m else VAE) in self.config.frozen_parts:
            return 0.0
        return 1.0 if is_m else self._vae_lr_scale
