"""From a benchmark's YAML file and the flags to its jobs, all of it checked before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
from pydantic import Field, TypeAdapter, ValidationError

from wm_rllib.benchmark.contenders import find_contender
from wm_rllib.benchmark.job import Job, Measure
from wm_rllib.environments.names import find_env
from wm_rllib.environments.pixels import PATHS, SECTION, PixelSettings
from wm_rllib.settings.settings import SettingError, check_value
from wm_rllib.settings.table import BY_PATH
from wm_rllib.settings.types import boolean, mapping, number, rule_of, text, whole
from wm_rllib.settings.yaml_files import read_yaml

MEASURE_TYPES: dict[str, Any] = {
    "interval": whole(1),
    "episodes": whole(1),
    "confirm_episodes": whole(1),
    "threshold": number(optional=True),
    "max_steps": whole(1),
    "time_limit_s": number(above=0),
    "num_threads": whole(1),
    "stop_when_solved": boolean(),
}
LIMITS = ("max_steps", "time_limit_s", "num_threads", "stop_when_solved")
"""What `limits` may set for a contender; the rest is the measure, which is one for all."""

_TOP = ("suite", "seeds", "contenders", "measure", "environments", "limits")
PIXEL_KEYS = tuple(path.removeprefix(f"{SECTION}.") for path in PATHS if path.startswith(f"{SECTION}."))
DEFAULT_SUITE, DEFAULT_SEEDS = "adhoc", [0]


@dataclass(frozen=True)
class Wishes:
    """What flags ask for; None where they do not.

    Attributes:
        suite: Name of the folder under benchmarks/results/.
        envs: Environments; of the file's these alone.
        contenders: Contenders, in place of the file's.
        seeds: Seeds, in place of the file's.
        measure: Values of the measure, for all environments and contenders.
    """

    suite: str | None
    envs: list[str] | None
    contenders: list[str] | None
    seeds: list[int] | None
    measure: Mapping[str, Any]


def make_jobs(config: str | None, wishes: Wishes) -> list[Job]:
    """Return the jobs of a file and flags, seed by seed so that an interrupted run has all contenders.

    Raises:
        SettingError: For what is wrong with the file, a flag, a contender or an environment.
        CommandError: For a contender that cannot run here.
    """
    tree = _section(read_yaml(config) if config else {}, config or "the flags", _TOP)
    environments = _environments(tree, wishes)
    seeds = _seeds(tree.get("seeds", DEFAULT_SEEDS)) if wishes.seeds is None else list(dict.fromkeys(wishes.seeds))
    suite = wishes.suite or _value(tree.get("suite", DEFAULT_SUITE), text(), "suite")
    jobs = [
        _job(tree, wishes, suite, env_id, spec, seed)
        for env_id, section in environments.items()
        for seed in seeds
        for spec in _contenders(tree, section, wishes)
    ]
    for job in {(job.env_id, job.contender): job for job in jobs}.values():
        contender, values = find_contender(job.contender)
        contender.check(job, values)
    return jobs


def check_measure(key: str, value: Any, name: str) -> Any:
    """Return a value of the measure, checked.

    Raises:
        SettingError: Naming key, value, rule and fix.
    """
    return _value(value, MEASURE_TYPES[key], name)


def _environments(tree: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    given = tree.get("environments") or {}
    if not isinstance(given, Mapping):
        raise SettingError(f"environments is {given!r}, but must be a mapping. Fix: one section an environment.")
    if wishes.envs is not None:
        given = {env_id: given.get(env_id) for env_id in wishes.envs}
    if not given:
        raise SettingError("no environment. Fix: --env ID, or the section environments in the YAML file.")
    known = (*MEASURE_TYPES, "budgets", "config", "pixels", "frame_skip", "contenders")
    for env_id in given:
        find_env(env_id)
    return {env_id: _section(section or {}, f"environments.{env_id}", known) for env_id, section in given.items()}


def _contenders(tree: Mapping[str, Any], section: Mapping[str, Any], wishes: Wishes) -> list[str]:
    specs = wishes.contenders or section.get("contenders") or tree.get("contenders")
    if not isinstance(specs, list) or not all(isinstance(spec, str) for spec in specs) or not specs:
        raise SettingError(
            f"contenders is {specs!r}, but must be a list of names. Fix: --contender wm, or see `benchmark list`."
        )
    return list(dict.fromkeys(specs))


def _seeds(value: Any) -> list[int]:
    seeds: list[int] = _value(value, _list_of_whole(0), "seeds")
    return list(dict.fromkeys(seeds))


def _list_of_whole(low: int) -> Any:
    return Annotated[
        list[Annotated[int, Field(strict=True, ge=low)]],
        Field(min_length=1, description=f"a list of whole numbers of at least {low}"),
    ]


def _job(tree: Mapping[str, Any], wishes: Wishes, suite: str, env_id: str, spec: str, seed: int) -> Job:
    section = _section((tree.get("environments") or {}).get(env_id) or {}, f"environments.{env_id}", None)
    common = _section(tree.get("measure") or {}, "measure", (*MEASURE_TYPES, "budgets"))
    values: dict[str, Any] = {"threshold": _threshold(env_id)}
    limits = _section((tree.get("limits") or {}).get(spec) or {}, f"limits.{spec}", LIMITS)
    sources = {"measure": common, f"environments.{env_id}": section, f"limits.{spec}": limits, "flags": wishes.measure}
    for name, source in sources.items():
        values |= {
            key: check_measure(key, value, f"{name}.{key}") for key, value in source.items() if key in MEASURE_TYPES
        }
    budgets = section.get("budgets", common.get("budgets", []))
    values["budgets"] = tuple(_value(budgets, _list_of_whole(1), f"environments.{env_id}.budgets")) if budgets else ()
    env_config = _value(section.get("config") or {}, mapping(), f"environments.{env_id}.config")
    return Job(suite, env_id, spec, seed, Measure(**values), env_config, _pixels(section, f"environments.{env_id}"))


def _pixels(section: Mapping[str, Any], name: str) -> PixelSettings:
    """Return what a section has done to its environment, as `env.pixels` and `env.frame_skip` of a run's settings."""
    pixels = _section(section.get("pixels"), f"{name}.pixels", PIXEL_KEYS)
    given = {f"{SECTION}.{key}": (f"{name}.pixels.{key}", value) for key, value in pixels.items()}
    if "frame_skip" in section:
        given["env.frame_skip"] = f"{name}.frame_skip", section["frame_skip"]
    values = {path: check_value(BY_PATH[path], value, named) for path, (named, value) in given.items()}
    return PixelSettings.from_values(values)


def _threshold(env_id: str) -> float | None:
    """Return the return at which Gymnasium calls an environment solved, if it does."""
    spec = gym.registry.get(env_id)
    return None if spec is None or spec.reward_threshold is None else float(spec.reward_threshold)


def _section(value: Any, name: str, known: tuple[str, ...] | None) -> Mapping[str, Any]:
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise SettingError(f"{name} is {value!r}, but must be a section with keys. Fix: see benchmarks/learning.yaml.")
    for key in value:
        if known is not None and key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}."
            raise SettingError(f"unknown key {key} in {name}. Fix: {hint}")
    return value


def _value(value: Any, kind: Any, name: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise SettingError(f"{name} is {value!r}, but must be {rule_of(kind)}. Fix: correct it.") from None
