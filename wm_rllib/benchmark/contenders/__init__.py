"""Who takes part. A contender is a name, a line about it, and a function that makes its trainer."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

from wm_rllib.benchmark.contenders.dreamerv3 import DREAMERV3
from wm_rllib.benchmark.contenders.random_policy import RANDOM
from wm_rllib.benchmark.contenders.rllib_ppo import RLLIB_PPO
from wm_rllib.benchmark.contenders.sb3_ppo import SB3_PPO
from wm_rllib.benchmark.contenders.world_model import WORLD_MODEL_CONTENDERS
from wm_rllib.benchmark.trainer import Contender
from wm_rllib.settings.settings import SettingError, check_value, find_setting
from wm_rllib.settings.yaml_files import parse_yaml

CONTENDERS: dict[str, Contender] = {
    contender.name: contender for contender in (*WORLD_MODEL_CONTENDERS, RLLIB_PPO, DREAMERV3, SB3_PPO, RANDOM)
}

_NEXT_SETTING = re.compile(r",(?=\s*[A-Za-z_][\w.]*=)")  # lists have commas too


def find_contender(spec: str) -> tuple[Contender, dict[str, Any]]:
    """Return the contender that a spec means and its settings by dotted path.

    Args:
        spec: A name, or the import path "package.module:CONTENDER" of a `Contender` of your own; for one that takes
            settings `name@key.path=value,key.path=value`.

    Raises:
        SettingError: Naming the key, the value, the rule and the fix.
    """
    name, at, text = spec.partition("@")
    contender = _plug_in(name) if ":" in name else CONTENDERS.get(name)
    if contender is None:
        raise SettingError(_unknown(name))
    if at and not contender.takes_settings:
        raise SettingError(
            f"contender {spec!r}: {name} takes no settings. "
            f"Fix: {name}, or settings on a wm contender (wm@key.path=value)."
        )
    own = _parse_settings(spec, text) if at else {}
    return contender, {**contender.values, **own}


def _plug_in(path: str) -> Contender:
    module_name, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingError(
            f"contender {path!r} cannot be imported ({error}). Fix: package.module:CONTENDER, on the Python path."
        ) from None
    if not isinstance(found, Contender):
        raise SettingError(
            f"contender {path!r} is {found!r}, but must be a wm_rllib.benchmark.trainer.Contender. Fix: make it one."
        )
    return found


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, CONTENDERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(CONTENDERS)}, or wm@key.path=value."
    return f"unknown contender {name!r}. Fix: {hint}"


def _parse_settings(spec: str, text: str) -> Mapping[str, Any]:
    values = {}
    for item in _NEXT_SETTING.split(text):
        path, equals, value = item.partition("=")
        if not equals or not value.strip():
            raise SettingError(f"contender {spec!r}: {item!r} has no value. Fix: wm@key.path=value,key.path=value.")
        setting = find_setting(path.strip())
        name = f"contender {spec!r}: {setting.path}"
        if setting.path == "seed" or setting.path.startswith("env.") or setting.attr is None:
            raise SettingError(f"{name} is set by the benchmark. Fix: remove it; see `benchmark run --help`.")
        values[setting.path] = check_value(setting, parse_yaml(value, name), name)
    return values
