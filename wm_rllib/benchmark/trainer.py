"""What a contender has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from wm_rllib.acting.evaluation import GreedyPolicy
from wm_rllib.benchmark.job import Job


class Trainer(Protocol):
    """An algorithm being trained, ready for its first step."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting in use, as JSON can hold it."""

    def train(self) -> int:
        """Trains for as little as the algorithm can, and returns the real env steps so far, random ones included."""

    def policy(self) -> GreedyPolicy:
        """The agent as it would act now; acting with it must not change the training."""

    def stop(self) -> None:
        """Ends what it has started."""


@dataclass(frozen=True)
class Contender:
    """A plug-in.

    Attributes:
        name: What users call it.
        description: One line.
        make: Makes the trainer of a job, with these settings (by dotted path) on top of its own; imports what it needs.
        check: Raises SettingError or CommandError where the job cannot be run; starts nothing.
        values: Settings of WorldModelPPO, by dotted path, that make it what it is.
        takes_settings: Whether a spec may add settings: `wm@key.path=value`.
        needs_ray: Whether Ray has to be running.
        resolve: What the trainer of a job would give as its `settings`, without making it; None where nobody knows.
    """

    name: str
    description: str
    make: Callable[[Job, Mapping[str, Any]], Trainer]
    check: Callable[[Job, Mapping[str, Any]], None]
    values: Mapping[str, Any] = field(default_factory=dict)
    takes_settings: bool = False
    needs_ray: bool = True
    resolve: Callable[[Job, Mapping[str, Any]], Mapping[str, Any]] | None = None
