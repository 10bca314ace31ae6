"""The report's Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from wm_rllib.benchmark.aggregation import Bound, Group, Spread, bounded_quantile, quantile, spread
from wm_rllib.benchmark.measuring import SOLVED
from wm_rllib.benchmark.store import Result


def summary_table(environments: Mapping[str, Sequence[Group]]) -> str:
    """Return one table of the confirmed steps to the threshold: a contender a row, the fastest first."""
    ranks: dict[str, list[int]] = {}
    for groups in environments.values():
        for rank, group in enumerate(groups):
            ranks.setdefault(group.contender, []).append(rank)
    contenders = sorted(ranks, key=lambda name: (sum(ranks[name]) / len(ranks[name]), -len(ranks[name]), name))
    cells = {(group.env_id, group.contender): _steps(group) for groups in environments.values() for group in groups}
    rows = [[f"`{name}`", *(cells.get((env_id, name), "-") for env_id in environments)] for name in contenders]
    return "\n".join(_table(["contender", *map(_goal, environments.values())], rows)) + "\n"


def _goal(groups: Sequence[Group]) -> str:
    threshold = groups[0].results[0].job.measure.threshold
    return groups[0].env_id if threshold is None else f"{groups[0].env_id}, {threshold:g}"


def _steps(group: Group) -> str:
    if not group.has_threshold:
        return "-"
    seeds = len(group.results)
    return f"{_spread(spread(group.steps(confirmed=True)))}, {seeds} seed{'s' if seeds != 1 else ''}"


def environment_table(groups: Sequence[Group]) -> str:
    """Return one environment's heading, measure and table."""
    budgets = sorted({budget for group in groups for result in group.results for budget in result.job.measure.budgets})
    header = ["contender", "first at threshold, each seed", "median [IQR]", "confirmed, median [IQR]", "seconds"]
    header += [f"return at {budget:,}" for budget in budgets] + ["runs"]
    rows = [_row(group, budgets) for group in groups]
    lines = [f"### {groups[0].env_id}", "", _measure(groups), "", *_table(header, rows)]
    return "\n".join(lines) + "\n"


def _measure(groups: Sequence[Group]) -> str:
    rule = groups[0].results[0].job.measure
    seeds = sorted({result.job.seed for group in groups for result in group.results})
    goal = f"Threshold {rule.threshold:g}; " if rule.threshold is not None else ""
    return (
        f"{goal}{rule.episodes} greedy episodes every {rule.interval:,} real steps, confirmed by "
        f"{rule.confirm_episodes} fresh ones; seeds {', '.join(map(str, seeds))}."
    )


def _row(group: Group, budgets: Sequence[int]) -> list[str]:
    cells = [f"`{group.contender}`"]
    if group.has_threshold:
        steps = group.steps(confirmed=False)
        cells += [
            ", ".join(map(_bound, steps)),
            _spread(spread(steps)),
            _spread(spread(group.steps(confirmed=True))),
            _bound(bounded_quantile(group.seconds(confirmed=True), 0.5)),
        ]
    else:
        cells += ["-"] * 4
    return [*cells, *(_return(group, budget) for budget in budgets), _endings(group.results)]


def _bound(bound: Bound) -> str:
    return f"{'' if bound.is_exact else '>'}{bound.value:,.0f}"


def _spread(values: Spread) -> str:
    return f"{_bound(values.median)} [{_bound(values.low)}, {_bound(values.high)}]"


def _return(group: Group, budget: int) -> str:
    """The median return; with how many seeds it is of, where some had ended before."""
    returns = group.returns_at(budget)
    if not returns:
        return "-"
    text = f"{quantile(returns, 0.5):.1f}"
    return text if len(returns) == len(group.results) else f"{text} ({len(returns)} of {len(group.results)})"


def _endings(results: Sequence[Result]) -> str:
    counts = Counter(result.status for result in results)
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=_solved_first))


def _solved_first(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] != SOLVED, item[0]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def origin(results: Sequence[Result]) -> str:
    """Return one paragraph on where the results come from."""
    machines = {_machine(result) for result in results if result.provenance}
    commits = {_commit(result) for result in results if result.provenance}
    commands = {str(result.provenance["command"]) for result in results if result.provenance}
    versions = sorted({_versions(result) for result in results if result.provenance})
    lines = [
        *_busy(results),
        f"Measured on {'; '.join(sorted(machines))}, commit {', '.join(sorted(commits))}, {'; '.join(versions)}, by:",
        "",
        "```",
        *sorted(commands),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _machine(result: Result) -> str:
    hardware = result.provenance["hardware"]
    gpu = hardware["gpu"] or "no GPU"
    threads = result.provenance["num_threads"]
    return (
        f"{hardware['cpu']}, {hardware['usable_cores']} cores, {hardware['memory_bytes'] / 2**30:.0f} GiB, {gpu}, "
        f"{threads} thread{'s' if threads != 1 else ''} a run"
    )


def _busy(results: Sequence[Result]) -> list[str]:
    """A warning where the machine had more to do than the runs themselves: seconds mean little then."""
    busy = [
        result.provenance["load_average"][0]
        for result in results
        if result.provenance and result.provenance["load_average"][0] > result.provenance["hardware"]["usable_cores"]
    ]
    if not busy:
        return []
    return [
        f"**{len(busy)} of {len(results)} runs started on a busy machine** (load average up to {max(busy):.0f}): their "
        "seconds and time limits are not comparable.",
        "",
    ]


def _commit(result: Result) -> str:
    commit = str(result.provenance["git_commit"] or "unknown")[:10]
    return f"{commit} with changes" if result.provenance["git_dirty"] else commit


def _versions(result: Result) -> str:
    return ", ".join(f"{name} {number}" for name, number in result.provenance["versions"].items() if number)
