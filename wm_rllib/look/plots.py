"""The report's plots: each takes figures and returns SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wm_rllib.look.drawing import CARE, DREAM, EXPECTED, MUTED, REAL, plot
from wm_rllib.look.measuring import Promise, Traces, TrustFigures
from wm_rllib.look.run import RunHistory
from wm_rllib.models.trust import Calibration, Traversal

WIDE, HALF = 9.2, 4.5
MAX_DIMENSIONS = 8
"""Of an observation that are drawn; of wider ones the first."""
SMALLEST_MOVE = 0.02
"""Of an observation, in V's units, that makes a latent worth a plot."""


def learning_curve(run: RunHistory) -> str:
    """Return over the run, training and evaluation."""
    with plot(WIDE, 3.2, "learning-curve") as figure:
        axis = figure.axes()[0]
        _shade_phases(axis, run)
        axis.plot(*run.series("env_runners/episode_return_mean"), color=MUTED, label="training episodes, recent mean")
        steps, means = run.series("evaluation/episode_return_mean")
        deviations = run.values("evaluation/episode_return_std", steps)
        look = {"color": DREAM, "marker": "o", "markersize": 4, "capsize": 2, "elinewidth": 1}
        if steps:
            axis.errorbar(steps, means, deviations, label="evaluation, greedy: mean and standard deviation", **look)
        if run.stop_return is not None:
            axis.axhline(
                run.stop_return, color=CARE, linestyle=(0, (4, 3)), linewidth=1, label="return that ends the run"
            )
        axis.set(xlabel=run.axis, ylabel="return")
        figure.figure.legend(loc="outside upper left", ncols=3)
    return figure.svg


def _shade_phases(axis: Any, run: RunHistory) -> None:
    for name, start, stop in run.phases:
        if name != "mixed" and stop > start:
            axis.axvspan(start, stop, color="#f1f3f5", linewidth=0)
            axis.text(
                (start + stop) / 2, 0.02, name, transform=axis.get_xaxis_transform(), ha="center", color="#868e96"
            )


def imagination(run: RunHistory) -> str:
    """Share of imagined rows, and what dreams promise beside what is paid; nothing before the first dream."""
    if not run.series("imagination/ratio")[0]:
        return ""
    with plot(WIDE, 2.8, "imagination") as figure:
        ratio, gap = figure.axes(1, 2)
        ratio.plot(*run.series("imagination/ratio"), color=DREAM, label="realised")
        ratio.plot(*run.series("imagination/configured_ratio"), color=REAL, linestyle=":", label="asked for")
        ratio.set(title="share of imagined rows", xlabel=run.axis, ylim=(-0.02, 1.02))
        gap.axhline(0, color="#868e96", linewidth=0.8)
        gap.plot(*run.series("imagination/return_gap"), color=MUTED, label="value targets, dreamed less real")
        steps, means = run.series("imagination/judged_gap")
        errors = [2 * error for error in run.values("imagination/judged_gap_error", steps)]
        look = {"color": DREAM, "marker": "o", "markersize": 3, "capsize": 2, "elinewidth": 1}
        if steps:
            gap.errorbar(steps, means, errors, label="same start states (± 2 standard errors)", **look)
        gap.set(title="return gap", xlabel=run.axis)
        for axis in (ratio, gap):
            axis.legend(loc="best")
    return figure.svg


LOSSES = {
    "mdn/nll": "M: next latent (nats)",
    "vae/reconstruction_loss": "V: reconstruction",
    "mdn/termination_loss": "M: termination (nats)",
    "mdn/reward_loss": "M: reward",
    "trust/error_next": "error next step, of standing still's",
    "trust/steps_ahead": "steps ahead that it predicts",
}


