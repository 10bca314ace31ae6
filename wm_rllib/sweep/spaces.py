"""Search spaces: what stands in a sweep's YAML in place of a setting's value.

`{uniform: [a, b]}`, `{loguniform: [a, b]}` and `{integer: [a, b]}` (both ends included) draw between two bounds,
`{choice: [...]}` draws from a list, `{grid: [...]}` tries all of a list. Ray is imported only when a sweep starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wm_rllib.settings.settings import SettingError, accepts, check_value
from wm_rllib.settings.table import Setting

UNIFORM, LOGUNIFORM, INTEGER, CHOICE, GRID = "uniform", "loguniform", "integer", "choice", "grid"
INTERVALS = (UNIFORM, LOGUNIFORM, INTEGER)
KINDS = (*INTERVALS, CHOICE, GRID)
NOT_SEARCHABLE = ("env.", "evaluation.", "checkpoint.", "stop.", "device")
"""Settings that trials share: they say what is measured, and how."""


@dataclass(frozen=True)
class Space:
    """A search space of one setting, already checked.

    Attributes:
        setting: Whose values it holds.
        kind: One of `KINDS`.
        arguments: The two bounds of an interval, else the values.
    """

    setting: Setting
    kind: str
    arguments: tuple[Any, ...]

    @property
    def attr(self) -> str:
        """The setting's attribute on the config, which is its key for Tune."""
        assert self.setting.attr is not None
        return self.setting.attr

    @property
    def yaml(self) -> dict[str, list[Any]]:
        """The space as it stands in YAML."""
        return {self.kind: list(self.arguments)}

    def for_tune(self) -> Any:
        """The space as Tune's searchers know it."""
        from ray import tune

        if self.kind == GRID:
            return tune.grid_search(list(self.arguments))
        if self.kind == CHOICE:
            return tune.choice(list(self.arguments))
        low, high = self.arguments
        if self.kind == INTEGER:
            return tune.randint(low, high + 1)
        return tune.uniform(low, high) if self.kind == UNIFORM else tune.loguniform(low, high)

    def for_pbt(self) -> Any:
        """The space as PBT mutates it: a list's value moves to a neighbour, a number is scaled."""
        return list(self.arguments) if self.kind == CHOICE else self.for_tune()


def parse_space(setting: Setting, given: Mapping[Any, Any]) -> Space:
    """Return the search space that stands in place of a setting's value.

    Raises:
        SettingError: Naming the key, the value, the rule and the fix.
    """
    _check_searchable(setting, given)
    kind = next(iter(given), None)
    if len(given) != 1 or kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"for instance {{{CHOICE}: [...]}}."
        raise SettingError(f"{setting.path} is {dict(given)!r}, but a search space is one of {_kinds()}. Fix: {hint}")
    arguments = given[kind]
    if kind in INTERVALS:
        return Space(setting, kind, _bounds(setting, kind, arguments))
    return Space(setting, kind, _values(setting, kind, arguments))


def _kinds() -> str:
    return ", ".join(f"{{{kind}: [...]}}" for kind in KINDS)


def _check_searchable(setting: Setting, given: Any) -> None:
    if setting.path.startswith(NOT_SEARCHABLE):
        raise SettingError(
            f"{setting.path} is {dict(given)!r}, but cannot be searched: it must be the same for all trials, or their "
            "results would not be comparable. Fix: give it one value."
        )


def _bounds(setting: Setting, kind: str, arguments: Any) -> tuple[float, float]:
    numeric = isinstance(arguments, list) and len(arguments) == 2 and all(map(_is_number, arguments))
    if not numeric or not arguments[0] < arguments[1]:
        raise SettingError(
            f"{setting.path} is {{{kind!r}: {arguments!r}}}, but {kind} must have two numbers [low, high] with low "
            f"below high. Fix: for instance {{{kind}: [1, 2]}}."
        )
    low, high = arguments
    if kind == LOGUNIFORM and low <= 0:
        raise SettingError(
            f"{setting.path} is {{{kind!r}: {arguments!r}}}, but {kind} must have bounds above 0. "
            f"Fix: raise the lower one, or {{{UNIFORM}: {arguments!r}}}."
        )
    if kind == INTEGER:
        if not all(isinstance(bound, int) for bound in arguments):
            raise SettingError(
                f"{setting.path} is {{{kind!r}: {arguments!r}}}, but {kind} must have whole bounds. "
                f"Fix: {{{UNIFORM}: {arguments!r}}}, or whole numbers."
            )
    else:
        _check_takes_fractions(setting, kind, arguments)
        low, high = float(low), float(high)
    for bound in (low, high):
        check_value(setting, bound, f"a bound of {setting.path}'s {kind}")
    return low, high


def _check_takes_fractions(setting: Setting, kind: str, arguments: list[float]) -> None:
    """Raise if the setting takes the whole bounds but nothing between them."""
    for bound in arguments:
        whole_is_fine = float(bound).is_integer() and accepts(setting, int(bound))
        if whole_is_fine and not accepts(setting, float(bound)):
            raise SettingError(
                f"{setting.path} is {{{kind!r}: {arguments!r}}}, but {kind} draws fractions and {setting.path} takes "
                f"whole numbers. Fix: {{{INTEGER}: {[int(bound) for bound in arguments]}}}, or {CHOICE}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(setting: Setting, kind: str, arguments: Any) -> tuple[Any, ...]:
    if not isinstance(arguments, list) or len(arguments) < 2:
        raise SettingError(
            f"{setting.path} is {{{kind!r}: {arguments!r}}}, but {kind} must have a list of at least two values. "
            f"Fix: {{{kind}: [a, b]}}, or give the value itself."
        )
    values = tuple(check_value(setting, value, f"a value of {setting.path}'s {kind}") for value in arguments)
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise SettingError(
            f"{setting.path} is {{{kind!r}: {arguments!r}}}, but {kind} must have different values. "
            f"Fix: give {twice!r} once."
        )
    return values
