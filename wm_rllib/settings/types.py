"""The types of the settings: pydantic types that carry their rule in plain words.

Each function returns an `Annotated` type. Its pydantic constraints decide what is allowed, and the
`description` of its `Field` says the same to a person (see `rule_of`). Types are strict: a bool is no number,
`"3"` is no number, but a whole number is accepted where any number is.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

CLASS_PATH_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[:.][A-Za-z_]\w*$"

SCHEDULE_RULE = (
    "or a schedule [[timestep, value], ...] of at least two points with ascending whole timesteps, the first of them 0"
)


def _described(base: Any, words: str, validator: AfterValidator | None = None) -> Any:
    described = Field(description=words)
    return Annotated[base, described] if validator is None else Annotated[base, validator, described]


def rule_of(setting_type: Any) -> str:
    """Return the rule of a setting's type in plain words, to follow the words "must be"."""
    field = get_args(setting_type)[-1]
    assert isinstance(field, FieldInfo) and field.description, setting_type
    return field.description


def _or_null(base: Any, words: str, optional: bool) -> Any:
    return _described(base | None, f"{words}, or null") if optional else _described(base, words)


def whole(low: int, most: int | None = None, *, optional: bool = False) -> Any:
    """Return the type of a whole number of at least `low`, and of at most `most` if that is given."""
    base = Annotated[int, Field(strict=True, ge=low, le=most)]
    words = f"a whole number of at least {low}" if most is None else f"a whole number from {low} to {most}"
    return _or_null(base, words, optional)


def _number_words(low: float | None, high: float | None, above: float | None) -> str:
    if above is not None:
        return f"a number above {above:g}"
    if low is not None and high is not None:
        return f"a number from {low:g} to {high:g}"
    if low is not None:
        return f"a number of at least {low:g}"
    return "a number"


def _plain_number(low: float | None, high: float | None, above: float | None) -> Any:
    return Annotated[float, Field(strict=True, ge=low, le=high, gt=above, allow_inf_nan=False)]


def number(
    low: float | None = None, high: float | None = None, *, above: float | None = None, optional: bool = False
) -> Any:
    """Return the type of a finite number in [low, high], or above `above`."""
    return _or_null(_plain_number(low, high, above), _number_words(low, high, above), optional)


def number_or_infinity(*, above: float) -> Any:
    """Return the type of a number above `above`, where infinity switches off what the number limits."""
    return _described(Annotated[float, Field(strict=True, gt=above)], f"{_number_words(None, None, above)}, or .inf")


def number_or_word(low: float, word: str) -> Any:
    """Return the type of a number of at least `low`, or one literal word."""
    literal: Any = Literal[word]
    return _described(_plain_number(low, None, None) | literal, f'{_number_words(low, None, None)}, or "{word}"')


def _check_schedule(points: Any) -> Any:
    if not isinstance(points, list):
        return points  # a fixed value
    timesteps = [timestep for timestep, _ in points]
    ascending = all(a < b for a, b in itertools.pairwise(timesteps))
    if len(points) < 2 or timesteps[0] != 0 or not ascending:
        raise ValueError("not a schedule")
    return [list(point) for point in points]  # plain lists, as YAML has them


def number_or_schedule(low: float | None = None, high: float | None = None, *, above: float | None = None) -> Any:
    """Return the type of a number, or a piecewise linear schedule [[timestep, value], ...] of such numbers.

    The schedule's own rules are RLlib's: two points or more, the first at timestep 0, timesteps ascending.
    """
    return _or_schedule(_plain_number(low, high, above), _number_words(low, high, above))


def whole_or_schedule(low: int) -> Any:
    """Return the type of a whole number of at least `low`, or a schedule of such numbers, to be rounded."""
    return _or_schedule(Annotated[int, Field(strict=True, ge=low)], f"a whole number of at least {low}")


def _or_schedule(value: Any, words: str) -> Any:
    timestep = Annotated[int, Field(strict=True, ge=0)]
    schedule: Any = list[tuple[timestep, value]]
    return _described(value | schedule, f"{words}, {SCHEDULE_RULE}", AfterValidator(_check_schedule))


def or_word(kind: Any, word: str) -> Any:
    """Return the type of what `kind` takes, or one literal word."""
    literal: Any = Literal[word]
    return _described(kind | literal, f'{rule_of(kind)}; or "{word}"')


def number_range(least: float | None = None, most: float | None = None) -> Any:
    """Return the type of an interval [low, high], within [least, most] where given."""
    bound = _plain_number(least, most, None)

    def check(bounds: list[float]) -> list[float]:
        if bounds[0] >= bounds[1]:
            raise ValueError("low is not below high")
        return bounds

    pair = Annotated[list[bound], Field(min_length=2, max_length=2)]  # type: ignore[valid-type]
    limits = "" if least is None else f", both from {least:g} to {most:g}"
    return _described(pair, f"two numbers [low, high] with low below high{limits}", AfterValidator(check))


def whole_numbers(low: int, *names: str) -> Any:
    """Return the type of a list of whole numbers of at least `low`, one for each name, or null."""
    number = Annotated[int, Field(strict=True, ge=low)]
    several = Annotated[list[number], Field(min_length=len(names), max_length=len(names))]
    return _or_null(several, f"whole numbers of at least {low}, [{', '.join(names)}]", optional=True)


def layer_sizes() -> Any:
    """Return the type of a list of hidden layer sizes; the empty list is a linear map."""
    size = Annotated[int, Field(strict=True, ge=1)]
    return _described(list[size], "a list of whole numbers of at least 1")


def boolean(*, optional: bool = False) -> Any:
    """Return the type of a truth value."""
    return _or_null(Annotated[bool, Field(strict=True)], "true or false", optional)


def one_of(*words: str) -> Any:
    """Return the type of one of the given words."""
    literal: Any = Literal[words]
    return _described(literal, " or ".join(f'"{word}"' for word in words))


def text(*, optional: bool = False) -> Any:
    """Return the type of a text that is not empty."""
    return _or_null(Annotated[str, Field(strict=True, min_length=1)], "a text", optional)


def class_path() -> Any:
    """Return the type of the import path of a class, or null for the built-in class."""
    path = Annotated[str, Field(strict=True, pattern=CLASS_PATH_PATTERN)]
    return _or_null(path, 'an import path like "package.module:ClassName"', optional=True)


def mapping() -> Any:
    """Return the type of a free mapping from texts to anything."""
    return _described(Annotated[dict[str, Any], Field(strict=True)], "a mapping of key: value")


def resources() -> Any:
    """Return the type of amounts of Ray's custom resources, by name; CPU and GPU have settings of their own."""
    amount = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

    def check(amounts: dict[str, float]) -> dict[str, float]:
        if amounts.keys() & {"CPU", "GPU", "memory", "object_store_memory"} or "" in amounts:
            raise ValueError("not a custom resource")
        return amounts

    kind = Annotated[dict[str, amount], Field(strict=True)]
    return _described(kind, "a mapping of custom resources to amounts above 0", AfterValidator(check))
