"""The command `settings`: all of them with defaults, ranges and names in Python; docs/settings.md is its output."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wm_rllib.runs.errors import CommandError
from wm_rllib.settings.table import SETTINGS, Setting
from wm_rllib.settings.types import SCHEDULE_RULE, rule_of

METHODS = (
    *("environment", "env_runners", "world_model", "dreamers", "training", "learners", "evaluation"),
    *("debugging", "resources"),
)
"""Of `WorldModelPPOConfig`: the first one that takes an attribute is shown."""


@dataclass(frozen=True)
class Described:
    """A setting as the user sees it.

    Attributes:
        setting: The row of the table.
        default: As YAML would have it.
        python: The call on `WorldModelPPOConfig`, or "" where only YAML and `--set` have it.
    """

    setting: Setting
    default: str
    python: str


def run(args: argparse.Namespace) -> int:
    """Prints the settings whose key or meaning has a text in it; returns the exit code."""
    wanted = (args.text or "").lower()
    rows = [row for row in described() if wanted in row.setting.path.lower() or wanted in row.setting.doc.lower()]
    if not rows:
        raise CommandError(f"no setting has {args.text!r} in its key or meaning. Fix: settings without it lists all.")
    print(markdown(rows) if args.markdown else plain(rows))
    return 0


def described() -> list[Described]:
    """All settings, in the order of the table."""
    from wm_rllib.config import WorldModelPPOConfig

    config = WorldModelPPOConfig()
    methods = _methods_of(WorldModelPPOConfig)
    return [Described(setting, _default(config, setting), methods.get(setting.attr or "", "")) for setting in SETTINGS]


def _default(config: Any, setting: Setting) -> str:
    value = getattr(config, setting.attr) if setting.attr else None
    return json.dumps(value).replace("Infinity", ".inf")


def _methods_of(config_class: type) -> dict[str, str]:
    """The call that sets an attribute, by attribute; RLlib's own methods and what they hand on are among them."""
    found: dict[str, str] = {}
    for name in METHODS:
        for parent in config_class.__mro__:
            for parameter in inspect.signature(vars(parent)[name]).parameters if name in vars(parent) else ():
                found.setdefault(parameter, f".{name}({parameter}=)")
    return found


def plain(rows: Sequence[Described]) -> str:
    """For a terminal."""
    blocks = []
    for row in rows:
        python = f"  {row.python}" if row.python else ""
        blocks.append(
            f"{row.setting.path} = {row.default}{python}\n    {row.setting.doc} [{rule_of(row.setting.type)}]"
        )
    return "\n".join(blocks)


def markdown(rows: Sequence[Described]) -> str:
    """For docs/settings.md."""
    lines = ["| YAML, `--set` | Python | default | values | meaning |", "|---|---|---|---|---|"]
    for row in rows:
        python = f"`{row.python}`" if row.python else ""
        rule = rule_of(row.setting.type).replace(SCHEDULE_RULE, "or a schedule")  # the page says once what that is
        cells = (f"`{row.setting.path}`", python, f"`{row.default}`", rule, row.setting.doc)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
