"""Speed of the env loop against stock RLlib PPO and RLlib PPO with its LSTM, all in one run, each on one thread.

    python -m wm_rllib.benchmark.speed_env --json benchmarks/results/speed/env.json

CartPole-v1, 8 envs per env runner, one set of PPO settings for all. The contenders take turns, so that other load on
the machine meets all of them, and a ratio is taken within a turn. Two clocks are kept: wall time and, where no env
runner is remote, this process's CPU time, which does not see what else the machine is doing.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.env_runners.env_runner import CollectRequest, WorldModelEnvRunner
from wm_rllib.training.state import Phase

NUM_ENVS = 8
HIDDEN_DIMS = [64, 64]
LSTM_SIZE = 64
TRAIN_BATCH = 2000
MAX_SEQ_LEN = 20
"""RLlib's default for an LSTM."""
PPO_SETTINGS = {
    "train_batch_size_per_learner": TRAIN_BATCH,
    "minibatch_size": 512,
    "num_epochs": 4,
    "lr": 6e-4,
    "gamma": 0.99,
    "lambda_": 0.95,
    "clip_param": 0.2,
    "vf_clip_param": float("inf"),
    "vf_loss_coeff": 1.0,
    "entropy_coeff": 0.01,
    "use_kl_loss": False,
}

PPO, PPO_LSTM, FEATURES, FITTED = "ppo", "ppo_lstm", "features", "fitted"
CONTENDERS = {
    PPO: "RLlib PPO on the observation",
    PPO_LSTM: f"RLlib PPO with its LSTM({LSTM_SIZE})",
    FEATURES: f"WorldModelPPO on [z, h] (LSTM {LSTM_SIZE}) at ratio 0, world model not fitted: what the features cost",
    FITTED: "the same with the default fit of the world model in the loop",
}
RATIOS = ((FEATURES, PPO), (FEATURES, PPO_LSTM), (FITTED, PPO))
WALL, CPU = "seconds", "cpu_seconds"


def make_config(name: str, num_env_runners: int) -> Any:
    """The config of one of `CONTENDERS`."""
    config: Any
    if name in (PPO, PPO_LSTM):
        lstm = {"use_lstm": True, "lstm_cell_size": LSTM_SIZE, "max_seq_len": MAX_SEQ_LEN} if name == PPO_LSTM else {}
        config = PPOConfig().rl_module(model_config={"fcnet_hiddens": HIDDEN_DIMS, **lstm})
    else:
        config = WorldModelPPOConfig().dreamers(imagination_ratio=0.0).world_model(mdn_hidden_dim=LSTM_SIZE)
        config.policy_hidden_dims = list(HIDDEN_DIMS)
        if name == FEATURES:
            config.world_model(updates_per_step=0.0)
    config.environment("CartPole-v1").training(**PPO_SETTINGS).learners(num_learners=0).debugging(seed=0)
    if name not in (PPO, PPO_LSTM):
        config.device = "cpu"  # as RLlib's PPO is, on a machine with a GPU too
    return config.env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=NUM_ENVS)


def warm_up(algorithm: Algorithm, iterations: int) -> None:
    """Trains until the phase that is measured, and some iterations of it."""
    while iterations:
        result = algorithm.train()
        iterations -= result.get("phase", Phase.MIXED.value) == Phase.MIXED.value


def time_training(algorithm: Algorithm, iterations: int) -> dict[str, float]:
    """Whole `train()` calls, sampling and update: env steps, seconds and CPU seconds of this process."""
    before = _sampled(algorithm)
    return _timed(lambda: [algorithm.train() for _ in range(iterations)], lambda _: _sampled(algorithm) - before)


def time_sampling(algorithm: Algorithm, num_timesteps: int) -> dict[str, float]:
    """One request to the local env runner, as its algorithm makes it: steps, seconds and CPU seconds."""
    runner = algorithm.env_runner
    if isinstance(runner, WorldModelEnvRunner):
        request = CollectRequest(num_timesteps, 1, random_actions=False, seed=None)
        return _timed(lambda: runner.collect(request), lambda collected: collected.num_timesteps)

    def sample() -> Any:
        return runner.sample(num_timesteps=num_timesteps), runner.get_metrics()

    return _timed(sample, lambda result: sum(map(len, result[0])))


def _timed(work: Callable[[], Any], count: Callable[[Any], int]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {WALL: time.perf_counter() - wall, CPU: time.process_time() - cpu, "env_steps": count(result)}


def _sampled(algorithm: Algorithm) -> int:
    return int(algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)))


