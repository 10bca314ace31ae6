"""What dreams in the speed benchmark: our dreamer as an actor and as a bare loop, and RLlib's DreamerV3."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.dreamerv3.torch.models.actor_network import ActorNetwork
from ray.rllib.algorithms.dreamerv3.torch.models.components.mlp import MLP
from ray.rllib.algorithms.dreamerv3.torch.models.components.vector_decoder import VectorDecoder
from ray.rllib.algorithms.dreamerv3.torch.models.critic_network import CriticNetwork
from ray.rllib.algorithms.dreamerv3.torch.models.dreamer_model import DreamerModel
from ray.rllib.algorithms.dreamerv3.torch.models.world_model import WorldModel as DreamerV3WorldModel
from ray.rllib.algorithms.dreamerv3.utils import get_gru_units, get_num_z_categoricals, get_num_z_classes
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.numpy import convert_to_numpy
from torch.utils.flop_counter import FlopCounterMode

from wm_rllib.actors.parameter_server import ParameterServer, make_record
from wm_rllib.benchmark.dream_flops import paper_step_flops, step_flops
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.dreamers.dreamer import Dreamed, Dreamer, DreamerSpec, DreamRequest
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.models.dreaming import dream
from wm_rllib.models.precision import BFLOAT16, FLOAT32, dtype_of
from wm_rllib.replay.service import ReplayService
from wm_rllib.rl_modules.policy_network import make_policy

EPISODE_LENGTH = 100
NUM_EPISODES = 50


@dataclass(frozen=True)
class DreamSize:
    """One size to measure: settings of WorldModelPPOConfig, and the dream's."""

    settings: dict[str, Any]
    lanes: int
    horizon: int
    burn_in: int
    precision: str = FLOAT32

    @property
    def rows(self) -> int:
        """Steps in one dream."""
        return self.lanes * self.horizon


# The size that dreams are usually compared at (LSTM 256, latent 32, K 5), without hidden layers in M's heads, and what
# `WorldModelPPOConfig()` dreams: about 12,375 rows for 125 real ones at a ratio of 0.99.
PAPER = DreamSize(
    {
        "latent_dim": 32,
        "mdn_hidden_dim": 256,
        "mdn_head_hidden_dims": [],
        "num_mixtures": 5,
        "policy_hidden_dims": [256, 128],
    },
    lanes=256,
    horizon=15,
    burn_in=0,
)
SIZES = {
    "paper": PAPER,
    "paper, bfloat16": DreamSize(PAPER.settings, lanes=256, horizon=15, burn_in=0, precision=BFLOAT16),
    "paper, burn-in 15": DreamSize(PAPER.settings, lanes=256, horizon=15, burn_in=15),
    "paper, burn-in 15, bfloat16": DreamSize(PAPER.settings, lanes=256, horizon=15, burn_in=15, precision=BFLOAT16),
    "default": DreamSize({}, lanes=250, horizon=50, burn_in=15),
}