def losses(run: RunHistory) -> str:
    """V and M over the run."""
    measured = {name: title for name, title in LOSSES.items() if run.series(name)[0]}
    if not measured:
        return ""
    rows = math.ceil(len(measured) / 3)
    with plot(WIDE, 0.4 + 1.7 * rows, "losses") as figure:
        axes = figure.axes(rows, 3)
        for axis, (name, title) in zip(axes, measured.items(), strict=False):
            steps, values = run.series(name)
            axis.plot(steps, values, color=EXPECTED, marker="o" if len(steps) < 30 else None, markersize=3)
            axis.set_title(title, fontsize=8.5)
            if min(values) > 0 and max(values) > 30 * min(values):
                axis.set_yscale("log")
        for axis in axes[len(measured) :]:
            axis.set_visible(False)
        figure.figure.supxlabel(run.axis, fontsize=9, color="#495057")
    return figure.svg


def open_loop(figures: TrustFigures, names: Sequence[str]) -> str:
    """Open-loop error by steps ahead, in all and of each dimension."""
    with plot(WIDE, 3.0, "open-loop") as figure:
        all_of_it, each = figure.axes(1, 2)
        for errors, color, label in (
            (figures.on_policy, DREAM, "where the policy goes"),
            (figures.off_policy, MUTED, "where random actions go"),
        ):
            steps = np.arange(1, len(errors.counts) + 1)
            all_of_it.plot(steps, errors.relative.numpy(), color=color, label=label)
        all_of_it.axhline(1.0, color=REAL, linestyle=(0, (4, 3)), linewidth=1, label="standing still")
        all_of_it.set(title="error, of standing still's", xlabel="steps ahead", ylim=(0, None))
        errors = figures.on_policy
        for index in range(min(errors.predicted.shape[1], MAX_DIMENSIONS)):
            steps = np.arange(1, len(errors.counts) + 1)
            each.plot(steps, errors.predicted[:, index].numpy(), color=f"C{index}", label=names[index])
            each.plot(steps, errors.still[:, index].numpy(), color=f"C{index}", linestyle=":", linewidth=1)
        each.set(title="each dimension, in V's units (dotted: standing still)", xlabel="steps ahead", ylim=(0, None))
        for axis in (all_of_it, each):
            axis.legend(loc="best")
    return figure.svg


def reliability(calibration: Calibration) -> str:
    """Ends that M expected and ends that came, by how probable M said that they were."""
    rows = [index for index, count in enumerate(calibration.counts) if count]
    expected = [calibration.counts[index] * calibration.predicted[index] for index in rows]
    seen = [calibration.counts[index] * calibration.seen[index] for index in rows]
    names = [
        f"{_percent(low)}-{_percent(high)} %\n{count:,}"
        for low, high, count in zip(calibration.edges, calibration.edges[1:], calibration.counts, strict=False)
        if count
    ]
    with plot(HALF, 3.0, "reliability") as figure:
        axis, places = figure.axes()[0], np.arange(len(rows))
        axis.bar(places - 0.2, expected, 0.38, color=DREAM, label="ends that M expected")
        axis.bar(places + 0.2, seen, 0.38, color=REAL, label="ends that came")
        axis.set_xticks(places, names, fontsize=7)
        axis.grid(visible=False, axis="x")
        axis.set(title="ends of episodes", xlabel="probability of an end, says M; steps below")
        axis.set_ylim(0, 1.1 * max(1.0, *expected, *seen))
        axis.legend(loc="best")
    return figure.svg


def _percent(probability: float) -> str:
    return f"{100 * probability:g}"


def promises(near: Promise, whole: Promise) -> str:
    """Rewards dreamed beside rewards paid, a dot for each start."""
    with plot(HALF, 3.0, "promise") as figure:
        titles = (f"over {near.steps} steps", "over whole episodes")
        for axis, promise, title in zip(figure.axes(1, 2), (near, whole), titles, strict=True):
            for place, (values, color) in enumerate(((promise.real, REAL), (promise.dreamed.mean(1), DREAM))):
                spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
                axis.plot(place + spread, values, "o", color=color, markersize=3, alpha=0.4, markeredgewidth=0)
                axis.plot([place - 0.32, place + 0.32], [values.mean()] * 2, color=color, linewidth=2)
            axis.set_xticks([0, 1], ["paid", "dreamed"])
            axis.set(title=title, xlim=(-0.6, 1.6))
            axis.margins(y=0.15)
            axis.grid(visible=False, axis="x")
        figure.figure.axes[0].set_ylabel("rewards, summed")
    return figure.svg


