"""An environment that does what a script says and remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

SCRIPT = ((5, "terminated"), (3, "truncated"), (7, "terminated"), (1, "terminated"), (1, "truncated"), (4, "truncated"))
"""Length and end of one episode after the other, again and again."""


def reward_of(episode: int, t: int) -> float:
    """The reward of the step that leaves time `t`."""
    return 100.0 * episode + t + 0.5


def script_of(episode: int) -> tuple[int, str]:
    """Length and end of an episode."""
    return SCRIPT[episode % len(SCRIPT)]


@dataclass
class Record:
    """What one environment was told: its number, and the actions it received, by episode."""

    number: int
    actions: dict[int, list[np.ndarray]] = field(default_factory=dict)


class ScriptedEnv(gym.Env[np.ndarray, Any]):
    """Observations say who, which episode and when: (number, episode, t, sin of all three).

    Args:
        config: `action_space`; Discrete(3) if it names none.
    """

    records: ClassVar[dict[int, Record]] = {}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def __init__(self, config: dict[str, Any] | None = None):
        self.action_space = (config or {}).get("action_space") or gym.spaces.Discrete(3)
        self.record = Record(len(self.records))
        self.records[self.record.number] = self.record
        self.episode, self.t = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        self.record.actions[self.episode] = []
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        length, end = script_of(self.episode)
        assert self.t < length, "stepped after the end"
        self.record.actions[self.episode].append(np.array(action))
        reward = reward_of(self.episode, self.t)
        self.t += 1
        over = self.t == length
        return self._observation(), reward, over and end == "terminated", over and end == "truncated", {}

    def _observation(self) -> np.ndarray:
        when = (self.record.number, self.episode, self.t)
        return np.array([*when, np.sin(1.0 + when[0] + 10 * when[1] + 100 * when[2])], np.float32)
