"""What reaches the terminal: our own lines, and Ray's and RLlib's only with --verbose."""

from __future__ import annotations

import logging
import os
import warnings

import gymnasium as gym

from wm_rllib.logs import set_log_level

LOG_LEVELS = ("debug", "info", "warning")


def configure_output(*, verbose: bool, log_level: str | None) -> None:
    """Silence what users of this program need not see, and set up our named loggers in this process.

    Args:
        verbose: Leave everything as it is.
        log_level: Level of the `wm_rllib.*` loggers; None is warning.
    """
    set_log_level(log_level or "warning")
    if verbose:
        return
    # Ray's processes inherit the environment, so it is set before they start.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    warnings.simplefilter("ignore")
    gym.logger.min_level = logging.ERROR
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
