"""The trainable of a sweep."""

from __future__ import annotations

from typing import Any

from ray.tune.result import SHOULD_CHECKPOINT

from wm_rllib.algorithm import WorldModelPPO


class SweepTrial(WorldModelPPO):
    """WorldModelPPO that has Tune write a checkpoint at each evaluation: what was measured can be had.

    PBT rebuilds a trial that takes over another one's checkpoint, since Trainable.reset_config is not implemented:
    every part, remote ones too, is made from the changed config before the checkpoint is restored into it.
    """

    def __init__(self, config: Any = None, *args: Any, **kwargs: Any):
        self._trial_config = dict(config or {})
        super().__init__(config, *args, **kwargs)

    def step(self) -> dict[str, Any]:
        """One iteration."""
        results = super().step()
        results[SHOULD_CHECKPOINT] = bool(self._report.evaluation)
        return results

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tune's metrics; `config` is the trial's own, where RLlib has all its several hundred settings."""
        return {**super().get_auto_filled_metrics(*args, **kwargs), "config": dict(self._trial_config)}
