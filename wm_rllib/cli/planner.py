"""`plan`: episodes played by a search in a checkpoint's world model, one after the other, in this process alone."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from wm_rllib.runs.agents import Agent, flag_value, load_agent

if TYPE_CHECKING:
    from wm_rllib.acting.playing import Episode
    from wm_rllib.models.search import SearchConfig

DEFAULT_EPISODES = 5
FLAGS = {
    "planner": "--planner",
    "horizon": "--horizon",
    "num_samples": "--samples",
    "num_iterations": "--iterations",
}


def run(args: argparse.Namespace) -> int:
    """Plays as the arguments say; returns the exit code."""
    search = _search(args)
    num_episodes = flag_value(args.episodes, "evaluation.episodes", "--episodes") or DEFAULT_EPISODES
    seed = flag_value(args.seed, "seed", "--seed")
    agent = load_agent(args)
    episodes: list[Episode] = []
    try:
        _play(agent, search, num_episodes, seed, episodes, quiet=args.json)
        code = 0
    except KeyboardInterrupt:
        if not episodes:
            raise
        code = 130
    _report(agent, search, episodes, as_json=args.json)
    return code


def _search(args: argparse.Namespace) -> SearchConfig:
    """Return the settings of the search, checked before anything is loaded."""
    from wm_rllib.settings.planner import PLANNER_SETTINGS, search_config

    texts = {name: getattr(args, flag.removeprefix("--")) for name, flag in FLAGS.items()}
    values = {name: flag_value(text, PLANNER_SETTINGS[name], FLAGS[name]) for name, text in texts.items()}
    given = {name: value for name, value in values.items() if value is not None}
    return search_config({**given, "critic": args.critic}, FLAGS)


def _play(
    agent: Agent, search: SearchConfig, num_episodes: int, seed: int | None, episodes: list[Episode], *, quiet: bool
) -> None:
    """Plays, adds each episode to the list, and says how it went unless `quiet`."""
    from wm_rllib.acting.planning import PlanningPolicy
    from wm_rllib.acting.playing import play_episode

    if not quiet:
        after = "then the critic's value" if search.critic else "and nothing after"
        candidates = f"{search.num_iterations} x {search.num_samples} candidates"
        print(f"{agent.env_id} with planner {search.planner}: {candidates}, {search.horizon} steps ahead, {after}")
    policy = PlanningPolicy(agent.policy, search, seed)
    env: Any = agent.make_env()
    try:
        for number in range(num_episodes):
            # Only the first reset is seeded: the environment's own generator goes on from there.
            episodes.append(play_episode(policy, env, None if number else seed))
            if not quiet:
                print(f"episode {number + 1}: {_described(episodes[-1])}", flush=True)
    finally:
        env.close()


def _described(episode: Episode) -> str:
    from wm_rllib.acting.playing import DecisionTimes

    took, length = DecisionTimes.of([episode]).median_ms, len(episode.decision_seconds)
    return f"return {episode.total_reward:.2f} in {length} steps, {took:.1f} ms a decision"


def _report(agent: Agent, search: SearchConfig, episodes: list[Episode], *, as_json: bool) -> None:
    from wm_rllib.acting.evaluation import EvaluationResult
    from wm_rllib.acting.playing import DecisionTimes

    result = EvaluationResult(
        [episode.total_reward for episode in episodes], [len(episode.decision_seconds) for episode in episodes]
    )
    times = DecisionTimes.of(episodes)
    if as_json:
        content = {
            "episode_return_mean": result.mean,
            "episode_return_std": result.std,
            "episodes": len(episodes),
            "decision_ms_median": times.median_ms,
            "decision_ms_p95": times.p95_ms,
            **vars(search),
            "returns": result.returns,
        }
        print(json.dumps(content))
    else:
        print(
            f"{agent.checkpoint}: return {result.mean:.2f} +- {result.std:.2f} (std) over {len(episodes)} episodes; "
            f"{times.median_ms:.1f} ms a decision (median; p95 {times.p95_ms:.1f}) on one thread"
        )
