"""The report: tables in README.md and a plot, from the raw results and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from wm_rllib.benchmark.aggregation import group_results
from wm_rllib.benchmark.plot import draw
from wm_rllib.benchmark.store import Result, Store
from wm_rllib.benchmark.tables import environment_table, origin
from wm_rllib.cli.errors import CommandError

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"

_HOW_TO_READ = """\
Real steps include random ones; evaluation is not counted. Steps are those of the first evaluation at the threshold;
confirmed: of the first that fresh episodes confirmed. `>N`: not solved within N steps; such a seed counts as slower
than any solved one. Seconds are of training up to the confirmed evaluation, median, without set-up and evaluation.
Returns at a number of steps are medians over the seeds that were still running. In the plot a run that has ended keeps
its last return. Written by `python -m wm_rllib benchmark report`.
"""


def make_report(results: list[Result], plot_link: str) -> str:
    """Return the report as Markdown.

    Args:
        results: At least one that is complete; the others are named, and count for nothing.
        plot_link: Where the plot is, seen from the text.
    """
    complete = [result for result in results if result.is_complete]
    environments = group_results(complete)
    tables = "\n".join(environment_table(groups) for groups in environments.values())
    return f"{_HOW_TO_READ}\n![learning curves]({plot_link})\n\n{tables}\n{_left_out(results)}{origin(complete)}"


def _left_out(results: list[Result]) -> str:
    names = [f"{result.job} ({result.status})" for result in results if not result.is_complete]
    return f"Left out, since incomplete: {'; '.join(names)}.\n\n" if names else ""


def write_report(store: Store, suite: str, *, readme: Path, plot: Path) -> str:
    """Write the plot, and the tables between the markers of the readme; returns the Markdown.

    Raises:
        CommandError: If there are no results, no markers or no matplotlib.
    """
    results = store.read_suite(suite)
    complete = [result for result in results if result.is_complete]
    if not complete:
        raise CommandError(
            f"suite {suite!r} has no complete result yet. Fix: `benchmark run` measures what is missing."
        )
    before, after = _around_markers(readme)
    image = draw(group_results(complete))
    link = Path(os.path.relpath(plot, readme.parent)).as_posix()
    report = make_report(results, link)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_bytes(image)
    readme.write_text(f"{before}{BEGIN}\n{report}{END}{after}", encoding="utf-8")
    return report


def _around_markers(readme: Path) -> tuple[str, str]:
    """Return what stands before and after the markers."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CommandError(
            f"{readme} has no lines {BEGIN} and {END}, between which the report goes. "
            "Fix: add them, or another --readme."
        )
    return before, after
