"""What is measured: one contender with one seed in one environment, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wm_rllib.environments.pixels import AS_IT_IS, PixelSettings


@dataclass(frozen=True)
class Measure:
    """The measure of an environment, the same for all contenders but for the two limits.

    Attributes:
        interval: Real steps between evaluations.
        episodes: Greedy episodes of an evaluation.
        confirm_episodes: Fresh greedy episodes that confirm an evaluation at the threshold.
        threshold: Mean return at which the environment is solved; None where there is none.
        max_steps: Real steps after which the run ends.
        time_limit_s: Seconds after which the run is ended, from the start of its process, evaluation included.
        num_threads: Threads of torch and its libraries.
        stop_when_solved: Whether the run ends as soon as an evaluation at the threshold is confirmed.
        budgets: Real steps at which the report gives the return.
    """

    interval: int = 250
    episodes: int = 20
    confirm_episodes: int = 100
    threshold: float | None = None
    max_steps: int = 20_000
    time_limit_s: float = 1800.0
    num_threads: int = 1
    stop_when_solved: bool = True
    budgets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """One run of a benchmark.

    Attributes:
        suite: Name of the folder under benchmarks/results/.
        env_id: The environment.
        contender: Who learns.
        seed: Of everything random.
        measure: How it is measured.
        env_config: Keyword arguments of the environment.
        pixels: What is done to it, the same for all contenders.
    """

    suite: str
    env_id: str
    contender: str
    seed: int
    measure: Measure
    env_config: Mapping[str, Any] = field(default_factory=dict)
    pixels: PixelSettings = AS_IT_IS

    def __str__(self) -> str:
        """Return the run as a line names it."""
        return f"{self.env_id}  {self.contender}  seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the job as JSON has it; the inverse of `from_dict`."""
        tree = asdict(self)
        tree["measure"]["budgets"] = list(self.measure.budgets)
        return tree

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Job:
        """Return the job of a JSON tree."""
        measure = {**tree["measure"], "budgets": tuple(tree["measure"]["budgets"])}
        pixels = PixelSettings(**tree.get("pixels", {}))  # results from before have none
        return cls(**{**tree, "measure": Measure(**measure), "pixels": pixels})

    def measured_like(self, other: Job) -> bool:
        """Whether the two would give the same result: what only the report reads may differ."""
        return _without_budgets(self) == _without_budgets(other)


def _without_budgets(job: Job) -> Job:
    return replace(job, measure=replace(job.measure, budgets=()))
