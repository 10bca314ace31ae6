"""The cells of `speed gpu`: what is measured in which precision and how, and what one measurement says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from wm_rllib.benchmark.device_clock import (
    BFLOAT16,
    FLOAT32,
    TF32,
    count_bytes,
    count_flops,
    first_call_s,
    float32_products,
    samples_s,
)
from wm_rllib.benchmark.device_dreams import Dreams, StepwiseDreams
from wm_rllib.benchmark.device_work import (
    COMPILED,
    EAGER,
    GRAPH,
    DeviceWork,
    MdnRnnTraining,
    PpoUpdate,
    Setup,
    VaeEncoding,
    VaeTraining,
    VaeTrainingFromHost,
)

LARGER = 4
"""How much larger a batch is by which launches are told from work."""
HARDLY_GROWS = 1.5
"""A call that takes less than so many times as long with the larger batch is bound by launches."""
BUSY = 0.25
"""Of the device's product or copy rate, from which on that rate is called the bound."""


@dataclass(frozen=True)
class Row:
    """One kind of work.

    Attributes:
        name: In the table.
        unit: What is counted.
        make: Builds the work.
        batches: On a GPU.
        small_batch: On a CPU.
        cells: Pairs of precision and mode.
    """

    name: str
    unit: str
    make: Callable[[Setup], DeviceWork]
    batches: tuple[int, ...]
    small_batch: int
    cells: tuple[tuple[str, str], ...]


_EAGER = ((FLOAT32, EAGER), (TF32, EAGER), (BFLOAT16, EAGER))
_ALL = (*_EAGER, (BFLOAT16, COMPILED), (FLOAT32, COMPILED))
_IN_PLACE = (*_EAGER, *((precision, GRAPH) for precision in (FLOAT32, TF32, BFLOAT16)))
_STEPWISE = ((BFLOAT16, EAGER), (BFLOAT16, COMPILED), (FLOAT32, COMPILED))

ROWS = (
    Row("dream", "steps", Dreams, (256, 2048, 16384), 64, _IN_PLACE),
    Row("dream, M's public steps", "steps", StepwiseDreams, (256, 2048, 16384), 64, _STEPWISE),
    Row("V training", "frames", VaeTraining, (128, 1024), 8, _ALL),
    Row(
        "V training, frames on the host",
        "frames",
        VaeTrainingFromHost,
        (128, 1024),
        8,
        ((TF32, EAGER), (BFLOAT16, EAGER)),
    ),
    Row("M training", "transitions", MdnRnnTraining, (32, 256), 4, _ALL),
    Row("PPO update", "rows", PpoUpdate, (512, 16384), 64, _ALL),
    Row("V encoding", "frames", VaeEncoding, (512, 4096), 16, _ALL),
)


@dataclass(frozen=True)
class Cell:
    """One line of the table, to be measured."""

    row: Row
    setup: Setup

    @property
    def name(self) -> str:
        """For people and for `--only`."""
        return f"{self.row.name} | {self.setup.batch} | {self.setup.precision} | {self.setup.mode}"


def all_cells(device: torch.device) -> list[Cell]:
    """All cells for a device.

    What may take long or break comes last: graphs, then compilation, of large batches and in bfloat16 first.
    """
    cells = list(_cells(device))
    order = {EAGER: 0, GRAPH: 1, COMPILED: 2}

    def place(cell: Cell) -> tuple[int, bool, bool]:
        setup, compiled = cell.setup, cell.setup.mode == COMPILED
        is_small = setup.batch != cell.row.batches[-1]
        return order[setup.mode], compiled and is_small, compiled and setup.precision != BFLOAT16

    return sorted(cells, key=place)  # stable


def _cells(device: torch.device) -> Iterator[Cell]:
    on_gpu = device.type == "cuda"
    for row in ROWS:
        for batch in row.batches if on_gpu else (row.small_batch,):
            for precision, mode in row.cells:
                if on_gpu or (precision != TF32 and mode != GRAPH):
                    yield Cell(row, Setup(device, batch, precision, mode))


def flops_per_item(row: Row) -> float:
    """Operations of matrix products and convolutions for one item, counted on the CPU."""
    work = row.make(Setup(torch.device("cpu"), 2))
    return count_flops(work) / work.items


def measure(cell: Cell, sample_s: float) -> dict[str, Any]:
    """Raw seconds of one cell, and what they are held against.

    Args:
        cell: What to measure.
        sample_s: Least length of a sample, in seconds.
    """
    setup = cell.setup
    with float32_products(setup.precision):
        work = cell.row.make(setup)
        first = first_call_s(work, setup.device)
        seconds = samples_s(work, setup.device, sample_s=sample_s)
        measured: dict[str, Any] = {"items": work.items, "first_call_s": first, "seconds": seconds}
        if setup.mode == EAGER:
            measured["bytes"] = count_bytes(work)
        if setup.mode != COMPILED:  # which would be compiled for the other size once more
            del work
            larger = cell.row.make(replace(setup, batch=LARGER * setup.batch))
            measured["seconds_larger"] = samples_s(larger, setup.device, 3, sample_s)
    return measured


def bound(compute: float | None, memory: float | None, growth: float | None) -> str:
    """What bounds a call.

    Args:
        compute: Achieved fraction of the product's rate in the same precision.
        memory: Of the copy's rate; what operations read and write, each by itself.
        growth: How many times as long a call takes that has `LARGER` times as many items.
    """
    if growth is None or compute is None:
        return ""
    if growth < HARDLY_GROWS:
        return "launches"
    fraction, name = max((compute, "compute"), (memory or 0.0, "memory"))
    return name if fraction >= BUSY else f"none, most {name}"
