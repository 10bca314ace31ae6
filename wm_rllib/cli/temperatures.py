"""`temperatures`: controllers trained in one world model's dream at several temperatures, and what they are worth."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from wm_rllib.acting.evaluation import MAX_LANES, EvaluationResult, evaluate_policy
from wm_rllib.cli import train
from wm_rllib.cli.ray_session import ray_session
from wm_rllib.cli.temperature_plan import FOLDER_PREFIX, TemperaturePlan, plan_temperatures
from wm_rllib.cli.temperature_scores import (
    Comparison,
    TemperatureScore,
    baselines_from,
    evaluation_from,
    read_result,
    score_from,
    to_json,
    write_json,
)
from wm_rllib.environments.names import make_env, vector_maker
from wm_rllib.runs.loop import End
from wm_rllib.runs.plan import RunPlan
from wm_rllib.runs.signals import StopSignals, exit_code

SCORE_FILE, FRESH_FILE, BASELINES_FILE = "score.json", "fresh.json", "baselines.json"
TABLE_FILE, JSON_FILE = "temperatures.md", "temperatures.json"


def run(args: argparse.Namespace) -> int:
    """Train and measure as the arguments say; returns the exit code."""
    plan = plan_temperatures(args)
    with train.open_folder(plan.base):  # the lock of all of it
        plan.claim()
        missing = [each for each in plan.temperatures if _score_of(plan, each) is None]
        for temperature in plan.temperatures:
            if temperature not in missing:
                print(f"skipped, it is done: {_score_of(plan, temperature)}", flush=True)
        if missing:
            code = _train_all(plan, missing, args)
            if code:
                return code
        _report(plan)
    return 0


def _score_of(plan: TemperaturePlan, temperature: float) -> TemperatureScore | None:
    score: TemperatureScore | None = read_result(plan.folder_of(temperature) / SCORE_FILE, score_from)
    return score


# --- training --------------------------------------------------------------------------------------------------------


def _train_all(plan: TemperaturePlan, temperatures: list[float], args: argparse.Namespace) -> int:
    """Pretrains if that is not done, and trains and scores each temperature; returns the exit code."""
    show_logs = bool(args.verbose) or args.log_level in ("debug", "info")
    with (
        ray_session(args.address, verbose=args.verbose, show_actor_logs=show_logs) as local,
        StopSignals() as signals,
    ):
        if not plan.pretraining().start.finished:
            print(f"collecting and pretraining: {plan.base}", flush=True)
            _train(plan.pretraining(), signals, local=local, tensorboard=args.tensorboard)
        for temperature in temperatures:
            if signals.received is None:
                _train_one(plan, temperature, signals, local=local, tensorboard=args.tensorboard)
        if signals.received is not None:
            print("interrupted; the same command goes on", flush=True)
            return exit_code(signals.received)
    return 0


def _train_one(
    plan: TemperaturePlan, temperature: float, signals: StopSignals, *, local: bool, tensorboard: bool
) -> None:
    """Trains at one temperature and, unless a signal ended that, scores what came of it."""
    folder = plan.training(temperature).folder
    with train.open_folder(folder):
        todo = plan.training(temperature)
        if not plan.has_trained(todo):
            print(f"temperature {temperature:g}: {folder}", flush=True)
            if _train(todo, signals, local=local, tensorboard=tensorboard) is End.SIGNAL:
                return
        score = _measure(plan, temperature)
        write_json(folder.path / SCORE_FILE, to_json(score))
        print(score, flush=True)


def _train(run_plan: RunPlan, signals: StopSignals, *, local: bool, tensorboard: bool) -> End:
    """Trains to a run's end; its folder is open."""
    with train.open_console(run_plan) as console:
        make_algorithm = partial(train.build_algorithm, run_plan, local=local)
        return train.train(run_plan, run_plan.folder, console, signals, make_algorithm, tensorboard=tensorboard).end


# --- scores ----------------------------------------------------------------------------------------------------------


def _measure(plan: TemperaturePlan, temperature: float) -> TemperatureScore:
    """Scores a temperature's controller in the dream at that temperature, and in reality."""
    from wm_rllib.acting.policy import load_policy
    from wm_rllib.dreamers.evaluation import evaluate_in_dream
    from wm_rllib.dreamers.starts import read_replay

    started, checkpoint, seed = time.monotonic(), plan.checkpoint_of(temperature), plan.config.seed
    policy = load_policy(checkpoint)
    dream = evaluate_in_dream(
        policy,
        read_replay(checkpoint).draw_first_observations(plan.num_episodes, seed),
        temperature=temperature,
        max_steps=_dream_limit(plan),
        seed=seed,
    )
    real = _play(plan, checkpoint, _choosing_seed(plan))
    run, base = plan.training(temperature).start, plan.pretraining().start
    return TemperatureScore(
        temperature=temperature,
        seed=seed,
        iterations=run.training_iteration - base.training_iteration,
        training_seconds=run.seconds - base.seconds,
        scoring_seconds=time.monotonic() - started,
        dream=dream,
        real=real,
    )


