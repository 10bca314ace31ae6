"""`evaluate`: greedy episodes with a checkpoint's agent and, if asked, with a planner; in this process alone."""

from __future__ import annotations

import argparse
import json
import random
from typing import TYPE_CHECKING, Any

from wm_rllib.runs.agents import Agent, flag_value, load_agent

if TYPE_CHECKING:
    from wm_rllib.models.search import SearchConfig

DEFAULT_EPISODES = 20
TIMED_DECISIONS = 200
"""One after the other in a single environment, since the episodes themselves are played side by side."""


def run(args: argparse.Namespace) -> int:
    """Evaluate as the arguments say; returns the exit code."""
    episodes = flag_value(args.episodes, "evaluation.episodes", "--episodes") or DEFAULT_EPISODES
    seed = flag_value(args.seed, "seed", "--seed")
    search = _search(args.planner)
    agent = load_agent(args)
    if seed is None and search is not None:
        seed = random.randrange(2**31)  # drawn here, so that policy and planner start from the same states

    from wm_rllib.acting.evaluation import evaluate_policy

    result = evaluate_policy(agent.policy, agent.vector_env, episodes, seed, agent.env_config)
    figures = {"episode_return_mean": result.mean, "episode_return_std": result.std, "episodes": episodes}
    if search is not None:
        figures |= _with_planner(agent, search, episodes, seed)
    if args.json:
        print(json.dumps(figures))
    else:
        _report(agent, figures)
    return 0


def _search(planner: str | None) -> SearchConfig | None:
    if planner is None:
        return None
    from wm_rllib.settings.planner import search_config

    return search_config({"planner": planner}, {"planner": "--planner"})


def _with_planner(agent: Agent, search: SearchConfig, episodes: int, seed: int | None) -> dict[str, Any]:
    """Return the planner's return in as many episodes, and how long it and the policy take for a decision."""
    from wm_rllib.acting.evaluation import evaluate_policy
    from wm_rllib.acting.planning import PlanningPolicy
    from wm_rllib.acting.playing import time_decisions

    def planner() -> PlanningPolicy:
        return PlanningPolicy(agent.policy, search, seed)

    result = evaluate_policy(planner(), agent.vector_env, episodes, seed, agent.env_config)
    env: Any = agent.make_env()
    try:
        times = time_decisions(planner(), env, TIMED_DECISIONS, seed)
        policy_times = time_decisions(agent.policy, env, TIMED_DECISIONS, seed)
    finally:
        env.close()
    return {
        "planner": search.planner,
        "planner_return_mean": result.mean,
        "planner_return_std": result.std,
        "planner_decision_ms_median": times.median_ms,
        "planner_decision_ms_p95": times.p95_ms,
        "policy_decision_ms_median": policy_times.median_ms,
        "policy_decision_ms_p95": policy_times.p95_ms,
    }


def _report(agent: Agent, figures: dict[str, Any]) -> None:
    place = agent.checkpoint
    mean, std, episodes = (figures[f"episode{key}"] for key in ("_return_mean", "_return_std", "s"))
    print(f"{place}: return {mean:.2f} +- {std:.2f} (std) over {episodes} greedy episodes")
    if "planner" in figures:
        mean, std = figures["planner_return_mean"], figures["planner_return_std"]
        print(
            f"{place}: return {mean:.2f} +- {std:.2f} (std) over {episodes} episodes with planner {figures['planner']}"
        )
        for who in ("planner", "policy"):
            median, p95 = figures[f"{who}_decision_ms_median"], figures[f"{who}_decision_ms_p95"]
            print(f"{who}: {median:.2f} ms a decision (median; p95 {p95:.2f}), one environment, one thread")
