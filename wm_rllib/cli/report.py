"""`report`: one self-contained HTML file on a run, with a verdict on its dream."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wm_rllib.atomic_files import write_atomically
from wm_rllib.cli.look_flags import whole_number
from wm_rllib.runs.agents import Agent, flag_value, load_agent
from wm_rllib.runs.checkpoints import find, name_of
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.run_folder import BEST, LAST
from wm_rllib.settings.settings import SettingError

if TYPE_CHECKING:
    from wm_rllib.look.dream_check import DreamCheck
    from wm_rllib.look.run import RunHistory

DEFAULT_EPISODES, MOST_EPISODES = 20, 200


def run(args: argparse.Namespace) -> int:
    """Write the report that the arguments ask for; returns the exit code."""
    from wm_rllib.look.drawing import require_matplotlib
    from wm_rllib.look.pictures import check_folder
    from wm_rllib.look.run import read_run

    episodes = whole_number(args.episodes, "--episodes", 2, MOST_EPISODES, DEFAULT_EPISODES)
    seed = flag_value(args.seed, "seed", "--seed") or 0
    if args.no_dream and args.tensorboard:
        raise CommandError("--tensorboard writes what --no-dream leaves out. Fix: remove one of the two.")
    history = read_run(args.run)
    output = Path(args.output) if args.output else history.path / "report.html"
    check_folder(output)
    require_matplotlib()

    from wm_rllib.look.report import make_report
    from wm_rllib.look.verdict import judge, not_judged

    check, source, why_not = _check(history, episodes, seed, leave_out=args.no_dream)
    verdict = judge(check.figures) if check else not_judged(why_not)
    _write(output, make_report(history, check, verdict, source))
    if args.tensorboard and check is not None:
        from wm_rllib.look.events import write_events

        write_events(history.path / "tensorboard" / "report", check)
    print(verdict.headline)
    for finding in verdict.findings:
        print(f"  {finding.name}: {finding.words}")
    print(f"report: {output}")
    return 0


def _check(history: RunHistory, episodes: int, seed: int, *, leave_out: bool) -> tuple[DreamCheck | None, str, str]:
    """What was found of the dream, in which checkpoint; or nothing, and why. All else of the run can be shown."""
    if leave_out:
        return None, "", "It was left out (--no-dream)."
    from wm_rllib.look.dream_check import check_dream

    try:
        agent, source = _load(history)
        return check_dream(agent, episodes, seed), source, ""
    except (CommandError, SettingError) as error:
        return None, "", str(error)


def _load(history: RunHistory) -> tuple[Agent, str]:
    """The agent of checkpoints/best, else of last, and how to call it."""
    folder = history.path / "checkpoints"
    if not any(find(folder, name) for name in (BEST, LAST)):
        raise CommandError("The run has no checkpoint yet.")
    agent = load_agent(argparse.Namespace(checkpoint=folder, env=None))
    assert agent.meta is not None
    name, iteration, steps = name_of(agent.checkpoint), agent.meta.training_iteration, agent.meta.num_env_steps
    return agent, f"checkpoints/{name} (iteration {iteration}, {steps:,} steps)"


def _write(output: Path, content: str) -> None:
    try:
        write_atomically(output, content)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}. Fix: another --output.") from None
