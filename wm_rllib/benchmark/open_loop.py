"""Whether M has learnt anything: its latents several steps ahead on episodes that it never saw, against two rivals.

    python -m wm_rllib.benchmark.open_loop runs/doom/pretrained --episodes 20 --json out.json
    python -m wm_rllib.benchmark.open_loop runs/car --actions explore

M starts at a real state, with h from the real steps before it, and is told the real actions. Its prediction is the mean
of many paths drawn from its mixture: an expectation that is fed back lies between the things that can happen, where M
has never been. Its error is held against that of "the latent stays as it is" and of the same M with initial weights, in
the same windows; a controller's score would prove nothing, since one on z alone may do as well. Beside it stands what M
said of the episodes' ends before they came (`foretold_ends`).

M knows what its replay held: after random collection alone those are random actions, later the policy's.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_rllib.acting.evaluation import VectorEnv, make_vector_env
from wm_rllib.benchmark.foretold_ends import ForetoldEnds, foretold_ends
from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json
from wm_rllib.look.episodes import Actor, Episode, places_every, play, policy_actor, random_actor, windows_at
from wm_rllib.models.config import WorldModelConfig
from wm_rllib.models.imagining import draw_step_noise
from wm_rllib.models.judging import Windows
from wm_rllib.models.mixture import sample_mixture
from wm_rllib.models.world_model import WorldModel
from wm_rllib.runs.agents import Agent, load_agent
from wm_rllib.runs.errors import CommandError

BURN_IN = 15
MOST_LANES = 20
NUM_PATHS = 32
WINDOWS_AT_ONCE = 16
"""Whose frames V encodes together."""
ACTIONS = ("random", "explore", "greedy")
"""Who acts in the episodes: nobody, or the agent as in training or in evaluation."""


def untrained(config: WorldModelConfig, trained: WorldModel, seed: int) -> WorldModel:
    """The same V and units, and an M whose weights are as they were drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = WorldModel(config).eval()
    fresh.vae.load_state_dict(trained.vae.state_dict())
    fresh.mdn_rnn.load_state_dict(dict(trained.mdn_rnn.named_buffers()), strict=False)
    return fresh


