"""The level of this package's loggers, taken from one process and set in another."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from wm_rllib.logs import QUIET, ROOT, current_log_level, set_log_level


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, left as it was."""
    logger = logging.getLogger(ROOT)
    level, handlers, propagate = logger.level, list(logger.handlers), logger.propagate
    yield logger
    logger.setLevel(level)
    logger.handlers, logger.propagate = handlers, propagate


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, 15, 25])
def test_a_level_is_the_same_in_the_other_process(logger: logging.Logger, level: int):
    logger.setLevel(level)
    told = current_log_level()
    logger.setLevel(logging.CRITICAL)
    set_log_level(told)
    assert logger.level == level


def test_nobody_has_said_anything(logger: logging.Logger):
    logger.setLevel(logging.NOTSET)
    assert current_log_level() == QUIET
