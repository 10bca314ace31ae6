"""The flags of `report` and `dream`, and the values that they share."""

from __future__ import annotations

import argparse
from typing import Any

from wm_rllib.cli.output import LOG_LEVELS
from wm_rllib.runs.errors import CommandError
from wm_rllib.settings.yaml_files import parse_yaml


def add_report(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `report` to the commands."""
    about = "write one HTML file on a run: may its dream be trusted?"
    parser = commands.add_parser("report", help=about, description=about, allow_abbrev=False)
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder; the run may still be going on")
    add("--output", metavar="FILE.html", help="the report; default RUN/report.html")
    add("--episodes", metavar="N", help="fresh real episodes, of the policy and of random actions each (20)")
    add("--seed", metavar="S", help="seed of these episodes and of the dreams (0)")
    add("--no-dream", action="store_true", help="leave the dream out: no checkpoint is loaded, nothing is played")
    add("--tensorboard", action="store_true", help="also write the figures and plots to RUN/tensorboard/report")
    _add_common(parser)


def add_dream(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `dream` to the commands."""
    about = "watch a dream beside reality, or steer it (--play)"
    parser = commands.add_parser("dream", help=about, description=about, allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, or run folder (its best, else its last)")
    add("--output", metavar="FILE.gif|.mp4|.png", help="the animation, or a sheet of its frames (dream.gif)")
    add("--horizon", metavar="N", help="steps (200)")
    add("--seed", metavar="S", help="seed of the start and of the dream (0)")
    add("--temperature", metavar="T", help="temperature of M's mixture; default: the run's")
    add("--env", metavar="ID", help="environment; default: the one it was trained in")
    add("--play", action="store_true", help="serve a page on 127.0.0.1 where you steer inside the dream")
    add("--port", metavar="N", help="port of that page; default: a free one")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show warnings")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers")


def whole_number(text: str | None, flag: str, low: int, high: int, default: int) -> int:
    """Return a flag's whole number; the default if the flag is not given.

    Raises:
        CommandError: For anything else, or one that is out of range.
    """
    if text is None:
        return default
    value = parse_yaml(text, flag)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CommandError(f"{flag} is {text}, but must be a whole number from {low} to {high}. Fix: {flag} {default}.")
    return value
