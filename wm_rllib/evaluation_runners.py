"""Evaluation during training: greedy episodes on RLlib's evaluation env runners."""

from __future__ import annotations

import functools
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wm_rllib.env_runner import WorldModelEnvRunner
from wm_rllib.evaluation import EvaluationResult
from wm_rllib.mixing import split_evenly
from wm_rllib.seeding import stage_seed


def evaluate_on(
    group: EnvRunnerGroup, record: dict[str, Any], num_episodes: int, seed: int | None, timeout_s: float
) -> EvaluationResult:
    """Shares `num_episodes` among the env runners of `group`, all with the weights of `record`.

    Raises:
        RuntimeError: No env runner answered.
    """
    if group.num_remote_env_runners() == 0:
        return group.local_env_runner.evaluate(record, num_episodes, seed)
    workers = group.healthy_worker_ids()
    shares = dict(zip(workers, split_evenly(num_episodes, len(workers) or 1), strict=False))
    results = group.foreach_env_runner(
        functools.partial(_evaluate_runner, record=record, shares=shares, seed=seed),
        remote_worker_ids=workers,
        local_env_runner=False,
        timeout_seconds=timeout_s,
    )
    parts = [result for result in results if result is not None]
    if not parts:
        raise RuntimeError("no evaluation env runner answered")
    return EvaluationResult([r for part in parts for r in part.returns], [n for part in parts for n in part.lengths])


def _evaluate_runner(
    runner: WorldModelEnvRunner, record: dict[str, Any], shares: dict[int, int], seed: int | None
) -> EvaluationResult | None:
    share = shares.get(runner.worker_index, 0)
    own_seed = None if seed is None else stage_seed(seed, 0, "env_runner", runner.worker_index)
    return runner.evaluate(record, share, own_seed) if share else None


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
