"""What overlapping is worth: the same run with `overlap` on and off, on stages that wait rather than compute.

    python -m wm_rllib benchmark speed overlap --json benchmarks/results/speed/overlap.json

Sampling, dreaming and the learners' work take similar lengths, by waiting: so the table is about the schedule alone,
and holds on a machine of two cores. An iteration is held against its busiest process, by the clocks of the processes
themselves (an env runner, a dreamer, the learner, where fit and PPO add up), and against the sum of all stages.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json
from wm_rllib.benchmark.waiting import Waits, waiting_config
from wm_rllib.training.state import Phase

CASES: dict[str, tuple[Waits, int]] = {
    "sampling, dreaming and fit alike": (Waits(2.0, 2.0, 2.0, 0.2), 1),
    "fit and PPO together as long as the others": (Waits(2.0, 2.0, 1.0, 1.0), 1),
    "the same in 4 dream rounds": (Waits(2.0, 2.0, 1.0, 1.0), 4),
}
"""Waits, and dream rounds of an iteration."""
WARM_UP = 2
"""Mixed iterations before the measured ones: the first has nothing in flight yet."""


def measure(waits: Waits, rounds: int, *, overlap: bool, iterations: int) -> list[dict[str, Any]]:
    """The measured iterations of one run: wall time, the stages' seconds, rows by round, staleness."""
    algorithm = waiting_config(waits, rounds=rounds, overlap=overlap).build_algo()
    measured: list[dict[str, Any]] = []
    try:
        while len(measured) < WARM_UP + iterations:
            start = time.perf_counter()
            result = algorithm.train()
            if result["phase"] != Phase.MIXED.value:
                continue
            figures = {"iteration": time.perf_counter() - start, **result["seconds"]}
            imagination = {name: result["imagination"][name] for name in ("rows_by_round", "staleness", "surplus_rows")}
            measured.append({"seconds": figures, "busiest": busiest(figures), **imagination})
    finally:
        algorithm.stop()
    return measured[WARM_UP:]


def busiest(seconds: dict[str, float]) -> float:
    """Working time of the busiest process of an iteration."""
    return max(seconds["sample"], seconds["dream"], seconds["fit"] + seconds["update"])


def run(iterations: int = 7, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures all of `CASES`, with and without overlap; Ray must be running.

    Args:
        iterations: Measured iterations of each run.
        report: Takes the lines of the report.

    Returns:
        Raw numbers and medians by case.
    """
    cases = {}
    for name, (waits, rounds) in CASES.items():
        off = measure(waits, rounds, overlap=False, iterations=iterations)
        on = measure(waits, rounds, overlap=True, iterations=iterations)
        figures = medians(off, on)
        cases[name] = {"waits": vars(waits), "rounds": rounds, "off": off, "on": on, "medians": figures}
        report(f"{name}: {line(figures)}")
    return {"cases": cases}


def medians(off: Sequence[dict[str, Any]], on: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over the iterations; ratios are taken within an iteration first."""

    def median(rows: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(of, rows))

    return {
        "iteration_off": median(off, lambda row: row["seconds"]["iteration"]),
        "iteration_on": median(on, lambda row: row["seconds"]["iteration"]),
        "busiest_on": median(on, lambda row: row["busiest"]),
        "on_to_busiest": median(on, lambda row: row["seconds"]["iteration"] / row["busiest"]),
        "off_to_busiest": median(off, lambda row: row["seconds"]["iteration"] / row["busiest"]),
    }


def line(figures: dict[str, float]) -> str:
    """One case, to read."""
    return (
        f"off {figures['iteration_off']:.2f} s ({figures['off_to_busiest']:.2f} of the busiest process), "
        f"on {figures['iteration_on']:.2f} s ({figures['on_to_busiest']:.2f}, busiest {figures['busiest_on']:.2f} s)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="speed_overlap", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=7, help="measured iterations of each run")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args(argv)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        command = f"python -m wm_rllib benchmark speed overlap --turns {args.iterations}"
        result = {"provenance": provenance(command, 1), **run(args.iterations)}
    finally:
        ray.shutdown()
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
