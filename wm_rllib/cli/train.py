"""`train`: start Ray, train, and say how it ended."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from wm_rllib.cli.ray_session import ray_session
from wm_rllib.runs import checkpoints
from wm_rllib.runs.console import Console, format_duration
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.loop import End, Outcome, TrainableAlgorithm, TrainingLoop
from wm_rllib.runs.memory import MemoryMonitor, MemoryPeak
from wm_rllib.runs.plan import RunPlan, plan_run
from wm_rllib.runs.run_folder import RunFolder
from wm_rllib.runs.signals import StopSignals, exit_code
from wm_rllib.runs.writers import RowWriter

ENV_CONFIG = "env.config"


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say; returns the exit code."""
    started = time.monotonic()
    plan = plan_run(args)
    if why := nothing_to_do(plan):
        print(why)
        return 0
    memory = MemoryMonitor()
    memory.start()
    with (
        open_folder(plan.folder) as folder,
        ray_session(args.address, verbose=args.verbose, show_actor_logs=_show_actor_logs(args)) as local,
        StopSignals() as signals,
        open_console(plan) as console,
    ):
        announce(plan, console)
        make_algorithm = partial(build_algorithm, plan, local=local)
        outcome = train(plan, folder, console, signals, make_algorithm, tensorboard=args.tensorboard)
        peak = memory.stop()
        for line in summary(outcome, folder, time.monotonic() - started, peak):
            console.say(line)
        if outcome.end is End.SIGNAL:
            console.say(f"checkpoint written {signals.seconds_since:.1f} s after the signal")
    return 0 if signals.received is None or outcome.end is not End.SIGNAL else exit_code(signals.received)


def nothing_to_do(plan: RunPlan) -> str | None:
    """Return why a finished run has nothing to go on with, if it has not.

    Raises:
        CommandError: Something was asked for that would not happen.
    """
    if not plan.start.finished:
        return None
    total, steps = plan.rule.total_timesteps, plan.start.num_env_steps
    if any(path.startswith("stop.") for path in plan.changed):
        if total is None or steps < total:
            return None
        return f"the run has {steps:,} real steps already, and {total:,} is its end. To go on, raise --total-timesteps."
    ends = "--total-timesteps, --stop-return or stop.iterations"
    elsewhere = plan.source is not None and plan.source.parent.resolve() != plan.folder.checkpoints.resolve()
    if plan.changed or elsewhere:
        raise CommandError(
            f"the run of {plan.source} has ended already, so that nothing would be trained. Fix: raise {ends}, too."
        )
    return f"the run in {plan.folder} has ended already. To go on, raise {ends}."


@contextmanager
def open_folder(folder: RunFolder) -> Iterator[RunFolder]:
    """Hold a run folder open."""
    folder.open()
    try:
        yield folder
    finally:
        folder.close()


@contextmanager
def open_console(plan: RunPlan) -> Iterator[Console]:
    """Show a run on standard output."""
    rule = plan.rule
    console = Console(sys.stdout, rule.total_timesteps, plan.start.num_env_steps, total_iterations=rule.iterations)
    try:
        yield console
    finally:
        console.close()


def _show_actor_logs(args: argparse.Namespace) -> bool:
    return bool(args.verbose) or args.log_level in ("debug", "info")


def announce(plan: RunPlan, console: Console) -> None:
    """Say where a run goes and starts, and what its user may not expect of it."""
    console.say(f"run folder: {plan.folder}")
    if plan.source is not None:
        start = plan.start
        console.say(f"resumed at iteration {start.training_iteration}, {start.num_env_steps:,} real steps")
    for path, (old, new) in plan.changed.items():
        console.say(f"changed on resume: {path}: {old!r} -> {new!r}")
    if ENV_CONFIG in plan.changed:
        console.say("returns of another environment are not compared: the next evaluation replaces checkpoints/best")
    total, random = plan.rule.total_timesteps, plan.config.random_collection_steps
    if total is not None and total <= random and plan.config.online_collection:
        console.say(
            f"nothing will be learned: {total:,} real steps (--total-timesteps) end before the random phase, which has "
            f"{random:,} (world_model.data_collection.random_collection_steps)"
        )
    config = plan.config
    if not (config.evaluation_interval_steps or config.evaluation_interval_iterations or config.evaluation_interval):
        setting = "interval=500" if config.online_collection else "interval_iterations=10"
        console.say(f"nothing is evaluated, so that there will be no checkpoints/best: --set evaluation.{setting}")
    if plan.rule.total_timesteps is None and plan.rule.stop_return is None and plan.rule.iterations is None:
        console.say("no end is set (--total-timesteps, --stop-return, stop.iterations): training goes on until Ctrl-C")


