"""The scores of `temperatures`: as JSON, each episode's return included, and as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wm_rllib.acting.baselines import STICKINESS, Baselines
from wm_rllib.acting.evaluation import EvaluationResult
from wm_rllib.atomic_files import write_atomically
from wm_rllib.dreamers.evaluation import DreamScore
from wm_rllib.runs.errors import CommandError


@dataclass(frozen=True)
class TemperatureScore:
    """What a controller is worth that was trained at one temperature.

    Attributes:
        temperature: tau of the dreams that it was trained in, and of those that it is scored in.
        seed: Of its training.
        iterations: Iterations that it was trained for.
        training_seconds: How long these took, over all resumes.
        scoring_seconds: How long both scores took.
        dream: Dreamed episodes.
        real: Real ones, on which the temperature is chosen.
    """

    temperature: float
    seed: int
    iterations: int
    training_seconds: float
    scoring_seconds: float
    dream: DreamScore
    real: EvaluationResult

    def __str__(self) -> str:
        """One line for the console."""
        return (
            f"temperature {self.temperature:g}: dreamed {spread(self.dream)}, real {spread(self.real)}, seed "
            f"{self.seed}, {self.iterations} iterations in {self.training_seconds:.1f} s, scored in "
            f"{self.scoring_seconds:.1f} s"
        )


@dataclass(frozen=True)
class Comparison:
    """All that was measured.

    Attributes:
        description: What and how, in a few sentences.
        dream_limit: Longest dreamed episode that was allowed.
        scores: One for each temperature.
        chosen: Which of them has the best real score.
        fresh: The chosen controller's real score on fresh episodes.
        baselines: Other players on the same ones.
    """

    description: str
    dream_limit: int
    scores: Sequence[TemperatureScore]
    chosen: TemperatureScore
    fresh: EvaluationResult
    baselines: Baselines

    def table(self) -> str:
        """Markdown."""
        limit = f"dreams at the limit of {self.dream_limit} steps"
        head = ["temperature", "dreamed score", limit, "real score", "real score, fresh episodes", "s of training"]
        rows = [self._row(score) for score in self.scores]
        constant = f"best constant action ({json.dumps(_plain(self.baselines.constant_action))})"
        baselines = [
            ["random", spread(self.baselines.random)],
            [constant, spread(self.baselines.constant)],
            [f"sticky random ({STICKINESS:g})", spread(self.baselines.sticky_random)],
        ]
        parts = [self.description, _markdown(head, rows), _markdown(["baseline", head[4]], baselines)]
        return "\n\n".join(parts) + "\n"

    def _row(self, score: TemperatureScore) -> list[str]:
        name, dream, is_chosen = f"{score.temperature:g}", score.dream, score is self.chosen
        return [
            f"**{name}** (chosen)" if is_chosen else name,
            spread(dream),
            f"{dream.num_unfinished} of {len(dream.returns)}",
            spread(score.real),
            spread(self.fresh) if is_chosen else "-",
            f"{score.training_seconds:.1f}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, each episode's return included."""
        return {
            "description": self.description,
            "dream_limit": self.dream_limit,
            "temperatures": [to_json(score) for score in self.scores],
            "chosen": {"temperature": self.chosen.temperature, "fresh": to_json(self.fresh)},
            "baselines": to_json(self.baselines),
        }


def spread(result: DreamScore | EvaluationResult) -> str:
    """Mean and standard deviation."""
    return f"{result.mean:.1f} +- {result.std:.1f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def to_json(result: Any) -> dict[str, Any]:
    """A result as JSON can hold it."""
    content: dict[str, Any] = _plain(asdict(result))
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def score_from(content: Any) -> TemperatureScore:
    """The inverse of `to_json`."""
    dream, real = DreamScore(**content["dream"]), EvaluationResult(**content["real"])
    return TemperatureScore(**{**content, "dream": dream, "real": real})


def evaluation_from(content: Any) -> EvaluationResult:
    """The inverse of `to_json`."""
    return EvaluationResult(**content)


def baselines_from(content: Any) -> Baselines:
    """The inverse of `to_json`."""
    players = {name: EvaluationResult(**content[name]) for name in ("random", "sticky_random", "constant")}
    return Baselines(**players, constant_action=content["constant_action"])


def read_result(path: Path, read: Callable[[Any], Any]) -> Any:
    """Return what a file says, or None if there is none.

    Args:
        path: The file.
        read: One of the `..._from`.

    Raises:
        CommandError: If it holds something else.
    """
    if not path.exists():
        return None
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        raise CommandError(f"{path} cannot be read. Fix: remove it, and it is measured again.") from None


def write_json(path: Path, content: Any) -> None:
    """Write a file, atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
