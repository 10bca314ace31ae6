r"""Speed of dreams, training and encoding on a GPU, against the device's own ceilings, measured in the same run.

    python -m wm_rllib.benchmark.speed_gpu --json benchmarks/results/speed/gpu.json

Needs torch, NumPy and Gymnasium, not Ray. On a CPU it runs at small sizes, as a check of itself. Every cell is measured
for itself: one that fails, or for which there is no time left, says so in the table and in the JSON file, which is
written after each of them.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wm_rllib.benchmark.device_cells import ROWS, Cell, all_cells, bound, flops_per_item, measure
from wm_rllib.benchmark.device_clock import (
    BFLOAT16,
    FLOAT32,
    SAMPLE_S,
    TF32,
    OutOfTimeError,
    copy_rate,
    product_rate,
    time_limit,
)
from wm_rllib.benchmark.device_work import COMPILED
from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json

CELL_LIMIT_S = 45.0
"""Of one cell, compilation included."""
LEAST_TIME_S = {COMPILED: 10.0}
"""What must be left of the time limit for a cell to be begun; a second for the others."""

Result = dict[str, Any]


def run(
    device: torch.device,
    *,
    only: Sequence[str] = (),
    limit_s: float = 170.0,
    sample_s: float = SAMPLE_S,
    say: Callable[[str], None] = print,
    save: Callable[[Result], None] = lambda _: None,
) -> Result:
    """Measures ceilings and cells.

    Args:
        device: A GPU, or a CPU for small sizes.
        only: Cells whose name has one of these texts in it; all if empty.
        limit_s: Seconds after which no cell is begun; the one under way is ended.
        sample_s: Least length of a sample, in seconds.
        say: Takes a line on each cell, and the table.
        save: Takes the result, after each cell.

    Returns:
        Provenance, ceilings and, for each cell, raw seconds and what follows from them, or its error.
    """
    end = time.monotonic() + limit_s
    result: Result = {"device": _describe(device), "ceilings": {}, "errors": {}, "flops_per_item": {}, "cells": []}
    _ceilings(device, result, end)
    cells = [cell for cell in all_cells(device) if not only or any(text in cell.name for text in only)]
    for row in ROWS:
        if any(cell.row is row for cell in cells):
            _try(result, f"operations of {row.name}", end, lambda row=row: _count(result, row))  # type: ignore[misc]
    for cell in cells:
        one = _cell(cell, result, end, sample_s)
        result["cells"].append(one)
        say(f"{cell.name}: " + (one["error"] or f"{one['rate']:,.0f} {cell.row.unit}/s"))
        save(result)
    for line in table(result):
        say(line)
    return result


def _ceilings(device: torch.device, result: Result, end: float) -> None:
    precisions = (FLOAT32, TF32, BFLOAT16) if device.type == "cuda" else (FLOAT32, BFLOAT16)
    ceilings = result["ceilings"]
    for precision in precisions:

        def measured(precision: str = precision) -> None:
            ceilings[precision] = product_rate(precision, device)

        _try(result, f"product in {precision}", end, measured)
    _try(result, "copy", end, lambda: ceilings.update(copy=copy_rate(device)))
    _free(device)


def _count(result: Result, row: Any) -> None:
    result["flops_per_item"][row.name] = flops_per_item(row)


def _try(result: Result, name: str, end: float, work: Callable[[], Any]) -> None:
    """Records an error under its name and goes on."""
    try:
        with time_limit(min(CELL_LIMIT_S, end - time.monotonic())):
            work()
    except Exception as error:
        result["errors"][name] = _text(error)


def _cell(cell: Cell, result: Result, end: float, sample_s: float) -> Result:
    """One cell's line: what was measured and what follows, or the error."""
    setup = cell.setup
    line: Result = {
        "row": cell.row.name,
        "unit": cell.row.unit,
        "batch": setup.batch,
        "precision": setup.precision,
        "mode": setup.mode,
        "error": None,
    }
    try:
        left = end - time.monotonic()
        if left < LEAST_TIME_S.get(setup.mode, 1.0):
            raise OutOfTimeError("no time left")
        with time_limit(min(CELL_LIMIT_S, left)):
            line |= measure(cell, sample_s)
        line |= conclude(line, result["ceilings"], result["flops_per_item"].get(cell.row.name))
    except Exception as error:
        line["error"] = _text(error)
        if not isinstance(error, OutOfTimeError):
            traceback.print_exc()  # not into the file: it names folders of the machine
    if setup.mode == COMPILED:
        torch._dynamo.reset()
    _free(setup.device)
    return line


