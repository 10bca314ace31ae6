"""Plots by matplotlib: inline SVG for the report, and traces as frames. No other module imports matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from wm_rllib.runs.errors import CommandError

REAL, DREAM, EXPECTED, MUTED, CARE = "#1f2933", "#e8590c", "#1c7ed6", "#adb5bd", "#2b8a3e"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#868e96",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e9ecef",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#495057",
    "ytick.color": "#495057",
    "axes.labelcolor": "#495057",
    "text.color": "#1f2933",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "axes.prop_cycle": "cycler('color', ['#1c7ed6', '#e8590c', '#2b8a3e', '#9c36b5', '#f08c00', '#0c8599', '#c2255c', "
    "'#868e96'])",
    "svg.fonttype": "path",
}


def require_matplotlib() -> None:
    """Makes sure, before anything takes time, that plots can be drawn.

    Raises:
        CommandError: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise CommandError(
            'pictures and plots need matplotlib, which is not installed. Fix: pip install "wm_rllib[look]".'
        ) from None


class Plot:
    """One figure: its axes, to be drawn on, and the SVG that it becomes."""

    def __init__(self, figure: Any):
        self.figure = figure
        self.svg = ""

    def axes(self, rows: int = 1, columns: int = 1, **options: Any) -> Any:
        """The axes [rows, columns], flat."""
        return self.figure.subplots(rows, columns, squeeze=False, **options).flatten()


@contextmanager
def plot(width: float, height: float, name: str) -> Iterator[Plot]:
    """A figure in our style, in inches; its `svg` is there afterwards, the same for the same content."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawn = Plot(Figure(figsize=(width, height), layout="constrained"))
        yield drawn
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        drawn.svg = _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """SVG as a part of an HTML page: no prolog, no metadata, and ids that no other figure of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for attribute in (r'id="', r'href="#', r"url\(#"):
        svg = re.sub(attribute, lambda match: f"{match.group()}{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


MOST_TRACES = 8


class PathPlot:
    """Traces of numbers over time, drawn again and again: all but the lines is laid out once, which is what takes time.

    Args:
        size: How many numbers there are; the first 8 are drawn.
        low: [O], least of each axis.
        high: [O], most of each axis.
        steps: Length of the time axis.
    """

    def __init__(self, size: int, low: np.ndarray, high: np.ndarray, steps: int):
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._steps, shown = steps, min(size, MOST_TRACES)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.0, 3.0), dpi=100, layout="constrained")
            self._canvas, self._figure = FigureCanvasAgg(figure), figure
            if shown < size:
                figure.suptitle(f"{shown} of {size} numbers", fontsize=7)
            self._axes = figure.subplots(shown, 1, squeeze=False, sharex=True).flatten()
            self._lines, self._points = [], []
            for index, axis in enumerate(self._axes):
                margin = 0.05 * (high[index] - low[index]) + 1e-6
                axis.set_ylim(low[index] - margin, high[index] + margin)
                self._lines += axis.plot([], [], color=EXPECTED)
                self._points += axis.plot([], [], "o", color=EXPECTED, markersize=3)
                axis.tick_params(labelsize=6)
                axis.set_ylabel(str(index), rotation=0, fontsize=7)

    def frame(self, path: np.ndarray) -> np.ndarray:
        """The numbers so far [T + 1, O], as a frame [height, width, 3] uint8."""
        last = len(path) - 1
        for index, (line, point) in enumerate(zip(self._lines, self._points, strict=True)):
            line.set_data(np.arange(len(path)), path[:, index])
            point.set_data([last], [path[-1, index]])
        self._axes[0].set_xlim(0, max(self._steps, last, 1))  # of all: they share it
        self._canvas.draw()  # type: ignore[no-untyped-call]
        self._figure.set_layout_engine("none")
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
