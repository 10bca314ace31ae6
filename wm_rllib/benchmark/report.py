"""The report: a short table, all tables and a plot, from the raw results and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from wm_rllib.benchmark.aggregation import group_results
from wm_rllib.benchmark.plot import draw
from wm_rllib.benchmark.store import Result, Store
from wm_rllib.benchmark.tables import environment_table, origin, summary_table
from wm_rllib.runs.errors import CommandError

_HOW_TO_READ = """\
Real steps include random ones; evaluation is not counted. Steps are those of the first evaluation at the threshold;
confirmed: of the first that fresh episodes confirmed. `>N`: not solved within N steps; such a seed counts as slower
than any solved one. Seconds are of training up to the confirmed evaluation, median, without set-up and evaluation.
Returns at a number of steps are medians over the seeds that were still running. In the plot a run that has ended keeps
its last return. Written by `python -m wm_rllib benchmark report`.
"""


def make_tables(results: list[Result], plot_link: str) -> str:
    """Return all figures as Markdown.

    Args:
        results: At least one that is complete; the others are named, and count for nothing.
        plot_link: Where the plot is, seen from the text.
    """
    complete = [result for result in results if result.is_complete]
    environments = group_results(complete)
    tables = "\n".join(environment_table(groups) for groups in environments.values())
    return f"{_HOW_TO_READ}\n![learning curves]({plot_link})\n\n{tables}\n{_left_out(results)}{origin(complete)}"


def make_summary(results: list[Result], plot_link: str) -> str:
    """Return one table of steps to the threshold, and the plot; arguments as of `make_tables`."""
    environments = group_results(result for result in results if result.is_complete)
    return f"{summary_table(environments)}\n![learning curves]({plot_link})\n"


PARTS = {"benchmark:summary": make_summary, "benchmark:tables": make_tables}
"""What a file may take in, by the name in the two markers around it."""


def _left_out(results: list[Result]) -> str:
    names = [f"{result.job} ({result.status})" for result in results if not result.is_complete]
    return f"Left out, since incomplete: {'; '.join(names)}.\n\n" if names else ""


def write_report(store: Store, suite: str, *, files: list[Path], plot: Path) -> str:
    """Write the plot, and between the markers of each file what they ask for; returns all figures as Markdown.

    Raises:
        CommandError: If there are no results, a file has no markers, or there is no matplotlib.
    """
    results = store.read_suite(suite)
    complete = [result for result in results if result.is_complete]
    if not complete:
        raise CommandError(
            f"suite {suite!r} has no complete result yet. Fix: `benchmark run` measures what is missing."
        )
    texts = [_rewritten(file, results, Path(os.path.relpath(plot, file.parent)).as_posix()) for file in files]
    image = draw(group_results(complete))
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_bytes(image)
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    return make_tables(results, plot.name)


def _rewritten(file: Path, results: list[Result], plot_link: str) -> str:
    """Return the file's text with new figures between its markers."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if not any(_around(text, name) for name in PARTS):
        pairs = " or ".join(" and ".join(_markers(name)) for name in PARTS)
        raise CommandError(
            f"{file} has no lines {pairs}, between which figures go. Fix: add them, or name another file with --into."
        )
    for name, make in PARTS.items():
        if around := _around(text, name):
            begin, end = _markers(name)
            text = f"{around[0]}{begin}\n{make(results, plot_link)}{end}{around[1]}"
    return text


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _around(text: str, name: str) -> tuple[str, str] | None:
    """Return what stands before and after a part's markers; None without both."""
    begin, end = _markers(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    return (before, after) if found and closed else None
