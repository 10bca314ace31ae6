"""Env runner: RLlib's, acting on [z, h], with weights from the parameter server and raw experience for the replay."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.minibatch_utils import ShardEpisodesIterator

from wm_rllib.acting.connectors import FeatureConnector
from wm_rllib.acting.evaluation import EvaluationResult, evaluate_in
from wm_rllib.acting.pipelines import VectorActions, shorten
from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.actors.parameter_server import ParameterClient, WeightUpdate
from wm_rllib.actors.threads import one_thread
from wm_rllib.env_runners.half_played import HalfPlayed, without_features
from wm_rllib.environments.creation import ONE_BY_ONE, env_for_runners, replayable_env
from wm_rllib.environments.held_actions import HeldActions
from wm_rllib.environments.replayable import MAX_REPLAYED
from wm_rllib.logs import set_log_level
from wm_rllib.models.world_model import WorldModel
from wm_rllib.replay.fresh import Fresh
from wm_rllib.seeding import seed_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectRequest:
    """What the driver asks of an env runner.

    Attributes:
        num_timesteps: Real env steps; up to one more per env than asked may come.
        num_shards: Learners; the experience comes in that many parts of equal length.
        random_actions: Sample actions from the action space.
        seed: Seed of this stage and worker, or None.
        greedy_fraction: Share of the env runner's environments, rounded down, that act greedily.
        random_hold: Steps that a random action is held for, at most.
    """

    num_timesteps: int
    num_shards: int
    random_actions: bool
    seed: int | None
    greedy_fraction: float = 0.0
    random_hold: int = 1


@dataclass(frozen=True)
class Collected:
    """What an env runner hands over: references and numbers.

    Attributes:
        shard_refs: For each learner a reference to a list of episodes on features; empty in the random phase.
        shard_rows: Env steps in each shard.
        raw_ref: Reference to a list of raw episodes, for the replay.
        num_timesteps: Env steps of this call.
        num_ends: Episodes that terminated in it.
        sequence: Record of the parameter server that both versions come from.
        world_model_version: With which V and M the features were computed.
        policy_version: With which C the actions were chosen.
        seconds: Time the env runner worked.
        metrics: RLlib's env runner metrics.
    """

    shard_refs: list[ray.ObjectRef]
    shard_rows: list[int]
    raw_ref: ray.ObjectRef
    num_timesteps: int
    num_ends: int
    sequence: int
    world_model_version: int
    policy_version: int
    seconds: float
    metrics: Any


class WorldModelEnvRunner(SingleAgentEnvRunner):
    """SingleAgentEnvRunner whose env-to-module pipeline holds a `FeatureConnector`."""

    def __init__(self, *, config: Any, **kwargs: Any):
        set_log_level(config.wm_log_level)
        if kwargs.get("worker_index"):
            # Cores are shared with learners and dreamers; batches of a few envs gain nothing from more threads.
            torch.set_num_threads(1)
        super().__init__(config=config, **kwargs)
        self._client = ParameterClient(server=None)
        if not self.module.is_stateful() and torch.device(self._device).type == "cpu":
            shorten(self._env_to_module, self._module_to_env)
        # RLlib puts the module into eval mode for every step, and back into the mode that it was in.
        self.module.eval()

    def make_env(self) -> None:
        """RLlib's, with environments that are ready for V and, in the deterministic setting, replayable."""
        given = self.config.env
        one_by_one = gym.VectorizeMode(self.config.gym_env_vectorize_mode) in ONE_BY_ONE
        self._is_replayable = self.config.is_deterministic and one_by_one and not self.config.in_evaluation
        make = replayable_env if self._is_replayable else env_for_runners
        self.config.env = make(given, self.config)
        try:
            super().make_env()
        finally:
            self.config.env = given

    @property
    def features(self) -> FeatureConnector:
        """The pipeline's feature connector."""
        return next(piece for piece in self._env_to_module.connectors if isinstance(piece, FeatureConnector))

    @property
    def world_model(self) -> WorldModel:
        """This runner's copy of V and M."""
        return self.features.world_model

    def connect(self, server: Any) -> None:
        """Sets the parameter server (an actor handle or object) to pull from before each piece of work."""
        self._client.connect(server)

    def pull(self) -> None:
        """Takes newer weights, if there are any, and encodes the observations still held anew."""
        update = self._client.pull()
        if update is not None:
            self._load(update)

    def _load(self, update: WeightUpdate) -> None:
        if update.policy is not None:
            self.module.set_state(update.policy)
            self._weights_seq_no = self._client.policy_version
        if update.world_model is None:
            return
        weights = {name: torch.as_tensor(value) for name, value in update.world_model.items()}
        before = {name: value.clone() for name, value in self.world_model.vae.state_dict().items()}
        self.world_model.load_state_dict(weights)
        changed = any(not torch.equal(before[name], now) for name, now in self.world_model.vae.state_dict().items())
        self._refresh_features(vae_changed=changed)

    def _refresh_features(self, *, vae_changed: bool) -> None:
        """Has the observations still held encoded anew."""
        if self._cached_to_module is not None and not self._needs_initial_reset:
            features = self.features.refresh(self._ongoing_episodes, vae_changed=vae_changed)
            self._cached_to_module[Columns.OBS] = features.to(self._cached_to_module[Columns.OBS].device)

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's own; what it sets of C may be older than what was pulled, which is pulled again then.

        RLlib gives an env runner that was cut off for a while the state of the local one, which never acts.
        """
        super().set_state(state)
        if COMPONENT_RL_MODULE in state:
            self._client.forget_policy()

    def collect(self, request: CollectRequest) -> Collected:
        """Pulls weights, steps the envs, and puts the experience into the object store."""
        start = time.perf_counter()
        self.pull()
        seed_process(request.seed)
        if request.seed is not None:
            self._seed = request.seed
            self.env.action_space.seed(request.seed)
        self.features.random_actions = request.random_actions
        if self.features.needs_refresh and not request.random_actions:
            self._refresh_features(vae_changed=True)
        num_greedy = self._act_greedily(int(request.greedy_fraction * self.num_envs))
        with one_thread():
            episodes = self._sample_asked(request)
        raw = self.features.take_raw(episodes, self._ongoing_episodes, num_greedy)
        self._thin_out_ongoing()
        logger.debug("collected %d env steps in %d chunks", sum(map(len, episodes)), len(episodes))
        # Features of random actions were computed for nobody: such steps feed the world model alone.
        with _without_infos(episodes):
            shards = [] if request.random_actions else _shard(episodes, request.num_shards)
            shard_refs = [ray.put(shard) for shard in shards]
        return Collected(
            shard_refs=shard_refs,
            shard_rows=[sum(map(len, shard)) for shard in shards],
            raw_ref=ray.put(raw),
            num_timesteps=sum(map(len, episodes)),
            num_ends=sum(bool(episode.is_terminated) for episode in episodes),
            sequence=self._client.sequence,
            world_model_version=self._client.world_model_version,
            policy_version=self._client.policy_version,
            seconds=time.perf_counter() - start,
            metrics=self.get_metrics(),
        )

    def get_half_played(self) -> bytes | None:
        """The episodes under way, pickled: a `HalfPlayed`. None where there are none that could be brought back.

        Newer weights are pulled first, as the next `collect` would: what is held is then encoded by those published.
        """
        if self._needs_initial_reset or not self._is_replayable:
            return None
        self.pull()
        envs = self.env.unwrapped.call("episode_so_far")
        if None in envs:
            logger.warning(
                "an episode has more than %d steps: a run that resumes from this checkpoint starts new ones",
                MAX_REPLAYED,
            )
            return None
        half_played = HalfPlayed(
            envs=envs,
            episodes=self._ongoing_episodes,
            earlier_chunks={
                name: [without_features(chunk) for chunk in chunks]
                for name, chunks in self._ongoing_episodes_for_metrics.items()
            },
            to_module=self._cached_to_module,
            shared_data=self._shared_data,
            features=self.features.get_ongoing(),
        )
        try:
            return ray.cloudpickle.dumps(half_played)  # by value what is in nobody's module, as Ray does
        except Exception as error:  # infos may hold anything, a lock or a handle of the simulator
            logger.warning("a run that resumes from this checkpoint starts new episodes, since %s", error)
            return None

    def set_half_played(self, pickled: bytes | None) -> None:
        """Goes on with another run's episodes; starts new ones, and says so, where environments do not come back."""
        self._needs_initial_reset = True
        self.pull()
        if pickled is None and self._is_replayable:
            return
        try:
            half_played = self._brought_back(pickled)
        except Exception as error:  # whatever an environment or a class that has changed since may raise
            logger.warning(
                "the episodes under way cannot be brought back, new ones start, and the run is not what it would have "
                "been without the interruption: %s",
                error,
            )
            self.make_env()  # whatever state the environments were left in
            return
        self._needs_initial_reset = False
        self._ongoing_episodes = list(half_played.episodes)
        self._ongoing_episodes_for_metrics.clear()
        self._ongoing_episodes_for_metrics.update(half_played.earlier_chunks)
        self._cached_to_module, self._shared_data = half_played.to_module, half_played.shared_data
        self.features.set_ongoing(half_played.features)

    def _brought_back(self, pickled: bytes | None) -> HalfPlayed:
        if pickled is None or not self._is_replayable:
            raise RuntimeError("environments made as a vector keep no record of how they came to where they are")
        half_played: HalfPlayed = ray.cloudpickle.loads(pickled)
        if len(half_played.envs) != self.num_envs:
            raise RuntimeError(f"there are {self.num_envs} environments, and were {len(half_played.envs)}")
        self.env.unwrapped.set_attr("coming", half_played.envs)
        observations, _ = self.env.reset()
        if not half_played.shows(observations):
            raise RuntimeError("environments do not show again what they did, given the same seeds and actions")
        return half_played

    def _thin_out_ongoing(self) -> None:
        """Drops the features of delivered parts of very long episodes under way.

        RLlib keeps all parts until their episode ends, for its metrics and for callbacks: of one that never ends half a
        kilobyte a step.
        """
        for chunks in self._ongoing_episodes_for_metrics.values():
            if chunks and chunks[-1].t_started > MAX_REPLAYED:
                chunks[-1] = without_features(chunks[-1])

    def _sample_asked(self, request: CollectRequest) -> list[SingleAgentEpisode]:
        """RLlib's.

        Raises:
            RuntimeError: The environment raised an error, which RLlib tells nobody but the log.
        """
        try:
            if request.random_actions:
                return self._sample_randomly(request)
            return self.sample(num_timesteps=request.num_timesteps)
        except RuntimeError as error:
            cause = error.__cause__
            if error.args or cause is None:
                raise
            said = f"the environment's step() raised {type(cause).__name__}: {cause}"
            raise RuntimeError(said + _hint_at_infos(cause)) from cause

    def _sample_randomly(self, request: CollectRequest) -> list[SingleAgentEpisode]:
        """RLlib's random actions, each held for a while if that is asked for."""
        space = self.env.action_space
        if request.random_hold > 1:
            self.env.action_space = HeldActions(space, request.random_hold, request.seed)
        try:
            return self.sample(num_timesteps=request.num_timesteps, random_actions=True)
        finally:
            self.env.action_space = space

    def _act_greedily(self, num_envs: int) -> int:
        """In how many environments; returns in how many: pipelines with pieces of the user's own explore in all."""
        for piece in self._module_to_env.connectors:
            if isinstance(piece, VectorActions):
                piece.num_greedy = num_envs
                return num_envs
        return 0

    def evaluate(self, record: dict[str, Any], num_episodes: int, seed: int | None) -> EvaluationResult:
        """Runs whole episodes greedily with exactly the weights of `record` (contract 6)."""
        self._load(self._client.take(record))
        self._needs_initial_reset = True
        seed_process(seed)
        policy = WorldModelPolicy(self.world_model, self.module)
        remake = self._remade if self.config.restart_failed_sub_environments else None
        return evaluate_in(self.env, policy, num_episodes, seed, remake)

    def _remade(self) -> Any:
        self.make_env()
        return self.env


