"""The learner: PPO on the exact merge of real and imagined rows, the world model's fit, and its light loop for both."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchDDPRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.numpy import convert_to_numpy
from torch import Tensor

from wm_rllib.actors.heap import Heap
from wm_rllib.columns import MASK, WORLD_MODEL_MODULE_ID
from wm_rllib.learners.agreement import leave_group
from wm_rllib.learners.fitting_learner import FittingLearner
from wm_rllib.learners.gate import Judgement
from wm_rllib.learners.judge import judge_world_model
from wm_rllib.learners.learning_rates import log_learning_rate
from wm_rllib.learners.merging_learner import NothingToLearnError
from wm_rllib.learners.policy_change import policy_change
from wm_rllib.learners.policy_loss import policy_loss
from wm_rllib.logs import set_log_level
from wm_rllib.models.conv_vae import FRAMES_AT_ONCE, is_image
from wm_rllib.models.parts import MDN_RNN, VAE
from wm_rllib.models.precision import Precision
from wm_rllib.rl_modules.gradient_steps import Minibatches, Silent, clip_and_step
from wm_rllib.seeding import seed_process

logger = logging.getLogger(__name__)

KL_COEFFS = "kl_coeffs"
CONFIGURED_KL_COEFF = "configured_kl_coeff"
TIMESTEP = "timestep"
SMALLEST_BFLOAT16_BATCH = 512
"""Frames of V's batches from which bfloat16 pays on a GPU: on an H200 128 got slower, 1,024 3.4 times as fast."""