def traces(found: Traces, names: Sequence[str]) -> str:
    """A real stretch, and dreams of it under the same actions."""
    real, expected, dreamed = (
        array.reshape(*array.shape[:depth], -1)
        for array, depth in ((found.real, 1), (found.expected, 1), (found.dreamed, 2))
    )
    size = min(real.shape[-1], MAX_DIMENSIONS)
    rows = math.ceil(size / 2)
    with plot(WIDE, 0.6 + 1.5 * rows, "traces") as figure:
        axes = figure.axes(rows, 2, sharex=True)
        for index, axis in enumerate(axes[:size]):
            for number, lane in enumerate(dreamed[..., index]):
                axis.plot(
                    lane, color=DREAM, alpha=0.45, linewidth=0.9, label="dreams, same actions" if not number else None
                )
            axis.plot(expected[:, index], color=EXPECTED, linewidth=1.2, label="M's expectation")
            axis.plot(real[:, index], color=REAL, linewidth=1.4, label="real")
            axis.set_title(names[index])
        for axis in axes[size:]:
            axis.set_visible(False)
        axes[0].legend(loc="best")
        figure.figure.supxlabel("steps after the start", fontsize=9, color="#495057")
    return figure.svg


def traversals(found: Traversal, scale: np.ndarray, names: Sequence[str]) -> str:
    """What each latent stands for, the busiest first; those that V does not use are left out."""
    decoded = found.decoded.flatten(2).numpy()
    change = (decoded - decoded.mean(1, keepdims=True)) / scale
    moved = np.ptp(change, axis=1).max(1)
    order = [latent for latent in np.argsort(-moved)[:8] if moved[latent] >= SMALLEST_MOVE] or [int(moved.argmax())]
    size = min(decoded.shape[-1], MAX_DIMENSIONS)
    rows = math.ceil(len(order) / 4)
    with plot(WIDE, 0.7 + 1.7 * rows, "traversals") as figure:
        axes = figure.axes(rows, 4, sharex=True, sharey=True)
        for axis, latent in zip(axes, order, strict=False):
            for index in range(size):
                axis.plot(found.offsets.numpy(), change[latent, :, index], color=f"C{index}", label=names[index])
            axis.set_title(f"z{latent}, standard deviation {found.spread[latent]:.2f}", fontsize=8.5)
        for axis in axes[len(order) :]:
            axis.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.figure.legend(handles, labels, loc="outside upper center", ncols=min(size, 4))
        figure.figure.supxlabel("latent, in its standard deviations", fontsize=9, color="#495057")
        figure.figure.supylabel("change, in V's units", fontsize=9, color="#495057")
    return figure.svg


def stages(run: RunHistory) -> str:
    """Seconds of every stage, summed, and over the run."""
    totals = run.stage_seconds
    with plot(WIDE, max(2.2, 0.5 + 0.28 * len(totals)), "stages") as figure:
        bars, over_time = figure.axes(1, 2)
        names = list(totals)
        colors = {name: f"C{index % 10}" for index, name in enumerate(names)}
        bars.barh(names[::-1], [totals[name] for name in names[::-1]], color=[colors[name] for name in names[::-1]])
        bars.set(title="seconds in all", xlabel="s")
        bars.grid(visible=False, axis="y")
        steps = run.steps
        over_time.stackplot(
            steps,
            *[run.filled(f"seconds/{name}") for name in names],
            colors=[colors[name] for name in names],
            step="pre",
        )
        over_time.set(title="seconds of each iteration", xlabel=run.axis)
    return figure.svg