def _hint_at_infos(error: BaseException) -> str:
    """What to do about infos that Gymnasium cannot make arrays of; nothing where the error is another one."""
    if not any(frame.name == "_add_info" for frame in traceback.extract_tb(error.__traceback__)):
        return ""
    return (
        ". Gymnasium makes one array of each value in the infos of several environments, and these differ in type or "
        "shape. Fix: the same type and shape in every step, or env_runners.num_envs_per_env_runner 1."
    )


@contextlib.contextmanager
def _without_infos(episodes: list[SingleAgentEpisode]) -> Iterator[None]:
    """Episodes hold empty infos meanwhile: they go to learners, who read none, and infos may be large, or no pickle."""
    held = [(episode.infos, episode._last_added_infos) for episode in episodes]
    for episode in episodes:
        episode.infos = copy.copy(episode.infos)
        episode.infos.data = [{}] * len(episode.infos.data)
        episode._last_added_infos = {}
    try:
        yield
    finally:
        for episode, (infos, last) in zip(episodes, held, strict=True):
            episode.infos, episode._last_added_infos = infos, last


def _shard(episodes: list[SingleAgentEpisode], num_shards: int) -> list[list[SingleAgentEpisode]]:
    if num_shards == 1:
        return [episodes]
    is_greedy = {episode.id_: Fresh.of(episode).is_greedy for episode in episodes}
    shards = list(ShardEpisodesIterator(episodes, num_shards=num_shards))
    for piece in itertools.chain(*shards):  # a slice of an episode keeps nothing of its `custom_data`
        Fresh(len(piece), is_greedy=is_greedy[piece.id_]).attach(piece)
    return shards
