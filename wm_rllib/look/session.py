"""One person inside one dream: what the page asks for, and what it is told. No sockets here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.look.acting import Choice, choice_at
from wm_rllib.look.frames import Painter, TracePainter
from wm_rllib.look.keys import KeyMap
from wm_rllib.look.names import action_names, dimension_names
from wm_rllib.look.pictures import data_uri
from wm_rllib.look.starts import Starts
from wm_rllib.models.stepping import Place, Stepper

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 3.0
MAX_BRANCHES = 20
SHOWN_STEPS, SHOWN_NUMBERS = 200, 8
"""Of a dream's past and of an observation, that traces show."""
JPEG_QUALITY = 88


class BadMessageError(ValueError):
    """What a page sent makes no sense."""


@dataclass(frozen=True)
class World:
    """What all sessions share; nothing in it changes.

    Attributes:
        env_id: Name of the environment.
        policy: V, M and C.
        painter: Draws observations; traces are left to the page.
        starts: Real states.
        burn_in: Real steps that set h.
        temperature: At which a session begins.
        seed: Of a session's noise.
    """

    env_id: str
    policy: WorldModelPolicy
    painter: Painter
    starts: Starts
    burn_in: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Moment:
    """Where a dream is, and how it came there; never changed, so that branches may keep it.

    Attributes:
        place: z and M's state.
        t: Steps so far.
        path: Decoded observations, the newest last; as many as are shown.
        total: Sum of rewards.
        reward: Of the newest step.
        end_probability: Of the newest step.
        ended: Whether that step was an end.
        action: Name of the newest action; empty at the start.
        by: Who chose it, "you" or "the policy".
    """

    place: Place
    t: int
    path: tuple[np.ndarray, ...]
    total: float = 0.0
    reward: float = 0.0
    end_probability: float = 0.0
    ended: bool = False
    action: str = ""
    by: str = ""


