"""`dream`: an animation of real beside dreamed, or a page to steer inside the dream."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wm_rllib.cli import checkpoints
from wm_rllib.cli.errors import CommandError
from wm_rllib.cli.look_flags import value_like, whole_number
from wm_rllib.cli.run_folder import BEST, LAST
from wm_rllib.cli.signals import exit_code

if TYPE_CHECKING:
    from wm_rllib.cli.agents import Agent
    from wm_rllib.look.session import World

DEFAULT_OUTPUT, DEFAULT_HORIZON, MOST_STEPS = "dream.gif", 200, 1000
FRAMES_PER_SECOND = 25


def run(args: argparse.Namespace) -> int:
    """Show the dream as the arguments say; returns the exit code."""
    from wm_rllib.look.drawing import require_matplotlib
    from wm_rllib.look.pictures import check_output

    if args.play and (args.output or args.horizon):
        flag = "--output" if args.output else "--horizon"
        raise CommandError(f"{flag} is for an animation, and --play shows a page instead. Fix: leave one of them out.")
    if args.port and not args.play:
        raise CommandError("--port is for --play. Fix: add --play, or leave --port out.")
    horizon = whole_number(args.horizon, "--horizon", 1, MOST_STEPS, DEFAULT_HORIZON)
    port = whole_number(args.port, "--port", 1, 65535, 0)
    seed = value_like(args.seed, "seed", "--seed", 0)
    value_like(args.temperature, "world_model.mdn_rnn.temperature", "--temperature", None)
    output = Path(args.output or DEFAULT_OUTPUT)
    if not args.play:
        check_output(output)
    checkpoint = checkpoints.resolve(args.checkpoint, (BEST, LAST))
    require_matplotlib()

    from wm_rllib.cli.agents import load_agent

    agent = load_agent(checkpoint, args.env)
    if args.play:
        return _play(args, agent, port, seed)
    return _write(args, agent, output, horizon, seed)


def _temperature(args: argparse.Namespace, agent: Agent) -> float:
    from wm_rllib.look.dream_check import dream_settings

    default = dream_settings(agent).temperature
    return float(value_like(args.temperature, "world_model.mdn_rnn.temperature", "--temperature", default))


def _write(args: argparse.Namespace, agent: Agent, output: Path, horizon: int, seed: int) -> int:
    from wm_rllib.look.animation import draw_tracks, make_tracks
    from wm_rllib.look.pictures import write_animation

    temperature = _temperature(args, agent)
    tracks = make_tracks(agent, horizon, seed, temperature)
    frames = draw_tracks(agent, tracks)
    try:
        write_animation(output, frames, FRAMES_PER_SECOND)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}. Fix: another --output.") from None
    lengths = ", ".join(f"{len(track.rewards)} steps{' to its end' if track.ended else ''}" for track in tracks.all)
    print(f"{output}: {agent.env_id} at temperature {temperature:g}; real, same actions, own actions: {lengths}")
    return 0


def _play(args: argparse.Namespace, agent: Agent, port: int, seed: int) -> int:
    from wm_rllib.look.server import serve

    world = _world(args, agent, seed)
    try:
        number = serve(
            world, port, lambda url: print(f"the dream of {agent.env_id}: {url}  (Ctrl-C ends it)", flush=True)
        )
    finally:
        world.painter.close()
    return exit_code(number)


def _world(args: argparse.Namespace, agent: Agent, seed: int) -> World:
    from wm_rllib.look.dream_check import dream_settings, fresh_episodes
    from wm_rllib.look.frames import make_painter
    from wm_rllib.look.session import World
    from wm_rllib.look.starts import Starts, read_replay

    episodes = read_replay(agent.checkpoint)
    starts = Starts(episodes or fresh_episodes(agent, 4, seed))
    return World(
        env_id=agent.env_id,
        policy=agent.policy,
        painter=make_painter(agent.env_id, agent.env_config, starts.episodes[0].observations, DEFAULT_HORIZON),
        starts=starts,
        burn_in=dream_settings(agent).burn_in,
        temperature=_temperature(args, agent),
        seed=seed,
    )
