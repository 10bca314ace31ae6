"""`sweep`: run or go on with a Ray Tune experiment, and say which trial was best."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from functools import partial
from pathlib import Path
from typing import Any

from wm_rllib.cli.ray_session import ray_session
from wm_rllib.cli.sweep_plan import SweepPlan, plan_sweep
from wm_rllib.cli.train import open_folder
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.options import apply_to_config, resolved_tree
from wm_rllib.runs.run_folder import BEST, RunFolder
from wm_rllib.runs.signals import StopSignals, exit_code
from wm_rllib.settings.table import BY_PATH
from wm_rllib.sweep.search import TIME_ATTR
from wm_rllib.sweep.spec import SweepSpec

TABLE_FILE = "trials.csv"
SNAPSHOT_S = "2"
"""Seconds between Tune's records of the trials: what ends between the last one and a kill is done again."""


def run(args: argparse.Namespace) -> int:
    """Sweep as the arguments say; returns the exit code."""
    _configure_tune(verbose=args.verbose)
    plan = plan_sweep(args)
    show_logs = bool(args.verbose) or args.log_level in ("debug", "info")
    with (
        open_folder(plan.folder) as folder,
        ray_session(args.address, verbose=args.verbose, show_actor_logs=show_logs) as local,
        StopSignals() as signals,
    ):
        _check_cluster(plan, local=local)
        folder.write_config(plan.spec.tree())
        print(f"sweep folder: {folder.path}", flush=True)
        tuner = _make_tuner(plan, args)
        with signals.held(partial(_interrupt_tune, signals)):
            results = tuner.fit()
        if signals.received is not None:
            print(f"interrupted; to go on: {_resume_command(folder, args)}", flush=True)
            return exit_code(signals.received)
        return _report(plan, results)


def _configure_tune(*, verbose: bool) -> None:
    """Set what Tune reads from the environment."""
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # only some iterations are evaluated
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours hands Ctrl-C and SIGTERM on
    if not verbose:
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's newer output prints a banner at any verbosity
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_S)
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")


def _interrupt_tune(signals: StopSignals) -> None:
    """Have Tune record its state and end, by the signal that it listens to; outside of its loop end at once."""
    if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None):
        raise SystemExit(exit_code(signals.received or signal.SIGINT))
    print("ending: the sweep's state is being written; a second signal ends it at once", flush=True)
    signal.raise_signal(signal.SIGUSR1)


def _check_cluster(plan: SweepPlan, *, local: bool) -> None:
    """Raise if some trial could never start, after an autoscaler has been asked for what it lacks."""
    from wm_rllib.sweep.trial import SweepTrial
    from wm_rllib.training.placement import ClusterTooSmallError, await_bundles

    for config in plan.configs:
        bundles = SweepTrial.default_resource_request(config).bundles
        try:
            await_bundles(bundles, 0.0 if local else config.cluster_timeout_s)
        except ClusterTooSmallError as error:
            raise CommandError(f"a trial does not fit: {error}") from None


def _make_tuner(plan: SweepPlan, args: argparse.Namespace) -> Any:
    """Return Tune's Tuner: one that goes on with the folder's trials if there are any, else a new one."""
    from ray import tune

    from wm_rllib.sweep.loggers import make_loggers
    from wm_rllib.sweep.progress import SweepProgress
    from wm_rllib.sweep.schedulers import make_scheduler, make_searcher
    from wm_rllib.sweep.trial import SweepTrial

    spec = plan.spec
    if plan.resumes and _has_trials(plan.trials):
        print("going on with the trials in this folder", flush=True)
        return tune.Tuner.restore(str(plan.trials), trainable=SweepTrial, resume_unfinished=True, resume_errored=True)
    search, draws_together = spec.search, spec.search["searcher"] == "random"
    stop = {TIME_ATTR: spec.total_steps}
    if spec.values.get("stop.return") is not None:
        stop["evaluation/episode_return_mean"] = spec.values["stop.return"]
    return tune.Tuner(
        SweepTrial,
        param_space=_param_space(plan, args),
        tune_config=tune.TuneConfig(
            metric=search["metric"],
            mode=search["mode"],
            num_samples=search["num_samples"],
            max_concurrent_trials=None if draws_together else search["max_concurrent_trials"],
            search_alg=make_searcher(spec),
            scheduler=make_scheduler(spec),
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=plan.trials.name,
            storage_path=str(plan.trials.parent),
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=search["max_failures"]),
            callbacks=[
                SweepProgress(_knobs(spec), search["metric"], spec.total_steps),
                *make_loggers(search, group=plan.trials.parent.name),
            ],
            verbose=2 if args.verbose else 0,
        ),
    )