@torch.no_grad()
def squared_errors(world_model: WorldModel, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors by steps ahead, [N, H] each: M's, standing still's; and which of them count, [N, H] bool."""
    length = windows.burn_in
    z = world_model.vae.encode(windows.observations[:, length:])
    expected = mean_path(world_model, windows)
    real, start = z[:, 1:], z[:, :1]
    return (expected - real).square().sum(-1), (start - real).square().sum(-1), windows.mask[:, length:]


def mean_path(world_model: WorldModel, windows: Windows) -> Tensor:
    """The mean latents [N, H, Z] of steps 1 .. H over paths drawn from M under the real actions."""
    mdn_rnn, length = world_model.mdn_rnn, windows.burn_in
    z, (h, c) = windows.start(world_model)
    actions = world_model.codec.encode(windows.actions[:, length:])
    z, h, c, actions = (x.repeat_interleave(NUM_PATHS, 0) for x in (z, h, c, actions))
    path, state = [], (h, c)
    for t in range(windows.horizon):
        state = mdn_rnn.step(z, actions[:, t], state)
        noise = draw_step_noise(mdn_rnn, len(z)).mixture
        z = sample_mixture(mdn_rnn.predict(state[0], z, actions[:, t]), 1.0, noise)
        path.append(z.view(-1, NUM_PATHS, z.shape[-1]).mean(1))
    return torch.stack(path, 1)


def actor_of(agent: Agent, env: VectorEnv, actions: str, seed: int) -> Actor:
    """Who acts in new episodes of all lanes; `actions` is one of ACTIONS."""
    if actions == "random":
        return random_actor(env, seed)
    return policy_actor(agent.policy, env.num_envs, explore=actions == "explore")


def play_episodes(agent: Agent, num_episodes: int, seed: int, actions: str) -> list[Episode]:
    """Episodes played now, none of them in the checkpoint's replay."""
    episodes: list[Episode] = []
    torch.manual_seed(seed)
    while len(episodes) < num_episodes:
        env = make_vector_env(agent.vector_env, min(MOST_LANES, num_episodes - len(episodes)), agent.env_config)
        first = seed + len(episodes)
        episodes += play(env, actor_of(agent, env, actions, first), agent.policy, first)
        env.close()
    return episodes


def measure(agent: Agent, num_episodes: int, steps: int, seed: int, actions: str = "random") -> dict[str, Any]:
    """Root mean squared errors of latents by steps ahead, and ends foretold, on episodes played now.

    Args:
        agent: V and M, C where it acts, and the environment.
        num_episodes: None of them in the checkpoint's replay.
        steps: H.
        seed: Of episodes and of the untrained M.
        actions: Who acts, one of ACTIONS.
    """
    episodes = play_episodes(agent, num_episodes, seed, actions)
    trained = agent.policy.world_model.eval()
    rivals = {"trained": trained, "untrained": untrained(trained.config, trained, seed)}
    places = [(episode, t) for episode, t in places_every(episodes, steps) if t >= 1]
    sums = {name: torch.zeros(steps) for name in (*rivals, "still")}
    counts = torch.zeros(steps)
    for at in range(0, len(places), WINDOWS_AT_ONCE):
        windows = windows_at(places[at : at + WINDOWS_AT_ONCE], BURN_IN, steps)
        for name, model in rivals.items():
            predicted, still, valid = squared_errors(model, windows)
            sums[name] += (predicted * valid).sum(0)
        sums["still"] += (still * valid).sum(0)
        counts += valid.sum(0)
    errors = {name: (total / counts).sqrt().tolist() for name, total in sums.items()}
    asked = {"episodes": num_episodes, "actions": actions, "steps": steps, "seed": seed}
    ends = asdict(foretold_ends(trained, episodes))
    return {"errors": errors, "windows": counts.tolist(), "ends": ends, **asked}


def describe(result: dict[str, Any]) -> str:
    """A table of some of the steps ahead, and what M knew of the episodes' ends."""
    errors, steps = result["errors"], result["steps"]
    lines = ["| steps ahead | windows | M | the latent stays | untrained M |", "| --- | --- | --- | --- | --- |"]
    for ahead in sorted({1, 2, 5, 10, steps} & set(range(1, steps + 1))):
        row = (f"{errors[name][ahead - 1]:.3f}" for name in ("trained", "still", "untrained"))
        lines.append(f"| {ahead} | {result['windows'][ahead - 1]:.0f} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", str(ForetoldEnds(**result["ends"]))])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement that the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m wm_rllib.benchmark.open_loop", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="run folder or checkpoint")
    parser.add_argument("--env", default=None, help="environment (that of training)")
    parser.add_argument("--episodes", type=int, default=20, help="fresh episodes (20)")
    parser.add_argument("--actions", choices=ACTIONS, default="random", help="who acts in them (random)")
    parser.add_argument("--steps", type=int, default=15, help="steps ahead (15)")
    parser.add_argument("--seed", type=int, default=90_000, help="of the episodes (90000)")
    parser.add_argument("--json", default=None, metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    try:
        if min(args.episodes, args.steps) < 1:
            raise CommandError("--episodes and --steps must be at least 1. Fix: 20 and 15.")
        result = measure(load_agent(args), args.episodes, args.steps, args.seed, args.actions)
    except (CommandError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(describe(result))
    if args.json:
        command = shlex.join(
            ["python", "-m", "wm_rllib.benchmark.open_loop", *(sys.argv[1:] if argv is None else argv)]
        )
        write_json(Path(args.json), {"provenance": provenance(command, torch.get_num_threads()), **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
