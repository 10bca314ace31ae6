"""The exact merge in the learner: valid real and imagined rows as one batch, under statistics all learners share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import SampleBatch
from torch import Tensor

from wm_rllib.learners.advantages import standardise
from wm_rllib.learners.agreement import mean_and_std, moments, num_learners, sum_over_learners
from wm_rllib.learners.dreamed_rows import COLUMNS, Block, RowColumns, dreamed_rows
from wm_rllib.mixing import imagined_rows, real_rows_for
from wm_rllib.replay.fresh import Fresh
from wm_rllib.rl_modules.policy_module import WorldModelPPOModule, moved_units

logger = logging.getLogger(__name__)


class NothingToLearnError(Exception):
    """A learner was left without rows, as their processes died; no learner updates, and the driver counts it."""


class MergingLearner(PPOTorchLearner):
    """PPOTorchLearner that makes the merged batch; `WorldModelPPOLearner` says of what, and trains on it."""

    def build(self) -> None:
        """Builds RLlib's learner."""
        self._imagined: Sequence[ray.ObjectRef] | None = None
        self._real_rows: int | None = None
        self._ratio: float | None = None
        self._expected_rows: tuple[int, int] | None = None
        self._share = 1.0
        """Of this learner's rows in those of all, times their number: the weight of a loss that is a mean over them."""
        super().build()

    def _merged(self, training_data: TrainingData) -> tuple[str, RowColumns]:
        """The exact merge of this learner's real and imagined rows.

        Raises:
            NothingToLearnError: This learner, or another one, has no rows; all learners raise it.
        """
        imagined = self._imagined_columns(_get_available(self._imagined)) if self._imagined else None
        real = greedy = None
        if training_data.episodes:
            greedy = self._greedy_rows(training_data.episodes)  # RLlib will append a row to each
            batch = super()._make_batch_if_necessary(training_data)
            real = self._real_columns(batch.policy_batches[DEFAULT_MODULE_ID])
        self._standardise(real, imagined, greedy)
        if real is not None and self._real_rows is not None:
            real = self._choose(real, self._real_rows)
        real, imagined = self._keep_ratio(real, imagined)
        sources = [source for source in (real, imagined) if source is not None]
        self._agree_on_targets(sources)
        self._log_rows(_num_rows(real), _num_rows(imagined))
        return DEFAULT_MODULE_ID, self._merge(sources)

    def _agree_on_experience(self, training_data: TrainingData) -> None:
        """Whether there is something to learn from without dreams.

        Raises:
            NothingToLearnError: This learner, or another one, has no episodes; all learners raise it.
        """
        is_empty = torch.tensor([float(not training_data.episodes)], dtype=torch.float64, device=self._device)
        if sum_over_learners(is_empty).item():
            raise NothingToLearnError

    def _keep_ratio(
        self, real: RowColumns | None, imagined: RowColumns | None
    ) -> tuple[RowColumns | None, RowColumns | None]:
        """Leaves out surplus dreams, and cuts one source when rows of the other were lost on the way.

        They are lost with the process that had put them into the object store.
        """
        num_real, num_imagined = _num_rows(real), _num_rows(imagined)
        expected_real, expected_imagined = self._expected_rows or (num_real, num_imagined)
        if imagined is not None and num_imagined > expected_imagined:
            imagined, num_imagined = self._choose(imagined, expected_imagined), expected_imagined
        if self._ratio is None:
            return real, imagined
        if (expected_real and not num_real) or (expected_imagined and not num_imagined):
            return None, None
        if (num_real, num_imagined) == (expected_real, expected_imagined) or real is None or imagined is None:
            return real, imagined
        wanted = imagined_rows(num_real, self._ratio)
        if wanted <= num_imagined:
            return real, self._choose(imagined, wanted)
        kept = real_rows_for(num_imagined, self._ratio)
        if not kept:
            return self._choose(real, 0), imagined
        # What real rows are rounded by in each learner would add up over them, in dreams: these are cut to fit.
        kept -= imagined_rows(kept, self._ratio) > num_imagined and kept > 1
        fitting = min(num_imagined, imagined_rows(kept, self._ratio))
        return self._choose(real, kept), self._choose(imagined, fitting)

    def _greedy_rows(self, episodes: list[SingleAgentEpisode]) -> Tensor:
        """Which of the rows of episodes [N] were acted greedily."""
        lengths = torch.tensor([len(episode) for episode in episodes], device=self._device)
        is_greedy = torch.tensor([Fresh.of(episode).is_greedy for episode in episodes], device=self._device)
        return is_greedy.repeat_interleave(lengths)

    def _standardise(self, real: RowColumns | None, imagined: RowColumns | None, greedy: Tensor | None) -> None:
        """Advantages to zero mean and unit deviation, each source by itself, over the rows of all learners.

        Those of greedy rows [N] are 0 instead: such actions were not drawn from the policy, whose gradient would make
        it narrower for each that went well, and wider for each that did not. The critic learns from them.
        """
        sources = (real, imagined)
        own = [moments(None if source is None else source[Postprocessing.ADVANTAGES]) for source in sources]
        if real is not None and greedy is not None:
            own[0] = moments(real[Postprocessing.ADVANTAGES][~greedy])
        totals = sum_over_learners(torch.stack([column.to(self._device) for column in own]))
        for source, total in zip(sources, totals, strict=True):
            if source is not None:
                source[Postprocessing.ADVANTAGES] = standardise(source[Postprocessing.ADVANTAGES], mean_and_std(total))
        if real is not None and greedy is not None:
            real[Postprocessing.ADVANTAGES] = real[Postprocessing.ADVANTAGES].masked_fill(greedy, 0.0)

    def _leave_out_greedy(self, batch: SampleBatch, greedy: Tensor) -> None:
        """The same for RLlib's own batch, whose advantages each learner standardises by itself."""
        mask, column = batch[Columns.LOSS_MASK], batch[Postprocessing.ADVANTAGES]
        advantages = column[mask]
        drawn = mean_and_std(moments(advantages[~greedy]))
        column[mask] = standardise(advantages, drawn).masked_fill(greedy, 0.0).to(column.dtype)

    def _agree_on_targets(self, sources: list[RowColumns]) -> None:
        """Moves the critic's units towards the mean and standard deviation of this update's value targets.

        All learners take the same units, from their targets together. Without dreams nothing is rescaled: the update at
        ratio 0 is RLlib's own (contract 1).
        """
        targets = torch.cat([source[Postprocessing.VALUE_TARGETS] for source in sources]) if sources else None
        own = moments(targets).to(self._device)
        is_empty = (own[:1] == 0).to(own)
        total = sum_over_learners(torch.cat([own, is_empty]))
        if total[3] > 0:
            raise NothingToLearnError
        self._share = float(own[0] * num_learners() / total[0])
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        if isinstance(module, WorldModelPPOModule):
            module.rescale_values(*moved_units(module.value_mean, module.value_scale, *mean_and_std(total)))

    def _choose(self, columns: RowColumns, count: int) -> RowColumns:
        keep = torch.randperm(len(columns[Columns.OBS]), device=self._device)[:count]
        return {name: column[keep] for name, column in columns.items()}

    def _real_columns(self, batch: SampleBatch) -> dict[str, Tensor]:
        """The valid rows of RLlib's batch (it appends one masked row an episode), with their advantages as they are.

        RLlib has standardised them, over this learner's rows and the masked ones.
        """
        mask = batch[Columns.LOSS_MASK]
        columns = {name: batch[name][mask] for name in COLUMNS}
        targets = columns[Postprocessing.VALUE_TARGETS]
        self._log_policy_metric("real_value_target", targets.mean())
        with torch.no_grad():
            columns[Postprocessing.ADVANTAGES] = targets - self._values(columns[Columns.OBS])
        return columns

    def _imagined_columns(self, shards: list[list[Block]]) -> RowColumns | None:
        """All rows of the dreams, under the current critic; None if there are none."""
        blocks = [block for shard in shards for block in shard]
        if not blocks:
            return None
        how = {"gamma": self.config.gamma, "lambda_": self.config.lambda_, "device": self._device}
        columns = dreamed_rows(blocks, self._values, **how)
        self._log_policy_metric("imagined_value_target", columns[Postprocessing.VALUE_TARGETS].mean())
        return columns

    def _values(self, features: Tensor) -> Tensor:
        """The current critic's values [N] of features [N, F]."""
        return self.module[DEFAULT_MODULE_ID].unwrapped().compute_values({Columns.OBS: features})

    def _merge(self, sources: list[RowColumns]) -> RowColumns:
        """All sources' rows as one batch in random order: RLlib does not shuffle when num_epochs is 1."""
        order = torch.randperm(sum(map(_num_rows, sources)), device=self._device)
        return {
            name: torch.cat([source[name].to(sources[0][name].dtype) for source in sources])[order] for name in COLUMNS
        }

    def _log_rows(self, real: int, imagined: int) -> None:
        """The rows that were really merged, for the report."""
        logger.debug("merged %d real and %d imagined rows", real, imagined)
        self.metrics.log_value((DEFAULT_MODULE_ID, "num_real_rows"), real, window=1)
        self.metrics.log_value((DEFAULT_MODULE_ID, "num_imagined_rows"), imagined, window=1)

    def _log_policy_metric(self, name: str, value: Tensor) -> None:
        self.metrics.log_value((DEFAULT_MODULE_ID, name), value.detach(), window=1)

    def _update_module_kl_coeff(self, *, module_id: str, config: Any, kl_loss: float) -> None:
        """RLlib's rule, by the mean KL over all learners: each by its own would soon have another loss to minimise."""
        mean = sum_over_learners(torch.tensor(float(kl_loss), dtype=torch.float64, device=self._device))
        super()._update_module_kl_coeff(module_id=module_id, config=config, kl_loss=float(mean) / num_learners())


def _get_available(refs: Sequence[ray.ObjectRef]) -> list[Any]:
    """The referenced objects, less those whose owner has died since: Ray gives such objects up."""
    available = []
    for ref in refs:
        try:
            available.append(ray.get(ref))
        except (ray.exceptions.OwnerDiedError, ray.exceptions.ObjectLostError) as error:
            logger.warning("a dream was lost with its dreamer: %s", error)
    return available


def _num_rows(columns: RowColumns | None) -> int:
    return 0 if columns is None else len(columns[Columns.OBS])