def build_algorithm(plan: RunPlan, *, local: bool) -> TrainableAlgorithm:
    """Return the algorithm of a plan, with the checkpoint's state if there is one."""
    from wm_rllib.algorithm import WorldModelPPO
    from wm_rllib.training.placement import ClusterTooSmallError, check_cluster, check_own_gpu

    request = WorldModelPPO.default_resource_request(plan.config)
    try:
        check_own_gpu(plan.config)
        check_cluster(request, plan.config, patience_s=0.0 if local else None)  # a local Ray cannot grow
    except (ClusterTooSmallError, ValueError) as error:
        raise CommandError(str(error)) from None
    algorithm = plan.config.copy(copy_frozen=False).build_algo()
    # Ray makes a folder in ~/ray_results for every algorithm; ours stays empty, the run folder has everything.
    with suppress(OSError):
        Path(algorithm.logdir).rmdir()
    trainable: TrainableAlgorithm = algorithm
    return trainable


def train(
    plan: RunPlan,
    folder: RunFolder,
    console: Console,
    signals: StopSignals,
    make_algorithm: Callable[[], Any],
    *,
    tensorboard: bool,
) -> Outcome:
    """Build or restore the algorithm and train to the end.

    Args:
        plan: What to do.
        folder: The open run folder.
        console: Shows the progress.
        signals: Asks for an early end.
        make_algorithm: Builds the algorithm.
        tensorboard: Whether to write TensorBoard events.
    """
    source = _source(plan, folder)
    algorithm = make_algorithm()
    try:
        if source is not None:
            algorithm.restore_from_path(str(source.resolve()))
        folder.cut_back(source)
        folder.write_config(plan.tree)
        folder.share()  # what was cut back must be, before new rows take its place
        events = folder.tensorboard if tensorboard else None
        writer = _writer(plan, folder, events, source)
        try:
            loop = TrainingLoop(
                algorithm,
                folder,
                writer,
                console,
                rule=plan.rule,
                checkpoint_frequency=plan.config.checkpoint_frequency,
                # The best is the folder's: it may be newer than the checkpoint, or a new folder may have none. Returns
                # of another environment are no measure of it.
                start=replace(plan.start, best_return=None if ENV_CONFIG in plan.changed else folder.best_return()),
                settings=plan.tree,
            )
            return loop.run(signals)
        finally:
            writer.close()
    finally:
        algorithm.stop()


def _writer(plan: RunPlan, folder: RunFolder, events: Path | None, source: Path | None) -> RowWriter:
    """Return where the rows go; TensorBoard's axis counts what grows throughout the run."""
    before, axis = plan.start.num_env_steps, "num_env_steps_sampled_lifetime"
    if not plan.takes_real_steps:
        before, axis = plan.start.training_iteration, "training_iteration"
    return RowWriter(folder.progress, events, purge_step=before + 1 if source else 0, axis=axis)


def _source(plan: RunPlan, folder: RunFolder) -> Path | None:
    """Return the checkpoint to restore; opening the folder may have moved the one that was found to its place."""
    if plan.source is None or plan.source.exists():
        return plan.source
    return folder.checkpoints / checkpoints.name_of(plan.source)


def summary(outcome: Outcome, folder: RunFolder, seconds: float, peak: MemoryPeak) -> list[str]:
    """Return the last lines of a run."""
    meta = outcome.meta
    if outcome.returns is not None:
        first, second = outcome.returns
        how = f"solved: evaluation return {first:.1f}, confirmed by {second:.1f} on fresh episodes"
    elif outcome.end is End.STEPS:
        how = "ended: all real steps are done"
    elif outcome.end is End.ITERATIONS:
        how = "ended: all iterations are done"
    else:
        how = f"ended by a signal: the same command with --run-dir {folder} --resume auto goes on"
    return [
        how,
        f"checkpoint: {folder.name_of(outcome.checkpoint)}",
        f"real steps {meta.num_env_steps:,}, {seconds:.1f} s ({format_duration(meta.seconds)} of training in all)",
        f"peak memory of all processes: {peak}",
    ]
