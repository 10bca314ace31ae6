"""Real experience of one iteration: asked of all env runners, received as references and numbers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from wm_rllib.actors.failures import Failure, FailureCounter, Patience, death_of_all
from wm_rllib.actors.restarts import PROCESS, RestartCounter
from wm_rllib.env_runners.env_runner import Collected, CollectRequest, WorldModelEnvRunner
from wm_rllib.seeding import stage_seed

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
"""For env runners to close their environments when the algorithm ends."""


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

    @classmethod
    def none(cls, num_learners: int) -> RealExperience:
        """That of an iteration that takes no real step."""
        return combine([], num_learners, [], 0)


def _collect(
    runner: WorldModelEnvRunner, request: CollectRequest, share: int, server: Any
) -> tuple[str, Collected | Failure]:
    runner.connect(server)  # one that was restarted knows nothing
    seed = None if request.seed is None else stage_seed(request.seed, 0, "env_runner", runner.worker_index)
    own = dataclasses.replace(request, num_timesteps=share, seed=seed)
    try:
        return PROCESS, runner.collect(own)
    except Exception as error:
        logger.exception("an env runner failed")
        runner.make_env()  # whatever state the environments were left in; all are reset in the next call
        return PROCESS, Failure.of(error)


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


class EnvRunnerError(RuntimeError):
    """An env runner keeps failing with an error of its environment's code, or none can be started."""


def end_env_runners(group: EnvRunnerGroup) -> None:
    """Ends remote env runners; RLlib's own `stop` waits for ever for one that hangs."""
    if group.num_remote_env_runners():
        stop = {"local_env_runner": False, "healthy_only": False, "timeout_seconds": STOP_TIMEOUT_S}
        group.foreach_env_runner("stop", **stop)
        group._worker_manager.clear()


class Sampling:
    """Real env steps, from all env runners: now, or ahead, while the learners are at work.

    An env runner has at most one request. Of one that does not answer in time nothing more is asked until it does: it
    hangs, or is cut off from the driver, and would hold up every iteration. Its fragment is delivered when it comes,
    like any other: what is too old for PPO goes to the replay alone. The part of a lost env runner is missing.

    Args:
        group: RLlib's env runners.
        num_envs: Environments in each.
        server: The parameter server that they pull from.

    Attributes:
        in_flight: Whether `finish` has something to wait for.
        most_rows: Env steps that the newest request may bring: an env runner may overshoot by a step in all envs but
            one.
        num_late: Requests that were not answered in time so far.
    """

    def __init__(self, group: EnvRunnerGroup, num_envs: int, server: Any):
        self._group, self._num_envs, self._server = group, num_envs, server
        self._failures = FailureCounter("env runner", EnvRunnerError)
        self._restarts = RestartCounter("env runner")
        self._patience = Patience("env runner", EnvRunnerError, "env_runners.sample_timeout_s")
        self._numbers = itertools.count()
        self._tag = ""
        self._asked: set[int] = set()
        self._late: set[int] = set()
        self._late_tags: list[str] = []
        self._given_up: list[str] = []
        self.in_flight = False
        self.most_rows = 0
        self.num_late = 0

    @property
    def num_restarts(self) -> int:
        """How often a lost env runner has delivered again."""
        return self._restarts.total

    @property
    def num_failures(self) -> int:
        """Errors of the environments' code so far."""
        return self._failures.total

    def sample(self, request: CollectRequest, timeout_s: float) -> list[Collected]:
        """Has every env runner sample its part of `request.num_timesteps`, and waits for it.

        Raises:
            EnvRunnerError: See `finish`.
        """
        if self._group.num_remote_env_runners() == 0:
            self._group.local_env_runner.connect(self._server)
            return [self._group.local_env_runner.collect(request)]
        self.start(request)
        return self.finish(timeout_s)

    def start(self, request: CollectRequest) -> None:
        """Has every env runner that is ready begin its part of `request.num_timesteps`."""
        self._let_go()
        healthy = set(self._group.healthy_worker_ids())
        self._late &= healthy
        self._asked = healthy - self._late
        share = -(-request.num_timesteps // max(1, len(self._asked)))
        self._tag = f"samples/{next(self._numbers)}"
        self.in_flight = True
        self.most_rows = len(self._asked) * (share + self._num_envs - 1)
        if self._asked:
            self._group.foreach_env_runner_async(
                functools.partial(_collect, request=request, share=share, server=self._server),
                tag=self._tag,
                remote_worker_ids=sorted(self._asked),
            )

    def finish(self, timeout_s: float) -> list[Collected]:
        """What came of it.

        Raises:
            EnvRunnerError: The same env runner failed several times in a row, all are dead for good, or none has
                delivered for long.
        """
        self.in_flight, started = False, time.monotonic()
        answers = self._fetch([self._tag], timeout_s)
        self._note_late({worker for worker, _ in answers}, timeout_s)
        # With nobody else to wait for, those that are late are waited for.
        answers += self._fetch(self._late_tags, 0.0 if self._asked else timeout_s)
        self._late -= {worker for worker, _ in answers}
        # One that died owes nothing any more, and may be back before the next request.
        self._late &= set(self._group.healthy_worker_ids())
        self._late_tags = self._in_flight(self._late_tags)
        parts = []
        for worker, (process, answer) in answers:
            self._restarts.answered(worker, process)
            if isinstance(answer, Failure):
                self._failures.failed(worker, answer)
            else:
                self._failures.worked(worker)
                parts.append(answer)
        if not parts and (error := death_of_all(self._group._worker_manager.actors().values())):
            raise EnvRunnerError(f"all env runners are dead for good; the last one's error was:\n{error}")
        if parts:
            self._patience.delivered()
        else:
            self._patience.waited(time.monotonic() - started, timeout_s)
        return parts

    def discard(self) -> None:
        """Gives up what is in flight: a state was restored in which it never happened."""
        if self.in_flight:
            self.in_flight = False
            self._given_up.append(self._tag)
        self._given_up += self._late_tags
        self._late_tags = []

    def _fetch(self, tags: list[str], timeout_s: float) -> list[tuple[int, tuple[str, Collected | Failure]]]:
        tags = self._in_flight(tags)  # to RLlib no tags mean all
        return self._group.fetch_ready_async_reqs(tags=tags, timeout_seconds=timeout_s) if tags else []

    def _in_flight(self, tags: list[str]) -> list[str]:
        return [tag for tag in tags if self._group.num_in_flight_async_reqs(tag)]

    def _let_go(self) -> None:
        """Releases answers to what was given up: RLlib's manager holds them until they are fetched."""
        self._late -= {worker for worker, _ in self._fetch(self._given_up, 0.0)}
        self._given_up = self._in_flight(self._given_up)

    def _note_late(self, answered: set[int], timeout_s: float) -> None:
        late = (self._asked & set(self._group.healthy_worker_ids())) - answered
        if late:
            logger.warning(
                "env runners %s did not answer within %.0f s (env_runners.sample_timeout_s)", sorted(late), timeout_s
            )
            self.num_late += len(late)
            self._late |= late
            self._late_tags.append(self._tag)
