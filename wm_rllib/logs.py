"""Named loggers of this package, in every process."""

from __future__ import annotations

import logging
import sys

ROOT = "wm_rllib"
QUIET = "warning"


def current_log_level() -> str:
    """The level that somebody has given this package's logger in this process, else `QUIET`."""
    level = logging.getLogger(ROOT).level
    return logging.getLevelName(level).lower() if level else QUIET


def set_log_level(level: str) -> None:
    """Sets the level ("debug", "info", "warning") of all `wm_rllib.*` loggers in this process, and their handler."""
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
