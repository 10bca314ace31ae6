"""What one iteration reports: rows, ratio, losses, versions, and every stage's seconds.

Plain values merged into RLlib's result dict, not MetricsLogger's: a MetricsLogger repeats a metric's last value in
iterations that did not measure it, and a missing value must be missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.dreamers.evaluation import DreamScore
from wm_rllib.dreamers.orders import DreamHarvest
from wm_rllib.learners.fit_losses import AT_START
from wm_rllib.learners.gate import Gate, Judgement
from wm_rllib.learners.learning_rates import LEARNING_RATES
from wm_rllib.learners.policy_change import CLIP_FRACTION, POLICY_KL
from wm_rllib.mixing import realised_ratio

FITS = ("fit", "fit_vae", "fit_mdn")
"""Stages of gradient steps on V and M: one on vectors, the other two on frames."""
PPO_METRICS = {
    "policy_loss": "policy_loss",
    "vf_loss": "vf_loss_unclipped",
    "vf_explained_var": "vf_explained_var",
    "entropy": "entropy",
    "kl": POLICY_KL,
    "clip_fraction": CLIP_FRACTION,
}
"""Names under ppo/, and those in the learner's metrics; the last two are ours."""
FIT_METRICS = (
    "vae/reconstruction_loss",
    "vae/reconstruction_loss_at_start",
    "vae/kl_divergence",
    "vae/explained",
    "vae/moving_explained",
    "mdn/nll",
    "mdn/nll_at_start",
    "mdn/reward_loss",
    "mdn/termination_loss",
)


