"""How many latents there are where nothing is said of them."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from image_env import DotEnv
from ray.tune.registry import register_env
from tiny import tiny_config

from wm_rllib.models.config import num_latents


@pytest.mark.parametrize(
    ("shape", "latents"),
    [((1,), 8), ((4,), 8), ((8,), 8), ((9,), 9), ((24,), 24), ((64,), 64), ((376,), 64), ((64, 64, 3), 32)],
)
def test_as_many_as_a_vector_has_numbers_within_bounds(shape: tuple[int, ...], latents: int):
    assert num_latents(shape) == latents


class Wide(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (11,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, env_config: dict | None = None):
        del env_config

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 11).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 11).astype(np.float32), 1.0, bool(self.np_random.random() < 0.2), False, {}


@pytest.mark.parametrize("inputs", ["zh", "z"])
def test_all_parts_agree_on_them_and_a_number_counts_as_given(inputs: str):
    algos = {}
    for latent_dim in ("auto", 11):
        algo = tiny_config(Wide, latent_dim=latent_dim, controller_inputs=inputs).build_algo()
        algos[latent_dim] = algo
        controller = algo.get_module()
        assert algo.env_runner.world_model.config.vae.latent_dim == 11
        assert controller.model_config["latent_dim"] == 11
        assert controller.observation_space.shape == (11 + (8 if inputs == "zh" else 0),)
        phases = [algo.train()["phase"] for _ in range(3)]
        assert phases == ["random", "pretrain", "mixed"]
    states = [algo.get_module().state_dict() for algo in algos.values()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for algo in algos.values():
        algo.stop()


def test_images_have_those_of_the_paper():
    register_env("dot of auto", lambda _: DotEnv())
    algo = tiny_config("dot of auto", latent_dim="auto", vae_channels=[8, 16], vae_pretrain_epochs=1).build_algo()
    phases = [algo.train()["phase"] for _ in range(3)]
    assert phases == ["random", "pretrain", "mixed"]
    assert algo.env_runner.world_model.config.vae.latent_dim == 32
    algo.stop()
