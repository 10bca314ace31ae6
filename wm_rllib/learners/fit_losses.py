"""Losses of a fit's gradient steps, on their device until the end, and what is reported of them."""

from __future__ import annotations

from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor, stack

from wm_rllib.columns import WORLD_MODEL_MODULE_ID

FIRST_SHARE = 0.05
"""Of a fit's gradient steps: its start."""
AT_START = "_at_start"
TOLD_AT_START = ("vae/reconstruction_loss", "mdn/nll")
"""Losses whose means over the first gradient steps of a fit are reported too: by how much it lowers them."""


class FitLosses:
    """Gathers scalars by name; nothing waits for the device before `log`."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        """Those of one gradient step."""
        self._steps.append(losses)

    def log(self, metrics: MetricsLogger, *, begins: bool) -> None:
        """Logs means over all steps since the last time, and forgets them.

        Args:
            metrics: The learner's.
            begins: Whether they are the first ones of a fit.
        """
        first = max(1, int(FIRST_SHARE * len(self._steps)))
        for name in self._steps[0]:
            values = stack([losses[name] for losses in self._steps])
            metrics.log_value((WORLD_MODEL_MODULE_ID, name), values.mean(), window=1)
            if begins and name in TOLD_AT_START:
                metrics.log_value((WORLD_MODEL_MODULE_ID, f"{name}{AT_START}"), values[:first].mean(), window=1)
        self._steps.clear()
