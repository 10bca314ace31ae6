"""The program `wm-rllib`, also `python -m wm_rllib`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wm_rllib.cli.benchmark_flags import add_benchmark
from wm_rllib.cli.look_flags import add_dream, add_report
from wm_rllib.cli.output import LOG_LEVELS, configure_output
from wm_rllib.cli.ray_session import cluster_address
from wm_rllib.environments.errors import EnvironmentContractError
from wm_rllib.runs.errors import CommandError
from wm_rllib.settings.settings import SettingError

MODULES = {"plan": "planner"}
"""Of commands, where it is not named as the command."""


SCRIPT = "wm-rllib"
"""The command that installing the package brings."""
ENV_HELP = 'Gymnasium id, or "package.module:name" of a class or function'
SET_HELP = "one setting, e.g. evaluation.interval=250; may be repeated"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One message, like every other mistake; argparse would print its usage before it.
        raise CommandError(f"{message}. Fix: see `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Values stay texts here, so that one table (`settings/settings.py`) judges them wherever they come from.
    """
    script = Path(sys.argv[0]).name
    prog = script if script == SCRIPT else "python -m wm_rllib"
    parser = _Parser(prog=prog, description="World Models for RLlib.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_train(commands)
    _add_evaluate(commands)
    _add_plan(commands)
    _add_sweep(commands)
    _add_settings(commands)
    _add_temperatures(commands)
    add_benchmark(commands)
    add_report(commands)
    add_dream(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "train an agent, or go on with a run; `settings` lists what --config and --set take"
    add = commands.add_parser("train", help="train an agent", description=about, allow_abbrev=False).add_argument
    add("--config", metavar="FILE.yaml", help="settings; flags and --set win over them")
    add("--env", metavar="ID", help=ENV_HELP)
    add("--total-timesteps", metavar="N", help="end after this many real steps")
    add(
        "--stop-return",
        metavar="R",
        help="end when an evaluation, and a second one, reach this; needs evaluation.interval",
    )
    add("--num-envs", metavar="N", help="environments in each env runner")
    add("--device", metavar="cpu|cuda|auto", help="where learners compute")
    add("--seed", metavar="S", help="seed of everything random")
    add(
        "--run-dir",
        metavar="DIR",
        type=_folder,
        help="run folder, a path or s3://...; default runs/<env>-<date>-<time>",
    )
    add("--resume", metavar="PATH|auto", help="go on from a checkpoint; auto: the newest in --run-dir, if any")
    add("--checkpoint-frequency", metavar="ITERATIONS", help="iterations between checkpoints")
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True, help="write TensorBoard events")
    add("--set", metavar="KEY.PATH=VALUE", action="append", default=[], help=SET_HELP)
    _add_ray(add)


def _folder(text: str) -> str:
    """A folder as given; an empty text, as of a shell variable that is not set, would be the present one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a folder, and is empty")
    return text


def _add_ray(add: Callable[..., Any]) -> None:
    """The flags of whatever trains."""
    add(
        "--address",
        metavar="RAY",
        type=cluster_address,
        help="address of a Ray cluster; default RAY_ADDRESS, else a local Ray",
    )
    add("--verbose", action="store_true", help="show what Ray and RLlib print")
    add("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers, in every actor")


def _add_evaluate(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "play greedy episodes with a checkpoint's agent, and print their mean return"
    add = commands.add_parser("evaluate", help=about, description=about, allow_abbrev=False).add_argument
    add("checkpoint", metavar="CHECKPOINT", help="checkpoint (folder or URI), or run folder (its best, else its last)")
    add("--env", metavar="ID", help="environment; default: the one it was trained in")
    add("--episodes", metavar="N", help="episodes (20)")
    add("--seed", metavar="S", help="seed of the episodes; default: fresh ones")
    add("--planner", metavar="random|cem|mppi", help="also play by search in the world model, and time decisions")
    _add_output(add)


def _add_output(add: Callable[..., Any]) -> None:
    """The flags of whatever plays with a checkpoint."""
    add("--json", action="store_true", help="print one line of JSON")
    add("--verbose", action="store_true", help="show warnings")
    add("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers")


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "play by search in a checkpoint's world model, without its policy network"
    add = commands.add_parser("plan", help=about, description=about, allow_abbrev=False).add_argument
    add("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, or run folder (its best, else its last)")
    add("--env", metavar="ID", help="environment; default: the one it was trained in")
    add("--planner", metavar="random|cem|mppi", help="how candidates are chosen (cem)")
    add("--horizon", metavar="N", help="actions of a plan (5)")
    add("--samples", metavar="N", help="candidates of an iteration (64)")
    add("--iterations", metavar="N", help="iterations of a decision (3)")
    add("--critic", action=argparse.BooleanOptionalAction, default=True, help="value what comes after the horizon")
    add("--episodes", metavar="N", help="episodes, one after the other (5)")
    add("--seed", metavar="S", help="seed of the episodes and of the search; default: fresh ones")
    _add_output(add)


def _add_settings(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "list settings with their defaults, ranges and names in Python"
    add = commands.add_parser("settings", help=about, description=about, allow_abbrev=False).add_argument
    add("text", metavar="TEXT", nargs="?", help="only those with this in their key or meaning")
    add("--markdown", action="store_true", help="as a table, like docs/settings.md")
    add("--verbose", action="store_true", help="show warnings")
    add("--log-level", choices=LOG_LEVELS, help="level of the wm_rllib loggers")


def _add_sweep(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "search settings with Ray Tune, or go on with a sweep"
    add = commands.add_parser("sweep", help=about, description=about, allow_abbrev=False).add_argument
    add("--config", metavar="FILE.yaml", help="settings, search spaces and the section search; flags and --set win")
    add("--env", metavar="ID", help=ENV_HELP)
    add("--total-timesteps", metavar="N", help="end each trial after this many real steps")
    add("--stop-return", metavar="R", help="end a trial when an evaluation reaches this mean return")
    add("--seed", metavar="S", help="seed of the search and of every trial")
    add("--run-dir", metavar="DIR", type=_folder, help="sweep folder; default runs/sweep-<env>-<date>-<time>")
    add("--resume", metavar="auto", choices=["auto"], help="auto: go on with the sweep in --run-dir, if there is one")
    add("--set", metavar="KEY.PATH=VALUE", action="append", default=[], help="one setting, space or search.KEY")
    _add_ray(add)


def _add_temperatures(commands: argparse._SubParsersAction[_Parser]) -> None:
    about = "train controllers in the dream of one world model at several temperatures, and compare them in reality"
    add = commands.add_parser("temperatures", help=about, description=about, allow_abbrev=False).add_argument
    add("--config", metavar="FILE.yaml", help="settings; flags and --set win over them")
    add("--env", metavar="ID", help=ENV_HELP)
    add("--temperatures", metavar="T", nargs="+", required=True, help="temperatures of M's mixture")
    add(
        "--run-dir", metavar="DIR", type=_folder, required=True, help="folder of it all; the same command goes on in it"
    )
    add("--episodes", metavar="N", help="episodes of each score (100)")
    add("--seed", metavar="S", help="seed of everything random")
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True, help="write TensorBoard events")
    add("--set", metavar="KEY.PATH=VALUE", action="append", default=[], help=SET_HELP)
    _add_ray(add)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: The arguments; those of the process if None.
    """
    _import_from_here()
    try:
        args = build_parser().parse_args(argv)
        args.argv = sys.argv[1:] if argv is None else list(argv)
        configure_output(verbose=args.verbose, log_level=args.log_level)
        code = _run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush would fail, too
        return 141
    except (CommandError, SettingError, EnvironmentContractError) as error:
        print(f"wm_rllib: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wm_rllib: interrupted", file=sys.stderr)
        return 130
    except Exception:  # a defect: all of it helps to find it
        traceback.print_exc()
        return 1


def _run(args: argparse.Namespace) -> int:
    # Each command imports what it needs.
    module = importlib.import_module(f"wm_rllib.cli.{MODULES.get(args.command, args.command)}")
    code: int = module.run(args)
    return code


def _import_from_here() -> None:
    """Let import paths of environments and classes start in this folder, as `python -m` does by itself."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