class WorldModelPPOLearner(FittingLearner):
    """RLlib's PPO learner that merges in dreams, and fits the world-model module when given its batches."""

    def build(self) -> None:
        """Builds RLlib's learner."""
        set_log_level(self.config.wm_log_level)
        self._fitting = False
        self._own_loop = False
        self._steps_done = 0
        self._left_out: Tensor | float = 0.0
        self._timestep = 0
        self._policy_lr_scale = 1.0
        self._heap = Heap()
        super().build()
        self._precision = Precision(self.config.precision, self._device, pays=False)
        large = self.config.vae_batch_size >= SMALLEST_BFLOAT16_BATCH
        self._frame_precision = Precision(self.config.precision, self._device, pays=large)
        if not self._learner_index:
            names = self._precision.name, self._frame_precision.name
            logger.info("fits and merged updates compute in %s, V on images in %s, on %s", *names, self._device)

    # --- updates -----------------------------------------------------------------------------------------------------

    def update(
        self,
        *args: Any,
        imagined: list[list[ray.ObjectRef]] | None = None,
        ratio: float | None = None,
        expected_rows: list[tuple[int, int]] | None = None,
        real_rows: list[int] | None = None,
        stage_seed: int | None = None,
        vae_lr_scale: float = 1.0,
        policy_lr_scale: float = 1.0,
        fit_progress: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """One PPO update, or one fit of the world model.

        Args:
            *args: See RLlib's `Learner.update`.
            imagined: For each learner the references to its dreams (lists of dicts of arrays [B, H, ...], as
                `wm_rllib.dreamers.dreamer` makes them), maybe none for this one. None: RLlib's own update, untouched.
            ratio: The imagined fraction to keep if rows are lost on the way; None: take what there is.
            expected_rows: For each learner its real and imagined rows, as the driver counted them; dreams beyond them
                are left out. None: take what there is.
            real_rows: For each learner how many of its real rows to use; None: all.
            stage_seed: Seeds this process's generators first.
            vae_lr_scale: In a fit, factor of V's learning rate.
            policy_lr_scale: In a merged update, factor of C's learning rate.
            fit_progress: In a fit of several calls, gradient steps before this one, and in all of them.
            **kwargs: See RLlib's `Learner.update`.
        """
        seed_process(stage_seed)
        self._vae_lr_scale, self._policy_lr_scale = vae_lr_scale, policy_lr_scale
        self._ratio = ratio
        self._expected_rows = expected_rows[self._learner_index] if expected_rows else None
        self._steps_done, self._left_out = 0, 0.0
        self._fit_progress = fit_progress
        self._imagined = None if imagined is None else imagined[self._learner_index]
        self._real_rows = real_rows[self._learner_index] if real_rows else None
        try:
            return super().update(*args, **kwargs)
        except NothingToLearnError:
            self._log_rows(0, 0)
            return self.metrics.reduce()
        except Exception as error:
            leave_group(error, self._learner_index)
            raise
        finally:
            self._imagined = None
            self._heap.trim()

    def _create_iterator_if_necessary(
        self,
        *,
        training_data: TrainingData,
        num_total_minibatches: int = 0,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        **kwargs: Any,
    ) -> Any:
        """RLlib's minibatches for its own update; light ones for a fit and for a merge."""
        self._fitting = training_data.episodes is None
        # The same for all learners, whatever each has got: they wait for each other.
        self._own_loop = self._fitting or self._imagined is not None
        if not self._own_loop:
            self._agree_on_experience(training_data)
            return super()._create_iterator_if_necessary(
                training_data=training_data,
                num_total_minibatches=num_total_minibatches,
                num_epochs=num_epochs,
                minibatch_size=minibatch_size,
                shuffle_batch_per_epoch=shuffle_batch_per_epoch,
                **kwargs,
            )
        self._share = 1.0
        module_id, columns = self._fit_columns(training_data) if self._fitting else self._merged(training_data)
        minibatches = Minibatches(
            module_id,
            columns,
            size=minibatch_size or len(next(iter(columns.values()))),
            num_epochs=num_epochs,
            count=num_total_minibatches,
            shuffle=shuffle_batch_per_epoch and not self._fitting,
            # Read once a fit: reading in each step of M's would have it wait for all that was launched before.
            lengths=columns[MASK].sum(-1).tolist() if MASK in columns else None,
        )
        if minibatch_size:
            self._share = 1.0  # all learners' minibatches are of one size
        self._num_steps = len(minibatches)
        return minibatches

    def _make_batch_if_necessary(self, training_data: TrainingData) -> MultiAgentBatch:
        if self._own_loop:
            return super()._make_batch_if_necessary(training_data)
        greedy = self._greedy_rows(training_data.episodes)  # where a gate has closed since; RLlib appends a row to each
        batch = super()._make_batch_if_necessary(training_data)
        columns = batch.policy_batches[DEFAULT_MODULE_ID]
        if greedy.any():
            self._leave_out_greedy(columns, greedy)
        self._log_rows(int(columns[Columns.LOSS_MASK].sum()), 0)
        return batch

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        """One gradient step: RLlib's own, or a light one on the only module in the batch."""
        if not self._own_loop:
            return super()._update(batch, **kwargs)
        (module_id,) = batch
        self._steps_done += 1
        metrics = self.metrics
        if self._steps_done < self._num_steps:
            self.metrics: Any = Silent()
        is_frames = self._fitting and MASK not in batch[module_id]
        precision = self._frame_precision if is_frames else self._precision
        try:
            with precision.autocast():
                fwd_out = precision.in_float32(self.module.forward_train(batch))
                losses = self.compute_losses(fwd_out=fwd_out, batch=batch)
        finally:
            self.metrics = metrics
        if self._steps_done == self._num_steps and not self._fitting:
            self._log_policy_change(fwd_out[module_id], batch[module_id])
        self._descend(module_id, losses[module_id])
        return fwd_out, losses, {}

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """RLlib's PPO loss; without its diagnostics but in the last gradient step, whose are the update's metrics."""
        is_last = self._steps_done == self._num_steps
        if is_last or not self._own_loop or config.use_kl_loss or not config.use_critic:
            loss: Tensor = super().compute_loss_for_module(
                module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
            )
            return loss
        module = self.module[module_id].unwrapped()
        return policy_loss(
            module.get_train_action_dist_cls(),
            fwd_out[Columns.ACTION_DIST_INPUTS],
            module.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS)),
            batch,
            config,
            self.entropy_coeff_schedulers_per_module[module_id].get_current_value(),
        )

    def _log_policy_change(self, fwd_out: dict[str, Tensor], batch: dict[str, Any]) -> None:
        distribution = self.module[DEFAULT_MODULE_ID].unwrapped().get_train_action_dist_cls()
        inputs = fwd_out[Columns.ACTION_DIST_INPUTS]
        for name, value in policy_change(distribution, inputs, batch, self.config.clip_param).items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)

    def _descend(self, module_id: str, loss: Tensor) -> None:
        """One step of each of a module's optimisers."""
        optimizers = self.get_optimizers_for_module(module_id)
        for _, optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        (loss * self._share).backward()  # type: ignore[no-untyped-call]
        for name, optimizer in optimizers:
            if self._fitting:
                self._anneal(name, optimizer, self._steps_done)
                max_norm = self.config.world_model_grad_clip
            else:
                base = float(self._optimizer_lr_schedules[optimizer].get_current_value())
                self._set_optimizer_lr(optimizer, lr=base * self._policy_lr_scale)
                self._clip_policy_gradients(optimizer)
                max_norm = None
            if self._steps_done == 1 and any(p.grad is not None for p in optimizer.param_groups[0]["params"]):
                log_learning_rate(self.metrics, name, optimizer)  # on frames a fit is V's or M's alone
            self._left_out = self._left_out + clip_and_step(optimizer, max_norm)

    def _log_steps_trained_metrics(self, batch: Any) -> None:
        if not self._own_loop:
            super()._log_steps_trained_metrics(batch)

    def _log_metrics(self, batch: Any) -> None:
        if not self._own_loop:
            super()._log_metrics(batch)

    def _set_slicing_by_batch_id(self, batch: Any, *, value: bool) -> Any:
        return batch if self._own_loop else super()._set_slicing_by_batch_id(batch, value=value)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """RLlib's schedules; a fit has no policy rows, so PPO's KL and entropy coefficients stay as they are."""
        logger.debug("%s done at real step %s", "fit" if self._fitting else "update", timesteps)
        self._timestep = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._timestep)
        if left_out := int(self._left_out):
            logger.warning("%d gradient steps were left out: their gradients were not finite", left_out)
        if self._fitting:
            self._fit_losses.log(self.metrics, begins=self._fit_progress is None or not self._fit_progress[0])
            self._share_buffers()
            TorchLearner.after_gradient_based_update(self, timesteps=timesteps)
        else:
            if not self._own_loop:
                for name, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID):
                    log_learning_rate(self.metrics, name, optimizer)
            super().after_gradient_based_update(timesteps=timesteps)

    def _make_modules_ddp_if_necessary(self) -> None:
        """RLlib's own, but that a fit on images has gradients for V or for M alone, which DDP has to be told."""
        if self.config.num_learners > 1 and is_image(self.world_model.config.vae.observation_shape):
            settings = {**self.config.torch_ddp_kwargs, "find_unused_parameters": True}
            wrapped = TorchDDPRLModule(self.module[WORLD_MODEL_MODULE_ID], **settings)
            self.module.add_module(WORLD_MODEL_MODULE_ID, wrapped, override=True)
        super()._make_modules_ddp_if_necessary()

    def _clip_policy_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """RLlib's clipping of C's gradients, where it is configured."""
        if self.config.grad_clip is None:
            return
        params = self.filter_param_dict_for_optimizer(self._params, optimizer)
        clipped = self.postprocess_gradients_for_module(
            module_id=DEFAULT_MODULE_ID,
            config=self.config.get_config_for_module(DEFAULT_MODULE_ID),
            module_gradients_dict={pid: param.grad for pid, param in params.items()},
        )
        for pid, grad in clipped.items():
            params[pid].grad = grad

    # --- what the algorithm asks of learners --------------------------------------------------------------------------

    def set_normalisation(self, stats: dict[str, np.ndarray]) -> None:
        """Fixes the units of observations and rewards, once, after the random phase.

        Networks that come from another run have learnt theirs, and keep them.
        """
        tensors = {name: torch.tensor(value, device=self._device) for name, value in stats.items()}
        transferred = self.config.transferred_parts
        if VAE not in transferred:
            self.world_model.vae.set_normalisation(tensors["obs_mean"], tensors["obs_scale"])
        if MDN_RNN not in transferred:
            names = ("reward_mean", "reward_scale", "last_reward_scale", "termination_rate")
            self.world_model.mdn_rnn.set_normalisation(*(tensors[name] for name in names))

    def take_over(self, weights_ref: ray.ObjectRef, policy_ref: ray.ObjectRef | None = None) -> None:
        """Starts with weights of another run: some or all of the world model's, by name, and maybe all of C's."""
        self.world_model.load_state_dict(ray.get(weights_ref), strict=False)
        if policy_ref is not None:
            self.module[DEFAULT_MODULE_ID].unwrapped().load_state_dict(ray.get(policy_ref))

    def judge(self, windows_ref: ray.ObjectRef, seed: int | None) -> Judgement | None:
        """What learner 0 finds of M on fresh experience, for the gate; None from the others."""
        if self._learner_index:
            return None
        seed_process(seed)
        self.world_model.eval()
        try:
            return judge_world_model(
                self.world_model,
                self.module[DEFAULT_MODULE_ID].unwrapped(),
                ray.get(windows_ref),
                burn_in=self.config.burn_in,
                gamma=self.config.gamma,
                temperature=self.config.temperature,
            )
        finally:
            self.world_model.train()

    @torch.no_grad()
    def put_latents(self, frames_ref: ray.ObjectRef) -> ray.ObjectRef:
        """Reference to the latents [N, Z] of frames [N, *O]."""
        frames = ray.get(frames_ref)
        # In float32 whatever V is fitted in: bfloat16's rounding is as large as M's finest sigma.
        parts = [
            self.world_model.latents(torch.from_numpy(part.copy()).to(self._device))
            for part in np.array_split(frames, -(-len(frames) // FRAMES_AT_ONCE))
        ]
        return ray.put(torch.cat(parts).cpu().numpy())  # read back once: each read waits for the device

    def put_policy(self) -> ray.ObjectRef:
        """Reference to C's weights, what acting needs of them, as numpy arrays."""
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        return ray.put(convert_to_numpy(module.get_state(inference_only=True)))

    def put_world_model(self) -> ray.ObjectRef:
        """Reference to V's and M's weights and normalisation, as numpy arrays."""
        return ray.put(convert_to_numpy(self.world_model.state_dict()))

    # --- checkpoint --------------------------------------------------------------------------------------------------

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the KL coefficients, which it leaves out."""
        state = super().get_state(*args, **kwargs)
        state[TIMESTEP] = self._timestep
        state[CONFIGURED_KL_COEFF] = self.config.kl_coeff
        state[KL_COEFFS] = {mid: float(value) for mid, value in self.curr_kl_coeffs_per_module.items()}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores `get_state`; what was changed in the config since wins over the checkpoint's.

        That is how a resumed run and an exploited trial of Tune's PBT get what they ask for: Adam's state holds the old
        learning rates, and the schedulers' values stem from before.
        """
        # RLlib loads no weights whose number is below that of those it has: a state of before would lose its own.
        number: int = getattr(self, "_weights_seq_no")  # noqa: B009  (mypy cannot see RLlib's attribute)
        self._weights_seq_no = -1
        super().set_state(state)
        if self._weights_seq_no < 0:  # the state has no number
            self._weights_seq_no = number
        if TIMESTEP not in state:
            return  # weights alone
        kept = state[CONFIGURED_KL_COEFF] == self.config.kl_coeff
        self.curr_kl_coeffs_per_module.clear()  # made anew when read; a state from before the first update has none
        for module_id, value in state[KL_COEFFS].items() if kept else ():
            self.curr_kl_coeffs_per_module[module_id].data.fill_(value)
        # RLlib's schedulers keep no state: they have to be told how far the run has come.
        self._timestep = state[TIMESTEP]
        self.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].update(timestep=self._timestep)
        for optimizer, scheduler in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, lr=scheduler.update(timestep=self._timestep))
