"""Evaluation during training: greedy episodes on RLlib's evaluation env runners."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wm_rllib.acting.evaluation import EvaluationResult
from wm_rllib.actors.failures import Failure, FailureCounter
from wm_rllib.env_runners.collection import EnvRunnerError
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.mixing import split_evenly
from wm_rllib.seeding import stage_seed

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5


def evaluate_on(
    group: EnvRunnerGroup,
    record: dict[str, Any],
    num_episodes: int,
    seed: int | None,
    *,
    restore: Callable[[], object],
    timeout_s: float,
    failures: FailureCounter,
) -> EvaluationResult:
    """Shares `num_episodes` among the env runners of `group`, all with the weights of `record`.

    Whoever is there is asked for what is missing until nothing is; after `timeout_s`, which one that hangs takes up
    alone, what has come must do.

    Args:
        group: The evaluation env runners.
        record: What the parameter server holds.
        num_episodes: Episodes in all.
        seed: Of the evaluation, or None.
        restore: Brings restarted env runners of the group back into service.
        timeout_s: For all attempts together.
        failures: Counts errors of the environments' code, over all evaluations.

    Raises:
        EnvRunnerError: None answered in time, or one failed several times in a row.
    """
    if group.num_remote_env_runners() == 0:
        return group.local_env_runner.evaluate(record, num_episodes, seed)
    deadline = time.monotonic() + timeout_s
    returns: list[float] = []
    lengths: list[int] = []
    for attempt in itertools.count():
        left = max(0.0, deadline - time.monotonic())
        for part in _ask(group, record, num_episodes - len(returns), seed, attempt, left, failures):
            returns += part.returns
            lengths += part.lengths
        if len(returns) == num_episodes:
            break
        logger.warning("%d of %d evaluation episodes did not come", num_episodes - len(returns), num_episodes)
        if time.monotonic() + RETRY_PAUSE_S > deadline:
            break
        time.sleep(RETRY_PAUSE_S)
        restore()
    if not returns:
        raise EnvRunnerError(
            f"no evaluation env runner answered within {timeout_s:.0f} s. If they were at work all the time: raise "
            "evaluation.timeout_s, or give the environment a time limit, for a greedy agent may go on for ever."
        )
    return EvaluationResult(returns, lengths)


def _ask(
    group: EnvRunnerGroup,
    record: dict[str, Any],
    num_episodes: int,
    seed: int | None,
    attempt: int,
    timeout_s: float,
    failures: FailureCounter,
) -> list[EvaluationResult]:
    workers = group.healthy_worker_ids()
    if not workers:
        return []
    shares = dict(zip(workers, split_evenly(num_episodes, len(workers)), strict=True))
    answers = group.foreach_env_runner(
        functools.partial(_evaluate_runner, record=record, shares=shares, seed=seed, attempt=attempt),
        remote_worker_ids=workers,
        local_env_runner=False,
        timeout_seconds=timeout_s,
    )
    for worker, answer in answers:
        if isinstance(answer, Failure):
            failures.failed(worker, answer)
        elif answer is not None:
            failures.worked(worker)
    return [answer for _, answer in answers if isinstance(answer, EvaluationResult)]


def _evaluate_runner(
    runner: WorldModelEnvRunner, record: dict[str, Any], shares: dict[int, int], seed: int | None, attempt: int
) -> tuple[int, EvaluationResult | Failure | None]:
    worker = runner.worker_index
    share = shares.get(worker, 0)
    own_seed = None if seed is None else stage_seed(seed, attempt, "env_runner", worker)
    try:
        return worker, runner.evaluate(record, share, own_seed) if share else None
    except Exception as error:
        logger.exception("an evaluation failed")
        runner.make_env()
        return worker, Failure.of(error)


def evaluate_greedily(algorithm: Any, _: Any) -> tuple[dict[str, Any], int, int]:
    """RLlib's `custom_evaluation_function`: results, env steps, agent steps."""
    result = algorithm.evaluate_return()
    figures = {
        "episode_return_mean": result.mean,
        "episode_return_std": result.std,
        "episode_return_min": min(result.returns),
        "episode_return_max": max(result.returns),
        "episodes": len(result.returns),
    }
    steps = sum(result.lengths)
    algorithm._report.evaluation = figures
    # RLlib reads an evaluation's results from its metrics, merged ones only, not from what this function returns.
    runner_metrics = MetricsLogger(root=False)
    for name, value in figures.items():
        runner_metrics.log_value(name, value, window=1)
    algorithm.metrics.aggregate([runner_metrics.reduce()], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
    return {ENV_RUNNER_RESULTS: dict(figures)}, steps, steps
