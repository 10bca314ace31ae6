"""The flags of `benchmark` and its subcommands."""

from __future__ import annotations

import argparse
from typing import Any

from wm_rllib.cli.output import LOG_LEVELS

RESULTS = "benchmarks/results"
SUITE = "learning"
REPORTED_IN, PLOT = ["README.md", "docs/results.md"], "docs/benchmark.png"


def add_benchmark(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `benchmark` to the commands; `worker`, which `run` starts, is not listed."""
    parser = commands.add_parser("benchmark", help="measure contenders and ablations, and report", allow_abbrev=False)
    own = parser.add_subparsers(
        dest="benchmark_command", required=True, metavar="run|report|list|speed|soak", parser_class=type(parser)
    )
    _add_run(own.add_parser("run", help="measure; complete results are kept", allow_abbrev=False))
    _add_report(own.add_parser("report", help="write table and plot from the results", allow_abbrev=False))
    _add_common(own.add_parser("list", help="list the contenders", allow_abbrev=False))
    _add_speed(own.add_parser("speed", help="steps per second against peers in the same run", allow_abbrev=False))
    _add_soak(own.add_parser("soak", help="memory of every process over a long run", allow_abbrev=False))
    worker = own.add_parser("worker", allow_abbrev=False)
    worker.add_argument("request", metavar="JSON")
    _add_common(worker)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE.yaml", help="environments, contenders, seeds, measure; flags win over it")
    add("--suite", metavar="NAME", help="folder under --results (the file's name for itself, else adhoc)")
    add("--env", metavar="ID", action="append", help="environment; may be repeated")
    add("--contender", metavar="NAME", action="append", help="see `list`; may be repeated")
    add("--seeds", metavar="S,S,...", help="seeds")
    add("--interval", metavar="STEPS", help="real steps between evaluations")
    add("--episodes", metavar="N", help="greedy episodes of an evaluation")
    add("--threshold", metavar="RETURN", help="mean return that counts as solved (Gymnasium's)")
    add("--max-steps", metavar="STEPS", help="real steps after which a run ends")
    add("--time-limit", dest="time_limit_s", metavar="SECONDS", help="after which a run is ended, all included")
    add("--threads", dest="num_threads", metavar="N", help="threads of torch in each run")
    add(
        "--stop-when-solved",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="end a run at its first confirmed evaluation at the threshold",
    )
    add("--jobs", metavar="N", default="1", help="runs at a time (1)")
    add("--force", action="store_true", help="measure again what is complete")
    _add_common(parser)


def _add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=["dream", "env", "overlap", "scaling", "gpu"],
        help="the dreamers' loop, real env steps, overlapping stages, dream rounds on several logical nodes, or "
        "dreams and training on a GPU",
    )
    parser.add_argument("--turns", metavar="N", default="7", help="turns to measure (7)")
    parser.add_argument("--json", metavar="FILE", help="file for every raw number")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="of `gpu` (auto)")
    parser.add_argument("--time-limit", metavar="SECONDS", default="170", help="of `gpu`, for everything (170)")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[], help="of `gpu`, cells with it in the name"
    )
    parser.add_argument("--verbose", action="store_true", help="show what Ray and RLlib print")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers")


def _add_soak(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", metavar="N", default="30", help="how long (30); two thirds of it count")
    parser.add_argument("--overlap", action="store_true", help="with stages that overlap")
    parser.add_argument("--json", metavar="FILE", help="file for every sample")
    parser.add_argument("--verbose", action="store_true", help="show what Ray and RLlib print")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", metavar="NAME", default=SUITE, help=f"whose results ({SUITE})")
    parser.add_argument(
        "--into", metavar="FILE", nargs="+", default=REPORTED_IN, help=f"files with markers ({' '.join(REPORTED_IN)})"
    )
    parser.add_argument("--plot", metavar="FILE", default=PLOT, help=f"the plot ({PLOT})")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", metavar="DIR", default=RESULTS, help=f"folder of the raw results ({RESULTS})")
    parser.add_argument("--verbose", action="store_true", help="show what Ray and RLlib print")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers")