class Learner:
    """Stands for the learner: takes dreams out of the object store and makes flat tensors of their columns."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def take(self, shard_refs: list[ray.ObjectRef]) -> int:
        """The number of rows, once every column is a tensor in this process."""
        blocks = [block for shard in ray.get(shard_refs) for block in shard]
        columns = {
            name: torch.as_tensor(np.concatenate([block[name].reshape(-1, *block[name].shape[2:]) for block in blocks]))
            for name in blocks[0]
            if name != "bootstrap_obs"
        }
        torch.as_tensor(np.concatenate([block["bootstrap_obs"] for block in blocks]))
        return len(columns[Columns.REWARDS])


class OurDream:
    """A dreamer actor of one thread, its parameter server, replay and learner; and the same networks in this process.

    Args:
        size: What to dream.
    """

    def __init__(self, size: DreamSize):
        self.size = size
        config = WorldModelPPOConfig().environment("CartPole-v1")
        for name, value in size.settings.items():
            setattr(config, name, value)
        config.device = "cpu"
        runner = WorldModelEnvRunner(config=config)
        spaces = runner.get_spaces()
        policy = config.get_rl_module_spec(spaces=spaces, inference_only=True)
        policy.observation_space, policy.action_space = spaces[DEFAULT_MODULE_ID]
        # RLlib has made torch deterministic for this process's seed; dreamers are not, and it costs time.
        torch.use_deterministic_algorithms(False)
        self._world_model = runner.world_model.eval()
        self._module = policy.build()
        self._policy_hidden_dims = list(config.policy_hidden_dims)
        how: dict[str, Any] = {"num_threads": 1, "device": "cpu", "precision": size.precision}
        self._spec = DreamerSpec(self._world_model.config, policy, "warning", **how)
        self._start_actors()

    def _start_actors(self) -> None:
        self._weights = ray.put(convert_to_numpy(self._world_model.state_dict()))
        self._server = server = ray.remote(num_cpus=0)(ParameterServer).remote()
        replay = ray.remote(num_cpus=0)(ReplayService).remote(NUM_EPISODES * EPISODE_LENGTH, 0)
        ray.get(replay.add.remote([ray.put(random_episodes())]))
        self._starts = ray.get(replay.starts.remote(self.size.lanes, self.size.burn_in))
        self._dreamer = ray.remote(num_cpus=1)(Dreamer).remote(self._spec, server)
        self._learner = ray.remote(num_cpus=0)(Learner).remote()
        self._actors = [server, replay, self._dreamer, self._learner]

    @property
    def flops_per_step(self) -> int:
        """See `step_flops`."""
        return step_flops(self._world_model.config.mdn_rnn, self._policy_hidden_dims, 2)

    @property
    def paper_flops_per_step(self) -> int:
        """See `paper_step_flops`."""
        return paper_step_flops(self._world_model.config.mdn_rnn, self._policy_hidden_dims, 2)

    def delivered(self, seed: int) -> tuple[float, float]:
        """Seconds from the order to tensors in the learner's process, and the dreamer's own part of them."""
        # As after every update: the policy is new, so that the order includes pulling it.
        policy = ray.put(convert_to_numpy(self._module.get_state()))
        ray.get(self._server.push.remote(make_record(seed, (self._weights, 0), (policy, seed))))
        request = DreamRequest([self.size.rows], self.size.horizon, 1.0, None, 0.0, 0.0, self._starts, 0, seed)
        start = time.perf_counter()
        dreamed = ray.get(self._dreamer.dream.remote(request))
        assert isinstance(dreamed, Dreamed), dreamed
        rows = ray.get(self._learner.take.remote(dreamed.shard_refs))
        seconds = time.perf_counter() - start
        assert rows == self.size.rows, rows
        return seconds, dreamed.seconds

    def bare(self, seed: int) -> float:
        """Seconds of the loop alone, in this process."""
        torch.manual_seed(seed)
        z = torch.randn(self.size.lanes, self._world_model.config.vae.latent_dim)
        state = self._world_model.mdn_rnn.initial_state(self.size.lanes)
        start = time.perf_counter()
        dtype = dtype_of(self.size.precision)
        dream(self._world_model, make_policy(self._module), z, state, self.size.horizon, 1.0, dtype=dtype)
        return time.perf_counter() - start

    def stop(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            ray.kill(actor)


def random_episodes() -> list[SingleAgentEpisode]:
    """Episodes of CartPole's form to start dreams from."""
    rng = np.random.default_rng(0)
    return [
        SingleAgentEpisode(
            observations=list(rng.normal(size=(EPISODE_LENGTH + 1, 4)).astype(np.float32)),
            actions=list(rng.integers(2, size=EPISODE_LENGTH)),
            rewards=[1.0] * EPISODE_LENGTH,
            truncated=True,
            len_lookback_buffer=0,
        ).to_numpy()
        for _ in range(NUM_EPISODES)
    ]


class DreamerV3Dream:
    """`DreamerModel.dream_trajectory` of RLlib, size XS, on CartPole's spaces, in this process.

    It computes the critic's values too, which our dreams leave to the learner.
    """

    def __init__(self, lanes: int, horizon: int):
        self._lanes, self._horizon = lanes, horizon
        observations: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        actions: gym.Space[Any] = gym.spaces.Discrete(2)
        size, self._units = "XS", get_gru_units("XS")
        self._shape = (get_num_z_categoricals(size), get_num_z_classes(size))
        features = self._units + self._shape[0] * self._shape[1]
        world_model = DreamerV3WorldModel(
            model_size=size,
            observation_space=observations,
            action_space=actions,
            encoder=MLP(input_size=4, model_size=size),
            decoder=VectorDecoder(input_size=features, model_size=size, observation_space=observations),
        )
        actor = ActorNetwork(input_size=features, action_space=actions, model_size=size)
        critic = CriticNetwork(input_size=features, model_size=size)
        critic.init_ema()
        self._model = DreamerModel(
            model_size=size, action_space=actions, world_model=world_model, actor=actor, critic=critic
        )

    @torch.no_grad()
    def seconds(self, seed: int) -> float:
        """Seconds of one dream."""
        torch.manual_seed(seed)
        z = torch.nn.functional.one_hot(torch.randint(self._shape[1], (self._lanes, self._shape[0])), self._shape[1])
        states = {"h": torch.randn(self._lanes, self._units), "z": z.float()}
        start = time.perf_counter()
        self._model.dream_trajectory(states, torch.zeros(self._lanes), self._horizon, 0.99)
        return time.perf_counter() - start

    def flops_per_step(self) -> float:
        """As torch counts the matrix products of one dream, over its lanes and steps."""
        with FlopCounterMode(display=False) as counter:
            self.seconds(0)
        return counter.get_total_flops() / (self._lanes * self._horizon)
