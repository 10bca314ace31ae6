"""The report's plot: learning curves, median and quartiles over the seeds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wm_rllib.benchmark.aggregation import Group
from wm_rllib.benchmark.store import Result
from wm_rllib.runs.errors import CommandError

GRID_POINTS = 200
_STYLES = ("-", "--", ":", "-.")


def draw(environments: Mapping[str, Sequence[Group]]) -> bytes:
    """Return the plot as a PNG, the same bytes for the same results and version of matplotlib.

    Raises:
        CommandError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError(
            'the plot needs matplotlib, which is not installed. Fix: pip install "wm_rllib[benchmark]".'
        ) from None
    columns = min(2, len(environments))
    rows = -(-len(environments) // columns)
    figure = Figure(figsize=(7.0 * columns, 4.6 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    order = sorted({group.contender for groups in environments.values() for group in groups})
    for axis, (env_id, groups) in zip(axes, environments.items(), strict=False):
        _draw_environment(axis, env_id, groups, order)
    for axis in axes[len(environments) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_environment(axis: Any, env_id: str, groups: Sequence[Group], order: Sequence[str]) -> None:
    for group in groups:
        curves = [result for result in group.results if result.curve]
        if not curves:
            continue
        grid, returns = common_grid(curves)
        number = order.index(group.contender)
        look = {"color": f"C{number % 10}", "linestyle": _STYLES[number // 10 % len(_STYLES)]}
        median = np.median(returns, axis=0)
        axis.plot(grid, median, label=group.contender, linewidth=1.5, **look)
        axis.plot(grid[-1], median[-1], marker="o", markersize=4, color=look["color"])  # the longest run has ended
        low, high = np.percentile(returns, (25, 75), axis=0)
        axis.fill_between(grid, low, high, color=look["color"], alpha=0.15, linewidth=0)
    threshold = groups[0].results[0].job.measure.threshold
    if threshold is not None:
        axis.axhline(threshold, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    axis.set_xscale("log")
    axis.set_title(env_id)
    axis.set_xlabel("real environment steps")
    axis.set_ylabel("greedy return, median and IQR")
    axis.grid(visible=True, which="major", linewidth=0.3)
    axis.legend(fontsize=7, frameon=False)


def common_grid(curves: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps [N] and the return of each seed at them [S, N].

    A curve holds its last evaluation until the next; one that ended, solved or not, holds its last one to the end of
    the longest, and the grid starts where all have begun.
    """
    start = max(result.curve[0].steps for result in curves)
    end = max(result.curve[-1].steps for result in curves)
    grid = np.unique(np.geomspace(start, end, GRID_POINTS).round().astype(int))
    return grid, np.stack([_held(result, grid) for result in curves])


def _held(result: Result, grid: np.ndarray) -> np.ndarray:
    steps = np.array([point.steps for point in result.curve])
    means = np.array([point.mean for point in result.curve])
    return means[np.searchsorted(steps, grid, side="right") - 1]