class DreamSession:
    """A dream that is steered; each tab of the page has one of its own.

    Args:
        world: What it is a dream of.
    """

    def __init__(self, world: World):
        self._world = world
        self._codec = world.policy.world_model.codec
        self._keys = KeyMap(world.env_id, self._codec)
        self._temperature = world.temperature
        self._seed, self._start = world.seed, 0
        self._branches: list[Moment] = []
        self._stepper = self._stepper_at_start()
        self._now = self._first_moment()

    def hello(self) -> dict[str, Any]:
        """What a page needs to know once."""
        world, observation = self._world, self._now.path[0].reshape(-1)
        space: Any = world.policy.action_space
        sizes = [int(space.n)] if hasattr(space, "n") else [int(size) for size in getattr(space, "nvec", [])]
        return {
            "env": world.env_id,
            "dimensions": dimension_names(world.env_id, len(observation))[:SHOWN_NUMBERS],
            "actions": [action_names(world.env_id, size) for size in sizes],
            "keys": self._keys.help,
            "starts": len(world.starts),
            "temperatures": [LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE],
            "ranges": self._ranges(),
        }

    def handle(self, message: Any) -> dict[str, Any]:
        """Does what a page asks for, and tells it where the dream is.

        Raises:
            BadMessageError: If it makes no sense; the dream is where it was.
        """
        commands: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "look": lambda _: None,
            "start": self._do_start,
            "step": self._do_step,
            "temperature": self._do_temperature,
            "branch": self._do_branch,
            "back": self._do_back,
        }
        command = commands.get(str(message.get("do"))) if isinstance(message, dict) else None
        if command is None:
            raise BadMessageError(f"unknown message; must be an object with do: {', '.join(commands)}")
        command(message)
        return _plain(self._report())

    # --- commands ----------------------------------------------------------------------------------------------------

    def _do_start(self, message: Mapping[str, Any]) -> None:
        """From a real state; the same seed, actions and temperature dream the same again."""
        self._start = _whole(message, "index", 0, len(self._world.starts) - 1, self._start)
        self._seed = _whole(message, "seed", 0, 2**31 - 1, self._seed)
        self._stepper = self._stepper_at_start()
        self._now = self._first_moment()

    def _do_step(self, message: Mapping[str, Any]) -> None:
        """One step; keys win over the policy. After an end nothing happens."""
        keys = message.get("keys", [])
        if not isinstance(keys, list) or len(keys) > 20 or not all(isinstance(key, str) for key in keys):
            raise BadMessageError("keys must be a list of names of keys")
        if self._now.ended:
            return
        choice = self._choice()
        wanted = self._keys.action(keys, choice.action)
        action = choice.action if wanted is None else wanted
        step = self._stepper.step(action[None], self._temperature)
        now = self._now
        self._now = Moment(
            place=self._stepper.place,
            t=now.t + 1,
            path=(*now.path[-SHOWN_STEPS:], self._stepper.observations[0].numpy()),
            total=now.total + float(step.reward[0]),
            reward=float(step.reward[0]),
            end_probability=float(step.termination_prob[0]),
            ended=bool(step.terminated[0]),
            action=self._name(action),
            by="the policy" if wanted is None else "you",
        )

    def _do_temperature(self, message: Mapping[str, Any]) -> None:
        value = message.get("value")
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE
        ):
            raise BadMessageError(f"temperature must be a number from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}")
        self._temperature = float(value)

    def _do_branch(self, message: Mapping[str, Any]) -> None:
        """Keeps this moment; the oldest branch goes when there are too many."""
        self._branches = [*self._branches, self._now][-MAX_BRANCHES:]

    def _do_back(self, message: Mapping[str, Any]) -> None:
        """To a branch; noise goes on, so that another future follows."""
        self._now = self._branches[_whole(message, "branch", 0, len(self._branches) - 1, None)]
        self._stepper.place = self._now.place

    # --- answers -----------------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        now, choice = self._now, self._choice()
        episode, step = self._world.starts.at(self._start)
        return {
            "t": now.t,
            "frame": self._frame(),
            "path": [observation.reshape(-1)[:SHOWN_NUMBERS].tolist() for observation in now.path],
            "total": now.total,
            "reward": now.reward,
            "end_probability": now.end_probability,
            "ended": now.ended,
            "action": now.action,
            "by": now.by,
            "choice": {
                "action": self._name(choice.action),
                "probabilities": choice.probabilities,
                "mean": choice.mean,
                "std": choice.std,
                "value": choice.value,
            },
            "doubt": self._doubt(choice),
            "temperature": self._temperature,
            "seed": self._seed,
            "start": {"index": self._start, "episode": episode, "step": step},
            "branches": [{"t": branch.t, "total": branch.total} for branch in self._branches],
        }

    def _frame(self) -> str | None:
        if isinstance(self._world.painter, TracePainter):
            return None
        path = self._now.path[-1]
        if not np.isfinite(path).all():
            return None
        return data_uri(self._world.painter.paint(path[None]), quality=JPEG_QUALITY)

    def _doubt(self, choice: Choice) -> float | None:
        """How much M's ensemble disagrees on the policy's next step, of what is usual; None without an ensemble."""
        world_model = self._world.policy.world_model
        if world_model.mdn_rnn.ensemble is None:
            return None
        with torch.no_grad():
            value = world_model.mdn_rnn.disagreement(self._now.place.z, self._codec.encode(choice.action[None]))
        return float(value[0])

    def _choice(self) -> Choice:
        place = self._now.place
        return choice_at(self._world.policy, place.z, place.state[0])

    def _name(self, action: torch.Tensor) -> str:
        space: Any = self._world.policy.action_space
        if hasattr(space, "n"):
            return action_names(self._world.env_id, int(space.n))[int(action)]
        return ", ".join(f"{value:.2f}" if action.is_floating_point() else str(int(value)) for value in action.tolist())

    def _ranges(self) -> list[list[float]]:
        """Least and most of each number of the real observations, for the axes of traces."""
        observations = np.concatenate([episode.observations for episode in self._world.starts.episodes])
        flat = observations.reshape(len(observations), -1)[:, :SHOWN_NUMBERS]
        return [[float(low), float(high)] for low, high in zip(flat.min(0), flat.max(0), strict=True)]

    def _stepper_at_start(self) -> Stepper:
        world_model = self._world.policy.world_model
        place = self._world.starts.place(self._start, world_model, self._world.burn_in)
        return Stepper(world_model, place, self._seed)

    def _first_moment(self) -> Moment:
        return Moment(self._stepper.place, 0, (self._stepper.observations[0].numpy(),))


def _plain(value: Any) -> Any:
    """A tree as JSON has it: None for what is not finite, as dreams at high temperatures may be."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(message: Mapping[str, Any], name: str, low: int, high: int, default: int | None) -> int:
    value = message.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadMessageError(f"{name} must be a whole number from {low} to {high}")
    return value
