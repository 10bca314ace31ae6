"""Named loggers of this package, in every process."""

from __future__ import annotations

import logging
import sys

ROOT = "wm_rllib"


def set_log_level(level: str) -> None:
    """Sets the level ("debug", "info", "warning") of all `wm_rllib.*` loggers in this process, and their handler."""
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
