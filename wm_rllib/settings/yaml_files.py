"""Reading and writing YAML as this project means it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wm_rllib.atomic_files import write_atomically
from wm_rllib.settings.settings import SettingError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number, as YAML 1.2 does, and refuses a key given twice."""


# PyYAML follows YAML 1.1, where a number with an exponent needs a dot and a sign: 1e-3 would be a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"key {twice} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: The YAML text.
        source: What to call it in an error.

    Raises:
        SettingError: If it is no YAML.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingError(f"{source} is not valid YAML: {_problem(error)}. Fix: correct that line.") from None
    except RecursionError:
        raise SettingError(f"{source} is nested too deep. Fix: write it flatter.") from None
    except ValueError as error:  # a date that there is not, which YAML takes for one
        raise SettingError(f"{source} is not valid YAML: {error}. Fix: put it into quotes.") from None
    if _holds_itself(value, ()):
        raise SettingError(f"{source} has an alias within what it stands for. Fix: write it out.")
    return value


def _holds_itself(value: Any, above: tuple[int, ...]) -> bool:
    if not isinstance(value, (list, dict)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return id(value) in above or any(_holds_itself(part, (*above, id(value))) for part in parts)


def read_yaml(path: str | Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        SettingError: If there is no such file, it cannot be read, or it is no YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SettingError(f"cannot read {path}: {reason}. Fix: give the path of a YAML file.") from None
    return parse_yaml(text, str(path))


def write_yaml(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree to a YAML file, atomically."""
    write_atomically(path, yaml.safe_dump(dict(tree), sort_keys=False))
