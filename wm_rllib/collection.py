"""Real experience of one iteration: asked of all env runners, received as references and numbers."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from wm_rllib.env_runner import Collected, CollectRequest, WorldModelEnvRunner
from wm_rllib.seeding import stage_seed


@dataclass
class RealExperience:
    """What the env runners delivered.

    Attributes:
        shard_refs: For each learner the references to its episodes on features, of fresh enough fragments.
        rows: For each learner the env steps in them.
        raw_refs: References to raw episodes, of all fragments.
        num_timesteps: Env steps of all fragments.
        staleness: The largest staleness of a fragment, in iterations.
        dropped_rows: Env steps too stale for PPO (the replay takes them).
        metrics: RLlib's metrics, one entry an env runner.
    """

    shard_refs: list[list[ray.ObjectRef]]
    rows: list[int]
    raw_refs: list[ray.ObjectRef]
    num_timesteps: int
    staleness: int
    dropped_rows: int
    metrics: list[Any]


def collect(group: EnvRunnerGroup, request: CollectRequest, *, timeout_s: float) -> list[Collected]:
    """Has every healthy env runner sample its part of `request.num_timesteps`.

    An env runner whose env raises ends itself and is restarted by RLlib; its part is missing from the answer.
    """
    workers = group.num_healthy_remote_workers()
    if group.num_remote_env_runners() == 0:
        return [group.local_env_runner.collect(request)]
    if workers == 0:
        return []
    share = -(-request.num_timesteps // workers)
    return list(
        group.foreach_env_runner(
            functools.partial(_collect, request=request, share=share),
            local_env_runner=False,
            timeout_seconds=timeout_s,
        )
    )


def _collect(runner: WorldModelEnvRunner, request: CollectRequest, share: int) -> Collected:
    seed = None if request.seed is None else stage_seed(request.seed, 0, "env_runner", runner.worker_index)
    return runner.collect(CollectRequest(share, request.num_shards, request.random_actions, request.fresh_envs, seed))


def combine(parts: list[Collected], num_learners: int, staleness: list[int], max_staleness: int) -> RealExperience:
    """Sorts the parts by learner; fragments with staleness above `max_staleness` go to the replay only."""
    fresh = [part for part, age in zip(parts, staleness, strict=True) if age <= max_staleness and part.shard_refs]
    dropped = sum(part.num_timesteps for part, age in zip(parts, staleness, strict=True) if age > max_staleness)
    return RealExperience(
        shard_refs=[[part.shard_refs[i] for part in fresh] for i in range(num_learners)],
        rows=[sum(part.shard_rows[i] for part in fresh) for i in range(num_learners)],
        raw_refs=[part.raw_ref for part in parts],
        num_timesteps=sum(part.num_timesteps for part in parts),
        staleness=max(staleness, default=0),
        dropped_rows=dropped,
        metrics=[part.metrics for part in parts],
    )


class SamplesAhead:
    """Real env steps that the env runners take while the learners are at work.

    An env runner has at most one such request. A fragment that comes after the timeout is delivered with the next ones:
    too old for PPO by then, but real experience for the replay.

    Args:
        group: RLlib's env runners, all remote.
        num_envs: Environments in each.

    Attributes:
        in_flight: Whether `finish` has something to wait for.
        most_rows: Env steps that the newest request may bring: an env runner may overshoot by a step in all envs but
            one.
    """

    def __init__(self, group: EnvRunnerGroup, num_envs: int):
        self._group, self._num_envs = group, num_envs
        self._numbers = itertools.count()
        self._tag = f"samples/{next(self._numbers)}"
        self._given_up: list[str] = []
        self.in_flight = False
        self.most_rows = 0

    def start(self, request: CollectRequest) -> None:
        """Has every healthy env runner begin its part of `request.num_timesteps`."""
        workers = self._group.num_healthy_remote_workers()
        share = -(-request.num_timesteps // max(1, workers))
        self.in_flight = True
        self.most_rows = workers * (share + self._num_envs - 1)
        if workers:
            self._group.foreach_env_runner_async(
                functools.partial(_collect, request=request, share=share), tag=self._tag
            )

    def finish(self, timeout_s: float) -> list[Collected]:
        """What came of it; the part of an env runner that was lost is missing."""
        self.in_flight = False
        if self._given_up:  # RLlib's manager holds answers until they are fetched
            self._group.fetch_ready_async_reqs(tags=self._given_up)
        return [part for _, part in self._group.fetch_ready_async_reqs(tags=self._tag, timeout_seconds=timeout_s)]

    def discard(self) -> None:
        """Gives up what is in flight: a state was restored in which it never happened."""
        if self.in_flight:
            self.in_flight = False
            self._given_up.append(self._tag)
            self._tag = f"samples/{next(self._numbers)}"