def run(
    turns: int = 7,
    iterations: int = 3,
    fit_turns: int = 1,
    num_env_runners: int = 0,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures all of `CONTENDERS`; Ray must be running, with a CPU for each env runner and one more.

    Args:
        turns: How often everything is measured.
        iterations: `train()` calls of a contender in a turn.
        fit_turns: Turns in which `FITTED` is measured, with one `train()` (some 4,000 gradient steps) each.
        num_env_runners: Remote env runners of each contender; with 0, sampling alone is measured too.
        report: Takes the lines of the report.

    Returns:
        Provenance, settings, raw numbers by contender and turn, medians of env steps per second, and ratios.
    """
    names = [name for name in CONTENDERS if name != FITTED or fit_turns]
    algorithms = {name: make_config(name, num_env_runners).build_algo() for name in names}
    torch.set_num_threads(1)
    raw: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name, algorithm in algorithms.items():
        warm_up(algorithm, 1 if name == FITTED else 2)
    for turn in range(turns):
        for name, algorithm in algorithms.items():
            if name == FITTED and turn >= fit_turns:
                continue
            measured: dict[str, Any] = {"training": time_training(algorithm, 1 if name == FITTED else iterations)}
            if num_env_runners:
                del measured["training"][CPU]  # the sampling is not in this process
            else:
                measured["sampling"] = time_sampling(algorithm, TRAIN_BATCH)
            raw[name].append(measured)
            report(f"turn {turn}: {name} {_line(measured)}")
    for algorithm in algorithms.values():
        algorithm.stop()
    result = {
        "settings": {**PPO_SETTINGS, "num_envs": NUM_ENVS, "hidden_dims": HIDDEN_DIMS, "lstm_size": LSTM_SIZE},
        "num_env_runners": num_env_runners,
        "contenders": CONTENDERS,
        "raw": raw,
        "env_steps_per_s": {name: medians(turns_) for name, turns_ in raw.items()},
        "ratios": {f"{one}/{other}": ratios(raw[one], raw[other]) for one, other in RATIOS if one in raw},
    }
    for line in summary(result):
        report(line)
    return result


def _rates(measured: dict[str, Any]) -> dict[str, float]:
    """Env steps per second by what was measured and clock."""
    return {
        f"{what}/{clock}": numbers["env_steps"] / numbers[clock]
        for what, numbers in measured.items()
        for clock in (WALL, CPU)
        if clock in numbers
    }


def medians(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median over the turns of env steps per second, by what was measured and clock."""
    rates = [_rates(measured) for measured in turns]
    return {key: statistics.median(rate[key] for rate in rates) for key in rates[0]}


def ratios(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median over the turns that both have of the ratio of their rates within a turn."""
    pairs = [(_rates(one), _rates(other)) for one, other in zip(ones, others, strict=False)]
    return {key: statistics.median(one[key] / other[key] for one, other in pairs) for key in pairs[0][0]}


def _line(measured: dict[str, Any]) -> str:
    return ", ".join(f"{key} {rate:.0f}/s" for key, rate in _rates(measured).items())


def summary(result: dict[str, Any]) -> list[str]:
    """The report's last lines: medians, then ratios, with what each contender is."""
    lines = [f"{name}: {text}" for name, text in result["contenders"].items()]
    for name, rates in result["env_steps_per_s"].items():
        lines.append(f"median env steps/s, {name}: " + ", ".join(f"{key} {rate:.0f}" for key, rate in rates.items()))
    for pair, values in result["ratios"].items():
        lines.append(f"ratio {pair}: " + ", ".join(f"{key} {value:.3g}" for key, value in values.items()))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="speed_env", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=3, help="train() calls of a contender in a turn")
    parser.add_argument("--fit-turns", type=int, default=1, help="turns that measure the default fit too; 0: none")
    parser.add_argument("--num-env-runners", type=int, default=0, help="remote env runners of each contender")
    parser.add_argument("--json", type=Path, help="file for the result")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "wm_rllib.benchmark.speed_env", *argv])
    num_cpus = 8 * (args.num_env_runners + 1)  # logical ones: the contenders' actors wait for their turns
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        made = provenance(command, torch.get_num_threads())
        result = {"provenance": made, **run(args.turns, args.iterations, args.fit_turns, args.num_env_runners)}
    finally:
        ray.shutdown()
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
