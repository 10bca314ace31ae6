"""The measure: train, and evaluate greedily at a fixed interval of real steps; the same for every contender."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from wm_rllib.acting.evaluation import MAX_LANES, VectorEnv, evaluate_in, make_vector_env
from wm_rllib.benchmark.job import Job, Measure
from wm_rllib.benchmark.trainer import Trainer
from wm_rllib.environments.names import vector_maker
from wm_rllib.seeding import stage_seed

SOLVED, STEP_LIMIT, TIME_LIMIT, FAILED, RUNNING = "solved", "step limit", "time limit", "failed", "running"
COMPLETE = (SOLVED, STEP_LIMIT, TIME_LIMIT)
"""How a run ends that need not be repeated."""


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        steps: Real env steps so far: random ones included, evaluation not.
        train_seconds: Seconds in `Trainer.train` so far, the first call included, set-up and evaluation not.
        evaluate_seconds: Seconds in evaluations so far, this one included.
        returns: Undiscounted return of each greedy episode.
        confirmation: Returns of the fresh episodes that had to confirm it; None where none had to.
    """

    steps: int
    train_seconds: float
    evaluate_seconds: float
    returns: list[float]
    confirmation: list[float] | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))


def measure(trainer: Trainer, job: Job, record: Callable[[Point], None]) -> str:
    """Trains to the end of the job and hands over each evaluation; returns how it ended.

    The evaluation comes with the first `Trainer.train` that reaches or crosses a multiple of the interval; where one
    call is longer than the interval, after each call. Its seeds depend on the job's seed and that multiple alone.
    """
    rule = job.measure
    evaluator = _Evaluator(job)
    try:
        steps, train_seconds, confirmed = 0, 0.0, False
        while steps < rule.max_steps:
            started, before = time.perf_counter(), steps
            steps = trainer.train()
            train_seconds += time.perf_counter() - started
            last = steps >= rule.max_steps
            if steps // rule.interval == before // rule.interval and not (last and steps > before):
                continue
            point = evaluator.evaluate(trainer, steps, train_seconds, confirm=not confirmed)
            record(point)
            confirmed = confirmed or is_confirmed(point, rule)
            if confirmed and rule.stop_when_solved:
                return SOLVED
        return STEP_LIMIT
    finally:
        evaluator.close()


def crosses(point: Point, rule: Measure) -> bool:
    """Whether an evaluation reaches the threshold."""
    return rule.threshold is not None and point.mean >= rule.threshold


def is_confirmed(point: Point, rule: Measure) -> bool:
    """Whether its fresh episodes reach the threshold too."""
    if rule.threshold is None or point.confirmation is None:
        return False
    return float(np.mean(point.confirmation)) >= rule.threshold


class _Evaluator:
    """The environment of the evaluations, one for the whole run."""

    def __init__(self, job: Job):
        self._job = job
        env = vector_maker(job.env_id, job.pixels)
        self._env: VectorEnv = make_vector_env(env, min(job.measure.episodes, MAX_LANES), dict(job.env_config))
        self._seconds = 0.0

    def evaluate(self, trainer: Trainer, steps: int, train_seconds: float, *, confirm: bool) -> Point:
        """Plays the episodes; those that confirm only if wanted and needed."""
        rule, started = self._job.measure, time.perf_counter()
        with untouched_generators():
            policy = trainer.policy()
            play = partial(evaluate_in, self._env, policy)
            point = Point(steps, train_seconds, 0.0, play(rule.episodes, self._seed("evaluation", steps)).returns)
            confirmation = None
            if confirm and crosses(point, rule):
                confirmation = play(rule.confirm_episodes, self._seed("confirmation", steps)).returns
        self._seconds += time.perf_counter() - started
        return Point(steps, train_seconds, self._seconds, point.returns, confirmation)

    def _seed(self, stage: str, steps: int) -> int:
        return stage_seed(self._job.seed, steps // self._job.measure.interval, f"benchmark/{stage}")

    def close(self) -> None:
        self._env.close()


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Leaves the global generators as they were: how often a run is evaluated must not change its training."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