def _dream_limit(plan: TemperaturePlan) -> int:
    from wm_rllib.dreamers.evaluation import dream_step_limit

    make = partial(make_env, plan.config.env, plan.config.env_config, plan.config.pixel_settings)
    return dream_step_limit(plan.config.evaluation_max_dream_steps, make)


def _play(plan: TemperaturePlan, checkpoint: Path, seed: int) -> EvaluationResult:
    """Greedy real episodes."""
    from wm_rllib.acting.policy import load_policy

    return evaluate_policy(load_policy(checkpoint), _env(plan), plan.num_episodes, seed, plan.config.env_config)


def _env(plan: TemperaturePlan) -> Any:
    return vector_maker(plan.config.env, plan.config.pixel_settings)


def _choosing_seed(plan: TemperaturePlan) -> int:
    """First seed of the episodes on which the temperature, and the best constant action, are chosen."""
    from wm_rllib.seeding import stage_seed

    return stage_seed(plan.config.seed, 0, "temperatures")


def _fresh_seed(plan: TemperaturePlan) -> int:
    """First seed of the episodes that nothing was chosen on: the last round of the others may play some lanes more."""
    return (_choosing_seed(plan) + plan.num_episodes + MAX_LANES) % 2**31


# --- the report ------------------------------------------------------------------------------------------------------


def _report(plan: TemperaturePlan) -> None:
    """Chooses the temperature, plays what is missing, and writes and prints the table of all that the folder holds."""
    paths = plan.root.glob(f"{FOLDER_PREFIX}*/{SCORE_FILE}")
    scores = sorted((read_result(path, score_from) for path in paths), key=lambda score: score.temperature)
    chosen = max(scores, key=lambda score: score.real.mean)
    print(f"chosen: temperature {chosen.temperature:g}; fresh episodes and baselines", flush=True)
    comparison = Comparison(
        description=_description(plan),
        dream_limit=_dream_limit(plan),
        scores=scores,
        chosen=chosen,
        fresh=_fresh_score(plan, chosen.temperature),
        baselines=_baselines(plan),
    )
    table = comparison.table()
    (plan.root / TABLE_FILE).write_text(table, encoding="utf-8")
    write_json(plan.root / JSON_FILE, comparison.to_json())
    print(f"\n{table}", flush=True)
    print(f"table: {plan.root / TABLE_FILE}, all returns: {plan.root / JSON_FILE}")
    print(f"chosen controller: {plan.checkpoint_of(chosen.temperature)}", flush=True)


def _fresh_score(plan: TemperaturePlan, temperature: float) -> EvaluationResult:
    path = plan.folder_of(temperature) / FRESH_FILE
    found: EvaluationResult | None = read_result(path, evaluation_from)
    if found is None:
        found = _play(plan, plan.checkpoint_of(temperature), _fresh_seed(plan))
        write_json(path, to_json(found))
    return found


def _baselines(plan: TemperaturePlan) -> Any:
    from wm_rllib.acting.baselines import measure_baselines

    path = plan.root / BASELINES_FILE
    found = read_result(path, baselines_from)
    if found is None:
        seeds = {"seed": _fresh_seed(plan), "choose_seed": _choosing_seed(plan)}
        found = measure_baselines(_env(plan), plan.config.env_config, plan.action_space, plan.num_episodes, **seeds)
        write_json(path, to_json(found))
    return found


def _player(config: Any) -> str:
    """Who takes the steps that V and M are fitted to."""
    plays = config.transfer_from is not None and config.transfer_parts == "vmc"
    return f"the controller of {config.transfer_from}" if plays else "random actions"


def _description(plan: TemperaturePlan) -> str:
    config, count = plan.config, plan.num_episodes
    return (
        f"{config.env}, seed {config.seed}: {config.random_collection_steps:,} real steps of {_player(config)}, "
        f"collected and fitted to in {plan.pretraining().start.seconds:,.0f} s, then "
        f"{plan.values['stop.iterations']:,} iterations of the controller in the dream alone, at each temperature. "
        f"Mean +- standard deviation over {count} greedy episodes. The temperature with the best real score is chosen "
        f"(reset seeds from {_choosing_seed(plan)}), and its controller plays {count} fresh episodes (from "
        f"{_fresh_seed(plan)}), as the baselines do."
    )