class IterationReport:
    """Collects one iteration's figures while its stages run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.rows = {"real": 0, "imagined": 0}
        self.rounds: list[tuple[int, int]] = []
        self.losses: dict[str, float | None] = {}
        self.num_env_steps = 0
        self.num_segments = 0
        self.num_dreamed_rows = 0
        self.surplus_rows = 0
        self.num_cuts = 0
        self.fit_updates = 0
        self.replay: dict[str, float] = {}
        self.dropped_rows = 0
        self.lost_rows = 0
        self.updates_skipped = 0
        self.staleness = 0
        self.configured_ratio: float | None = None
        self.return_gap: float | None = None
        self.evaluation: dict[str, float] = {}
        self.dream_evaluation: dict[str, float] = {}
        self.judged: dict[str, float | None] = {}
        self.pretraining: dict[str, float] = {}
        self.trust: dict[str, float | None] = {}
        self.learning_rates: dict[str, float | None] = dict.fromkeys(LEARNING_RATES)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to seconds/<name>."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - start)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Adds to seconds/<name>."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def add_update(self, metrics: MetricsLogger, num_learners: int, harvest: DreamHarvest | None) -> bool:
        """Counts the rows of one merged batch, as the learners counted them (a mean over learners).

        Returns:
            Whether there was any: without, because they were lost on their way, the learners did nothing.
        """
        counts = (_peek(metrics, DEFAULT_MODULE_ID, f"num_{source}_rows") or 0.0 for source in ("real", "imagined"))
        real, imagined = (round(count * num_learners) for count in counts)
        if not real + imagined:
            self.updates_skipped += 1
            return False
        self.rows["real"] += real
        self.rows["imagined"] += imagined
        self.rounds.append((real, imagined))
        if harvest:
            self.num_segments += harvest.num_segments
            self.num_dreamed_rows += sum(harvest.rows)
            self.num_cuts += harvest.num_cuts
        return True

    def as_dict(self) -> dict[str, Any]:
        """The report, nested as in the result dict; absent values are None."""
        imagined = self.rows["imagined"]
        trained = bool(self.rounds)
        return {
            "rows": dict(self.rows),
            "imagination": {
                "ratio": realised_ratio(self.rows["real"], imagined) if trained else None,
                "configured_ratio": self.configured_ratio,
                "rows_by_round": [list(counts) for counts in self.rounds],
                "horizon": self.num_dreamed_rows / self.num_segments if self.num_segments else None,
                "cut": self.num_cuts / self.num_segments if self.num_segments else None,
                "return_gap": self.return_gap,
                "staleness": self.staleness,
                "dropped_rows": self.dropped_rows,
                "lost_rows": self.lost_rows,
                "surplus_rows": self.surplus_rows,
                "updates_skipped": self.updates_skipped,
                **self.judged,
            },
            "pretraining": dict(self.pretraining),
            "dream_evaluation": dict(self.dream_evaluation),
            "trust": dict(self.trust),
            "replay": dict(self.replay),
            "vae": self._losses("vae"),
            "mdn": self._losses("mdn"),
            "ppo": self._losses("ppo"),
            "learning_rates": dict(self.learning_rates),
            "seconds": dict(self.seconds),
            "steps_per_second": {
                "sample": self._rate(self.num_env_steps, "sample"),
                "dream": self._rate(self.num_dreamed_rows, "dream"),
                "fit_updates": self._rate(self.fit_updates, *FITS),
                "update_rows": self._rate(sum(self.rows.values()), "update"),
            },
        }

    def take_dream_score(self, score: DreamScore | None) -> None:
        """Keeps an evaluation in the dream, if there was one."""
        if score is not None:
            self.dream_evaluation = {
                "episode_return_mean": score.mean,
                "episode_return_std": score.std,
                "episode_len_mean": sum(score.lengths) / len(score.lengths),
                "unfinished": score.num_unfinished / len(score.lengths),
                "episodes": len(score.lengths),
            }

    def add_judgement(self, judgement: Judgement | None, horizon: int) -> None:
        """Keeps what was found of M on fresh experience: the next step, and the horizon of this iteration's dreams."""
        skill = judgement.skill if judgement else []
        self.judged |= {
            "skill_next": skill[0] if skill else None,
            "skill_at_horizon": skill[horizon - 1] if len(skill) >= horizon else None,
            "judged_gap": judgement.gap if judgement else None,
            "judged_gap_error": judgement.gap_error if judgement else None,
        }
        self.trust = dict(judgement.trust) if judgement else {}

    def add_replay(self, stats: dict[str, int]) -> None:
        """Keeps what the replay held after this iteration's real steps came in."""
        gigabytes = stats["frame_bytes"] / 1e9
        self.replay = {"steps": stats["num_timesteps"], "episodes": stats["num_episodes"], "gigabytes": gigabytes}

    def add_gate(self, gate: Gate, horizon: int) -> None:
        """Keeps what the gate made of all that it was told."""
        self.judged |= {
            "gate_skill": gate.skill[0] if gate.skill else None,
            "gate_gap": gate.gap_beyond_chance,
            "configured_horizon": horizon,
        }

    def take_fit_losses(self, metrics: MetricsLogger, fitted: Collection[str], *, begins: bool) -> None:
        """Copies the losses of a call's gradient steps out of the learner metrics, which hold those of others too.

        Args:
            metrics: The algorithm's.
            fitted: "vae", "mdn" or both.
            begins: Whether the call was its fit's first one.
        """
        for name in FIT_METRICS:
            self.losses.setdefault(name, None)
            if name.partition("/")[0] in fitted and (begins or not name.endswith(AT_START)):
                self.losses[name] = _peek(metrics, WORLD_MODEL_MODULE_ID, name)
        self._take_learning_rates(metrics, WORLD_MODEL_MODULE_ID, fitted)

    def take_update_losses(self, metrics: MetricsLogger) -> None:
        """Copies the last update's PPO statistics out of the learner metrics, and the gap between the two sources."""
        for ours, theirs in PPO_METRICS.items():
            self.losses[f"ppo/{ours}"] = _peek(metrics, DEFAULT_MODULE_ID, theirs)
        if len(self.rounds) == 1:  # later rounds work with a fraction of the first one's
            self._take_learning_rates(metrics, DEFAULT_MODULE_ID, ("policy",))
        if self.rounds and all(self.rounds[-1]):
            dreamed = _peek(metrics, DEFAULT_MODULE_ID, "imagined_value_target")
            real = _peek(metrics, DEFAULT_MODULE_ID, "real_value_target")
            self.return_gap = None if dreamed is None or real is None else dreamed - real

    def _take_learning_rates(self, metrics: MetricsLogger, module_id: str, learned: Collection[str]) -> None:
        for name in LEARNING_RATES:
            if name.partition("_")[0] in learned:
                self.learning_rates[name] = _peek(metrics, module_id, f"{name}_lr")

    def _losses(self, prefix: str) -> dict[str, float | None]:
        return {name.split("/")[1]: value for name, value in self.losses.items() if name.startswith(prefix + "/")}

    def _rate(self, count: int, *stages: str) -> float | None:
        seconds = sum(self.seconds.get(stage, 0.0) for stage in stages)
        return count / seconds if seconds and count else None


def _peek(metrics: MetricsLogger, module_id: str, name: str) -> float | None:
    value = metrics.peek((LEARNER_RESULTS, module_id, name), default=math.nan)  # None would raise KeyError
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)
