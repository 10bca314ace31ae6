"""The figures of trust as TensorBoard events: curves over steps ahead, and plots as images."""

from __future__ import annotations

import math
from pathlib import Path

from tensorboardX import SummaryWriter

from wm_rllib.look.dream_check import DreamCheck


def write_events(folder: Path, check: DreamCheck) -> None:
    """Writes one event file into a folder; its steps are steps ahead, not real steps of training."""
    figures = check.figures
    writer = SummaryWriter(logdir=str(folder))
    for name, errors in (("policy", figures.on_policy), ("random", figures.off_policy)):
        for step, value in enumerate(errors.relative.tolist(), 1):
            if math.isfinite(value):
                writer.add_scalar(f"open_loop_error/{name}", value, step)
    for edge, predicted, seen in zip(figures.ends.edges, figures.ends.predicted, figures.ends.seen, strict=False):
        if math.isfinite(predicted):
            writer.add_scalar("ends/seen_by_predicted_in_thousandths", seen, round(1000 * max(edge, predicted)))
    for name, promise in (("horizon", figures.near), ("whole_episodes", figures.whole)):
        writer.add_scalar(f"return_gap/{name}", promise.gap, promise.steps)
        writer.add_histogram(f"returns/{name}/paid", promise.real, 0)
        writer.add_histogram(f"returns/{name}/dreamed", promise.dreamed.flatten(), 0)
    if check.film is not None:
        writer.add_image("real_above_dreamed", check.film, 0, dataformats="HWC")
    writer.close()
