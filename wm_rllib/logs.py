"""Named loggers of this package, in every process."""

from __future__ import annotations

import logging
import sys

ROOT = "wm_rllib"
QUIET = "warning"


def current_log_level() -> str:
    """The level that somebody has given this package's logger in this process, else `QUIET`; see `set_log_level`."""
    level = logging.getLogger(ROOT).level
    if not level:
        return QUIET
    name = logging.getLevelName(level)
    has_name = logging.getLevelName(name) == level
    return str(name).lower() if has_name else str(level)


def set_log_level(level: str) -> None:
    """Sets the level of all `wm_rllib.*` loggers in this process, and their handler.

    Args:
        level: "debug", "info", "warning", ..., or a number in digits, which is a level without a name.
    """
    logger = logging.getLogger(ROOT)
    logger.setLevel(int(level) if level.isdigit() else level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