def conclude(line: Result, ceilings: dict[str, float], flops_per_item: float | None) -> Result:
    """Rates, fractions of the ceilings and the bound of what `measure` returned.

    Args:
        line: A cell and its measurements.
        ceilings: FLOP/s by precision, and bytes/s of a copy; what could not be measured is missing.
        flops_per_item: Operations of one item.
    """
    seconds, items = statistics.median(line["seconds"]), line["items"]
    flop_rate = None if flops_per_item is None else flops_per_item * items / seconds
    byte_rate = line["bytes"] / seconds if "bytes" in line else None
    growth = statistics.median(line["seconds_larger"]) / seconds if "seconds_larger" in line else None
    compute = _fraction(flop_rate, ceilings.get(line["precision"]))
    memory = _fraction(byte_rate, ceilings.get("copy"))
    return {
        "median_s": seconds,
        "rate": items / seconds,
        "compile_s": line["first_call_s"] - seconds if line["mode"] == COMPILED else None,
        "flops_per_item": flops_per_item,
        "flop_rate": flop_rate,
        "compute_fraction": compute,
        "bytes_per_item": line["bytes"] / items if "bytes" in line else None,
        "byte_rate": byte_rate,
        "memory_fraction": memory,
        "growth": growth,
        "bound": bound(compute, memory, growth),
    }


def _fraction(rate: float | None, ceiling: float | None) -> float | None:
    return None if rate is None or ceiling is None else rate / ceiling


def _text(error: Exception) -> str:
    """The error in one line: a compiler's second line says what it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:2]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}" if lines else type(error).__name__


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            pass  # a device in an error state; every cell that follows will say so


def _describe(device: torch.device) -> Result:
    if device.type != "cuda":
        return {"type": device.type, "name": None, "torch": torch.__version__, "num_threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(device)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


HEAD = (
    "work",
    "batch",
    "precision",
    "how",
    "rate",
    "ms a call",
    "MFLOP, kB an item",
    "of the product",
    "of the copy",
    "4 x batch",
    "bound by",
    "compiled in",
)


def table(result: Result) -> list[str]:
    """Lines of a Markdown report: device, ceilings, one row for each cell, and errors."""
    device, ceilings = result["device"], result["ceilings"]
    rates = [f"product {name} {rate / 1e12:.2f} TFLOP/s" for name, rate in ceilings.items() if name != "copy"]
    rates += [f"copy {ceilings['copy'] / 1e9:,.0f} GB/s"] if "copy" in ceilings else []
    name = device["name"] or f"{device['type']}, {device['num_threads']} threads"
    lines = [f"{name}, torch {device['torch']}; {'; '.join(rates)}.", ""]
    lines += [_joined(HEAD), _joined(["---"] * len(HEAD))]
    lines += [_joined(_columns(line)) for line in sorted(result["cells"], key=_place)]
    errors = [f"{where}: {error}" for where, error in result["errors"].items()]
    return lines + (["", *errors] if errors else [])


def _place(line: Result) -> tuple[int, int]:
    """By row, then batch; within one in the order of measurement."""
    return [row.name for row in ROWS].index(line["row"]), line["batch"]


def _joined(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |"


def _columns(line: Result) -> list[str]:
    start = [line["row"], f"{line['batch']:,}", line["precision"], line["mode"]]
    if line["error"]:
        return [*start, line["error"].replace("|", "/"), *[""] * (len(HEAD) - 5)]
    flops, size, compiled = line["flops_per_item"], line["bytes_per_item"], line["compile_s"]
    return [
        *start,
        f"{line['rate']:,.0f} {line['unit']}/s",
        f"{1e3 * line['median_s']:.3f}",
        ", ".join(["" if flops is None else f"{flops / 1e6:.3f}", "" if size is None else f"{size / 1e3:,.1f}"]),
        _percent(line["compute_fraction"]),
        _percent(line["memory_fraction"]),
        "" if line["growth"] is None else f"{line['growth']:.2f} x",
        line["bound"],
        "" if compiled is None else f"{compiled:.0f} s",
    ]


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.1%}"


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        ValueError: "cuda", and there is no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here. Fix: --device cpu, or a CUDA build of torch.")
    return torch.device(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, which is 0 also where cells have failed."""
    parser = argparse.ArgumentParser(prog="python -m wm_rllib.benchmark.speed_gpu", description=__doc__)
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--only", action="append", default=[], help="text in the name of a cell; may be repeated")
    parser.add_argument("--time-limit", type=float, default=170.0, help="seconds for everything (170)")
    parser.add_argument("--json", type=Path, help="file for every raw number")
    parser.add_argument("--commit", help="of this code, where it is in no repository")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    try:
        device = choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    if device.type == "cpu":
        torch.set_num_threads(1)  # small sizes on a busy machine: threads would wait for each other
    # Stamped before the first cell: the file is of use even if the last one never comes back.
    made = provenance("python -m wm_rllib.benchmark.speed_gpu " + shlex.join(argv), torch.get_num_threads())
    made["git_commit"] = made["git_commit"] or args.commit

    def save(result: Result) -> None:
        if args.json:
            write_json(args.json, {"provenance": made, **result})

    result = run(device, only=args.only, limit_s=args.time_limit, say=lambda line: print(line, flush=True), save=save)
    save(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
