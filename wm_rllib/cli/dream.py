"""`dream`: an animation of real beside dreamed, or a page to steer inside the dream."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wm_rllib.cli.look_flags import whole_number
from wm_rllib.runs.agents import Agent, flag_value, load_agent
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.signals import exit_code

if TYPE_CHECKING:
    from wm_rllib.look.measuring import DreamSettings
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
    seed = flag_value(args.seed, "seed", "--seed") or 0
    temperature = flag_value(args.temperature, "world_model.mdn_rnn.temperature", "--temperature")
    output = Path(args.output or DEFAULT_OUTPUT)
    if not args.play:
        check_output(output)
    require_matplotlib()
    agent = load_agent(args)

    from wm_rllib.look.dream_check import dream_settings

    settings = dream_settings(agent)
    settings = replace(settings, temperature=float(temperature or settings.temperature))
    if args.play:
        return _play(agent, settings, port, seed)
    return _write(agent, output, horizon, settings.temperature, seed)


def _write(agent: Agent, output: Path, horizon: int, temperature: float, seed: int) -> int:
    from wm_rllib.look.animation import draw_tracks, make_tracks
    from wm_rllib.look.pictures import write_animation

    tracks = make_tracks(agent, horizon, seed, temperature)
    frames = draw_tracks(agent, tracks)
    try:
        write_animation(output, frames, FRAMES_PER_SECOND)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}. Fix: another --output.") from None
    lengths = ", ".join(f"{len(track.rewards)} steps{' to its end' if track.ended else ''}" for track in tracks.all)
    print(f"{output}: {agent.env_id} at temperature {temperature:g}; real, same actions, own actions: {lengths}")
    return 0


def _play(agent: Agent, settings: DreamSettings, port: int, seed: int) -> int:
    from wm_rllib.look.server import serve

    world = _world(agent, settings, seed)
    try:
        number = serve(
            world, port, lambda url: print(f"the dream of {agent.env_id}: {url}  (Ctrl-C ends it)", flush=True)
        )
    finally:
        world.painter.close()
    return exit_code(number)


def _world(agent: Agent, settings: DreamSettings, seed: int) -> World:
    from wm_rllib.look.dream_check import fresh_episodes
    from wm_rllib.look.frames import make_painter
    from wm_rllib.look.session import World
    from wm_rllib.look.starts import Starts, stored_episodes

    episodes = stored_episodes(agent.checkpoint)
    starts = Starts(episodes or fresh_episodes(agent, 4, seed))
    return World(
        env_id=agent.env_id,
        policy=agent.policy,
        painter=make_painter(agent.env_id, agent.env_config, starts.episodes[0].observations, DEFAULT_HORIZON),
        starts=starts,
        burn_in=settings.burn_in,
        temperature=settings.temperature,
        seed=seed,
    )
