"""Every setting that YAML files, `--set` and the fluent config share: one table, one set of rules.

The table is in `settings/table.py`.
Defaults are not here: they live in `config.py` and `config_sections.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from wm_rllib.settings.table import BY_PATH, SECTIONS, SETTINGS, Setting
from wm_rllib.settings.types import rule_of


class SettingError(ValueError):
    """A setting that does not exist or has a value that is not allowed; the message is meant for the user."""


def _plain(value: Any) -> Any:
    """Return the value with numpy scalars and tuples, which Python callers use, as YAML would have them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _hint(setting: Setting, value: Any) -> str:
    """Return what to do about a wrong value."""
    adapter = setting.adapter
    if isinstance(value, float) and value.is_integer() and _allowed(adapter, int(value)):
        return f"write {int(value)}"
    if isinstance(value, str):
        for read in (int, float):
            try:
                if _allowed(adapter, read(value)):
                    return "write it without quotes"
            except ValueError:
                continue
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        return "one value; the command `sweep` draws from search spaces"
    if not isinstance(value, list | dict) and _allowed(adapter, [value]):
        return f"write [{value}]"
    return f"correct {setting.path}, or remove it to get the default"


def _allowed(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def accepts(setting: Setting, value: Any) -> bool:
    """Whether `check_value` would take the value."""
    return _allowed(setting.adapter, _plain(value))


def check_value(setting: Setting, value: Any, name: str | None = None) -> Any:
    """Return the value in the form in which YAML has it, or raise.

    Args:
        setting: The row of the table.
        value: What the user gave.
        name: What the user calls the setting; the YAML path if None.

    Raises:
        SettingError: Naming the key, the value, the rule and the fix.
    """
    value = _plain(value)
    try:
        return setting.adapter.validate_python(value)
    except ValidationError:
        rule, hint = rule_of(setting.type), _hint(setting, value)
        raise SettingError(f"{name or setting.path} is {value!r}, but must be {rule}. Fix: {hint}.") from None


def _is_search_space(value: Any) -> bool:
    # Tune puts its own objects where values will be; each trial's values are checked when it is built.
    return hasattr(value, "sample") or (isinstance(value, dict) and "grid_search" in value)


def check_attrs(config: Any) -> None:
    """Check every setting of a `WorldModelPPOConfig`; search spaces of Ray Tune are left alone.

    The environment is RLlib's to check: in Python it may also be a class or None. V and M may be classes as well.

    Raises:
        SettingError: For the first attribute that breaks its rule.
    """
    for setting in SETTINGS:
        if setting.attr is None or setting.attr == "env":
            continue
        value = getattr(config, setting.attr)
        if not _is_search_space(value) and not isinstance(value, type):
            name = setting.path if setting.attr == setting.leaf else f"{setting.attr} ({setting.path} in YAML)"
            check_value(setting, value, name)


def check_names(config: Any, names: Iterable[str]) -> None:
    """Check that settings of these names can be set on a `WorldModelPPOConfig`, as from a dict of Ray Tune.

    Raises:
        SettingError: For the first that does not exist; suggests the nearest.
    """
    for name in names:
        if name in vars(config) or isinstance(getattr(type(config), name, None), property):
            continue
        path = nearest_path(name)
        attr = BY_PATH[path].attr if path in BY_PATH else None
        near = [attr] if attr else difflib.get_close_matches(name, vars(config), n=1)
        fix = f"did you mean {near[0]}?" if near else "use the arguments of WorldModelPPOConfig's sections."
        if hasattr(config, name):
            fix = "write the arguments of that section alone, as latent_dim or num_dreamers."
        raise SettingError(f"unknown setting {name}. Fix: {fix}")


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in BY_PATH:
            yield path, value
        elif path not in SECTIONS:
            raise SettingError(_unknown_message(path))
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif value is not None:  # an empty section is a section whose keys are commented out
            raise SettingError(f"{path} is {value!r}, but must be a section. Fix: {_children(path)}.")


def _children(section: str) -> str:
    keys = sorted({path[len(section) + 1 :].split(".")[0] for path in BY_PATH if path.startswith(f"{section}.")})
    return f"give it keys of its own ({', '.join(keys)})"


FORMER_NAMES = {
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "train_batch_size": "train_batch_size_per_learner",
    "sgd_minibatch_size": "minibatch_size",
    "num_sgd_iter": "num_epochs",
    "fcnet_hiddens": "policy_hidden_dims",
    "evaluation_interval": "evaluation_interval_steps",
}
"""Names that RLlib's settings have, or had, to the names of ours."""


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def nearest_path(unknown: str) -> str | None:
    """Return the valid path or section that an unknown one most likely means, if there is one.

    A known name in the wrong section counts for more than letters in common, and RLlib's name of a setting, now or in
    its old API (`lr`, `num_workers`), leads to its path (`ppo.learning_rate`).
    """
    leaf = unknown.rpartition(".")[2]
    leaf = FORMER_NAMES.get(leaf, leaf)
    if named := next((setting.path for setting in SETTINGS if setting.attr == leaf), None):
        return named

    def score(path: str) -> tuple[float, float]:
        setting = BY_PATH.get(path)
        names = {path.rpartition(".")[2]} | ({setting.attr} if setting and setting.attr else set())
        return max(_similarity(leaf, name) for name in names), _similarity(unknown, path)

    best = max((*BY_PATH, *sorted(SECTIONS)), key=lambda path: (sum(score(path)), path in BY_PATH))
    return best if max(score(best)) >= 0.6 else None


def _unknown_message(path: str) -> str:
    if path.startswith("env.config."):
        name = path.removeprefix("env.config.")
        return f"unknown setting {path}: env.config is one value. Fix: --set 'env.config={{{name}: ...}}'."
    nearest = nearest_path(path)
    if nearest:
        return f"unknown setting {path}. Fix: did you mean {nearest}?"
    top = sorted({setting.path.split(".")[0] for setting in SETTINGS})
    return f"unknown setting {path}. Fix: use one of the sections {', '.join(top)}."


def find_setting(path: str) -> Setting:
    """Return the setting of a dotted path.

    Raises:
        SettingError: If there is none; suggests the nearest.
    """
    if path in SECTIONS:
        raise SettingError(f"{path} is a section, not a setting. Fix: {_children(path)}.")
    if path not in BY_PATH:
        raise SettingError(_unknown_message(path))
    return BY_PATH[path]


def flat_tree(tree: Any) -> dict[str, Any]:
    """Return the values of a YAML tree by dotted path, not checked yet.

    Args:
        tree: What `yaml.safe_load` returns; None (an empty file) is an empty tree.

    Raises:
        SettingError: For an unknown key, or one that is given twice.
    """
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise SettingError(f"the settings are {tree!r}, but must be sections with keys. Fix: see tune_configs/.")
    values: dict[str, Any] = {}
    for path, value in _leaves(tree, ""):
        if path in values:
            raise SettingError(f"{path} is given twice. Fix: remove one of the two.")
        values[path] = value
    return values


def parse_tree(tree: Any) -> dict[str, Any]:
    """Return the checked values of a YAML tree by dotted path.

    Args:
        tree: What `yaml.safe_load` returns; None (an empty file) is an empty tree.

    Raises:
        SettingError: For an unknown key, a wrong type or a value out of range.
    """
    return {path: check_value(BY_PATH[path], value) for path, value in flat_tree(tree).items()}


def to_tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted path as a nested tree, in the order of the table; the inverse of `parse_tree`."""
    return to_nested({setting.path: values[setting.path] for setting in SETTINGS if setting.path in values})


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested tree's values by dotted path, whatever they are; the inverse of `to_nested`."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def to_nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted path as a nested tree."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
