"""Speed of dreams against the matrix product and RLlib's DreamerV3, all in one run, each on one thread.

    python -m wm_rllib.benchmark.speed_dream --json benchmarks/results/speed/dream.json

What is measured takes turns, so that other load on the machine meets all of it. A turn's figure is the median of its
calls; fractions and ratios are taken within turns, then their medians; every raw number is kept. The matrix product is
float32 2048 x 2048 by 2048 x 2048, as torch.mm does it (by MKL) and as oneDNN does. Dreams use oneDNN: where it is the
faster one, only the fraction of its rate says how near they come to the hardware. Dreams in bfloat16 are held to the
float32 products as well, so that fractions compare; the hardware can do up to twice as many.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from wm_rllib.benchmark.dream_contenders import PAPER, SIZES, DreamerV3Dream, OurDream
from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json

SIDE = 2048
PRODUCT_FLOPS = 2 * SIDE**3
PRODUCT = "product by torch.mm"
ONEDNN_PRODUCT = "product by oneDNN"
HELD_TO_DREAMER_V3 = ("paper: delivered", "paper, bfloat16: delivered")
CALLS = 5
"""Calls of one thing in a turn."""


def run(repeats: int = 7, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything; Ray must be running, with at least 3 logical CPUs.

    Args:
        repeats: Turns.
        report: Takes the lines of the report.

    Returns:
        Operations per step, raw seconds and rates by turn, medians and fractions.
    """
    torch.set_num_threads(1)
    ours = {name: OurDream(size) for name, size in SIZES.items()}
    dreamer_v3 = DreamerV3Dream(PAPER.lanes, PAPER.horizon)
    flops: dict[str, float] = {name: one.flops_per_step for name, one in ours.items()}
    flops["DreamerV3 XS"] = dreamer_v3.flops_per_step()
    turns = []
    for turn in range(-1, repeats):  # the first one warms up and is not kept
        raw = _turn(ours, dreamer_v3, seed=CALLS * (turn + 1))
        if turn >= 0:
            turns.append(raw)
            report(f"turn {turn}: " + ", ".join(f"{name} {_milliseconds(values)}" for name, values in raw.items()))
    for one in ours.values():
        one.stop()
    result = {
        "flops_per_step": flops,
        "paper_style_flops_per_step": ours["paper"].paper_flops_per_step,
        "rows": {name: size.rows for name, size in SIZES.items()},
        "seconds": turns,
        **summarise(turns, flops),
    }
    for line in describe(result):
        report(line)
    return result


def _turn(ours: dict[str, OurDream], dreamer_v3: DreamerV3Dream, seed: int) -> dict[str, list[float]]:
    """Seconds of each call of one turn."""
    seconds: dict[str, list[float]] = {}
    _multiply(seconds)
    for name, one in ours.items():
        pairs = [one.delivered(seed + call) for call in range(CALLS)]
        seconds[f"{name}: delivered"], seconds[f"{name}: in the dreamer"] = map(list, zip(*pairs, strict=True))
        seconds[f"{name}: loop"] = [one.bare(seed + call) for call in range(CALLS)]
        _multiply(seconds)
    seconds["DreamerV3 XS: loop"] = [dreamer_v3.seconds(seed + call) for call in range(2)]
    return seconds


def _multiply(seconds: dict[str, list[float]]) -> None:
    matrix = torch.ones(SIDE, SIDE)
    products: dict[str, Callable[[], Any]] = {PRODUCT: lambda: torch.mm(matrix, matrix)}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        linear = torch.ops.mkldnn._linear_pointwise
        products[ONEDNN_PRODUCT] = lambda: linear(matrix, matrix, None, "none", [], "")
    for name, product in products.items():
        for _ in range(2):
            start = time.perf_counter()
            product()
            seconds.setdefault(name, []).append(time.perf_counter() - start)


def summarise(turns: list[dict[str, list[float]]], flops: dict[str, float]) -> dict[str, Any]:
    """Rates by turn and their medians; fractions of the matrix product and ratios to DreamerV3, taken within turns.

    Args:
        turns: Seconds of every call, by what was called.
        flops: Operations per step, by size.
    """
    rates: dict[str, list[float]] = {}
    for turn in turns:
        for name, values in turn.items():
            work = PRODUCT_FLOPS if name.startswith("product") else SIZES.get(_size(name), PAPER).rows
            rates.setdefault(name, []).append(work / statistics.median(values))
    dreams = [name for name in rates if not name.startswith("product")]
    fractions = {
        product: {
            name: [rate * flops[_size(name)] / peak for rate, peak in zip(rates[name], rates[product], strict=True)]
            for name in dreams
        }
        for product in (PRODUCT, ONEDNN_PRODUCT)
        if product in rates
    }
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates[name], rates["DreamerV3 XS: loop"], strict=True)]
        for name in dreams
        if name in HELD_TO_DREAMER_V3
    }
    return {
        "rates": rates,
        "median_rates": _medians(rates),
        "fractions": fractions,
        "median_fractions": {product: _medians(values) for product, values in fractions.items()},
        "times_dreamer_v3": ratios,
        "median_times_dreamer_v3": _medians(ratios),
    }


def _size(name: str) -> str:
    return name.partition(":")[0]


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(of_turns) for name, of_turns in values.items()}


def describe(result: dict[str, Any]) -> list[str]:
    """The report's last lines."""
    rates, flops = result["median_rates"], result["flops_per_step"]
    lines = [f"{name}: {rates[name] / 1e9:.1f} GFLOP/s" for name in result["median_fractions"]]
    for name in result["median_fractions"][PRODUCT]:
        shares = [f"{values[name]:.1%} of {product}" for product, values in result["median_fractions"].items()]
        per_step = flops[_size(name)] / 1e6
        lines.append(f"{name}: {rates[name]:,.0f} steps/s x {per_step:.3f} MFLOP = {', '.join(shares)}")
    more = flops["DreamerV3 XS"] / flops["paper"]
    for name, ratio in result["median_times_dreamer_v3"].items():
        more_work = f"whose step is {more:.1f} times the arithmetic"
        lines.append(f"{name}: {ratio:.1f} times the steps/s of DreamerV3 XS, {more_work}")
    return lines


def _milliseconds(values: list[float]) -> str:
    return "/".join(f"{1e3 * value:.1f}" for value in values) + " ms"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m wm_rllib.benchmark.speed_dream", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="turns to measure")
    parser.add_argument("--json", type=Path, help="file to write every raw number to")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "wm_rllib.benchmark.speed_dream", *argv])
    # Ray runs workers at niceness 15: on a busy machine the dreamer would have less of it than what it is held to.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=len(SIZES), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        result = {"provenance": provenance(command, 1), **run(args.repeats)}
    finally:
        ray.shutdown()
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