def _has_trials(path: Path) -> bool:
    """Whether Tune has recorded a state to restore: a kill before that leaves only the Tuner's own file."""
    from ray import tune

    return bool(tune.Tuner.can_restore(str(path))) and any(path.glob("experiment_state-*.json"))


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _knobs(spec: SweepSpec) -> dict[str, str]:
    """Return the paths of the searched settings by their attribute."""
    return {space.attr: path for path, space in spec.spaces.items()}


def _param_space(plan: SweepPlan, args: argparse.Namespace) -> dict[str, Any]:
    """Return the trials' config for Tune: what differs from the defaults, and how many latents there are.

    PBT draws its values itself.
    """
    spec = plan.spec
    fixed = {attr: value for path, value in spec.values.items() if (attr := BY_PATH[path].attr) is not None}
    spaces = {} if spec.uses_pbt else {space.attr: space.for_tune() for space in spec.spaces.values()}
    settled = {name: getattr(plan.configs[0], name) for name in ("log_level", "wm_log_level", "latent_dim")}
    return {**fixed, **settled, **spaces}


def _resume_command(folder: RunFolder, args: argparse.Namespace) -> str:
    address = ["--address", args.address] if args.address else []
    return shlex.join(
        ["python", "-m", "wm_rllib", "sweep", "--run-dir", str(folder.path), "--resume", "auto", *address]
    )


def _report(plan: SweepPlan, results: Any) -> int:
    """Print and write the table, and put the best trial's checkpoint in its place; returns the exit code."""
    from wm_rllib.sweep import ranking

    metric, mode = plan.spec.search["metric"], plan.spec.search["mode"]
    trials = ranking.rank(results, metric, mode, plan.spec.total_steps)
    knobs, folder = _knobs(plan.spec), plan.folder
    ranking.write_csv(folder.path / TABLE_FILE, trials, knobs, metric)
    print(*ranking.table(trials, knobs, metric), sep="\n")
    print(f"table: {folder.path / TABLE_FILE}")
    if trials and trials[0].checkpoint is not None:
        best = _keep_best(plan, trials[0])
        ranking.prune(trials)
        print(f"best: trial {trials[0].trial_id}, checkpoint: {best}", flush=True)
    failed = [trial.trial_id for trial in trials if trial.status == "failed"]
    for trial_id in failed:
        print(f"failed: trial {trial_id}, see {plan.trials / trial_id / 'error.txt'}", flush=True)
    return 1 if failed or not trials or trials[0].checkpoint is None else 0


def _keep_best(plan: SweepPlan, trial: Any) -> Path:
    """Copy a trial's checkpoint to checkpoints/best, with what `evaluate` and `train --resume` need to know of it."""
    values = plan.spec.values | {path: trial.config[attr] for attr, path in _knobs(plan.spec).items()}
    config = plan.configs[0].copy(copy_frozen=False)
    apply_to_config(config, values)
    meta = CheckpointMeta(trial.iterations, trial.steps, trial.seconds, best_return=trial.score)
    tree = resolved_tree(config, values)
    save = trial.checkpoint.to_directory
    return checkpoints.write(plan.folder.checkpoints, BEST, meta, tree, lambda path: save(str(path)))
