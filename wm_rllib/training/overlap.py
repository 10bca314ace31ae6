"""The overlapping iteration: env runners and dreamers work ahead of the learners.

Iteration k, with what else runs at the same time:

    learners      |   fit k   | update k.1 | ... | update k.R |  fit k+1  | ...
    dreamers      |   k.1 ...            k.R       k+1.1 ...                      at most `max_dreams_in_flight` ahead
    env runners   |   real steps of k+1 ...                   | of k+2 ...

What an iteration learns from was acted and dreamed with weights of the iteration before, or newer ones: its staleness
is 1 at most, unless something came late. Real rows are not counted yet when their dreams are ordered, so the order is
for as many as may come, and the surplus is left out of the merge: the ratio is exact in every update.
"""

from __future__ import annotations

from collections import deque

from wm_rllib.dreamers.orders import DreamHarvest, DreamTicket
from wm_rllib.env_runners.collection import RealExperience
from wm_rllib.mixing import AUTO, imagined_rows, ratio_at, split_evenly
from wm_rllib.training.gating import choose_imagination
from wm_rllib.training.stages import Stages


class OverlappingTraining:
    """Mixed iterations with requests in flight from one to the next.

    Args:
        stages: What an iteration consists of.
    """

    def __init__(self, stages: Stages):
        self._stages = stages
        self._samples = stages.sampling
        self._tickets: deque[DreamTicket] = deque()
        self._banked: RealExperience | None = None
        self._num_orders = 0

    def train_mixed(self) -> None:
        """One iteration, as `phases.train_mixed`, with sampling and dreaming of the next one under way."""
        stages = self._stages
        real = self._next_real()
        ratio, horizon = choose_imagination(stages, real)
        stages.report.configured_ratio = ratio
        rows = self._rows(sum(real.rows), ratio)
        rounds = stages.num_rounds if rows else 1
        if ratio:
            self._order(rows, rounds, ratio, horizon)  # beside the fit
        else:
            self._drop_tickets()
        stages.fit_owed()
        for index in range(rounds):
            if stages.is_cut_short:
                return
            harvest = self._take(rows, horizon, index) if rows else None
            if ratio:
                self._order(rows, rounds - index - 1, ratio, horizon)  # beside the update
            stages.update(real, harvest, rows, ratio, index, rounds)

    def settle(self) -> None:
        """Waits for the real steps in flight and takes them in, so that a checkpoint counts what its replay holds.

        This process learns from them in the next iteration. A run that is resumed from the checkpoint does not have
        their features: it counts them as dropped.
        """
        if not self._samples.in_flight:
            return
        parts = self._samples.finish(self._stages.config.sample_timeout_s)
        self._banked = self._stages.take_in(parts)
        self._stages.parts.state.banked_rows = sum(self._banked.rows)

    def discard(self) -> None:
        """Gives up the dreams in flight and the steps taken in: a state was restored in which they never happened."""
        self._drop_tickets()
        self._banked = None

    @property
    def num_dreams_in_flight(self) -> int:
        """Dream batches that were ordered and not used yet."""
        return len(self._tickets)

    @property
    def num_banked_rows(self) -> int:
        """Real rows that `settle` took in and that this process still has."""
        return sum(self._banked.rows) if self._banked else 0

    # --- real experience ---------------------------------------------------------------------------------------------

    def _next_real(self) -> RealExperience:
        """The real experience of this iteration; that of the next one is under way when this returns.

        But for an iteration that is cut short, after which there may be none.
        """
        stages = self._stages
        real, self._banked = self._banked, None
        if real is None:
            if not self._samples.in_flight:
                self._sample("collect")
            with stages.report.stage("wait_sample"):
                parts = self._samples.finish(stages.config.sample_timeout_s)
            self._sample_ahead()
            stages.report.add_seconds("sample", max((part.seconds for part in parts), default=0.0))
            real = stages.take_in(parts)
        else:
            self._sample_ahead()
        stages.parts.state.banked_rows = 0
        stages.count(real)
        return real

    def _sample_ahead(self) -> None:
        if not self._stages.is_cut_short:  # the checkpoint that is to come would wait for these steps
            self._sample("collect ahead")

    def _sample(self, stage: str) -> None:
        num_timesteps = self._stages.config.total_train_batch_size
        self._samples.start(self._stages.request(num_timesteps, random_actions=False, stage=stage))

    # --- dreams ------------------------------------------------------------------------------------------------------

    def _rows(self, num_real: int, ratio: float) -> int:
        return self._stages.config.dream_batch_size if ratio == 1.0 else imagined_rows(num_real, ratio)

    def _order(self, rows: int, rounds: int, ratio: float, horizon: int) -> None:
        """Orders dream batches up to the limit: for the rounds that are left, then for the next iteration's.

        More than an iteration uses would wait in line until they are too old.
        """
        stages = self._stages
        assert stages.parts.pool is not None
        while not stages.is_cut_short and len(self._tickets) < min(
            stages.config.max_dreams_in_flight, stages.num_rounds
        ):
            ahead = rows if len(self._tickets) < rounds else self._rows_ahead(ratio)
            if not ahead:
                return
            seed = stages.seed(f"dream ahead/{self._num_orders}")
            self._num_orders += 1
            self._tickets.append(stages.parts.pool.order_ahead(stages.dream_order(ahead, horizon), seed))

    def _rows_ahead(self, ratio: float) -> int:
        """Imagined rows that the next iteration may need."""
        configured = self._stages.config.imagination_ratio
        if configured != AUTO:
            # The next iteration begins, in real steps, where this one's were counted.
            ratio = ratio_at(configured, self._stages.parts.state.num_env_steps)
        return self._rows(self._samples.most_rows, ratio)

    def _take(self, rows: int, horizon: int, index: int) -> DreamHarvest:
        """A round's dreams; what was not ordered ahead, or was lost, is ordered now."""
        stages = self._stages
        if not self._tickets:
            return stages.dream(rows, horizon, index)
        assert stages.parts.pool is not None
        with stages.report.stage("wait_dream"):
            harvest = stages.parts.pool.gather(
                self._tickets.popleft(),
                split_evenly(rows, stages.num_shards),
                lambda attempt: stages.seed(f"dream/{index}/{attempt}"),
                stages.is_stale,
            )
        stages.report.add_seconds("dream", harvest.slowest_s)
        stages.report.dropped_rows += harvest.dropped_rows
        return harvest

    def _drop_tickets(self) -> None:
        pool = self._stages.parts.pool
        while self._tickets and pool is not None:
            pool.drop(self._tickets.popleft())
