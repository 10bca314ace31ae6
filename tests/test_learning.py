"""Something is learned, on fixed seeds; thresholds lie between what knows nothing and what is usual."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from wm_rllib import WorldModelPPOConfig
from wm_rllib.models.mixture import mixture_nll
from wm_rllib.models.world_model import WorldModel
from wm_rllib.spaces import ActionCodec

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

HELD_OUT_EPISODES = 20
LENGTH = 32


def random_episodes(env_id: str, seed: int) -> list[dict[str, np.ndarray]]:
    """Raw experience of an environment made here, with random actions, in policy space."""
    env = gym.make(env_id)
    env.action_space.seed(seed)
    codec = ActionCodec(env.action_space, normalized=True)
    episodes = []
    for number in range(HELD_OUT_EPISODES):
        observation, _ = env.reset(seed=seed + number)
        observations, actions, rewards, over = [observation], [], [], False
        while not over and len(actions) < LENGTH:
            actions.append(env.action_space.sample())
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            over = terminated or truncated
        episodes.append(
            {
                "observations": np.asarray(observations, np.float32),
                "actions": codec.env_to_policy(np.asarray(actions)),
                "rewards": np.asarray(rewards, np.float32),
            }
        )
    return episodes


@torch.no_grad()
def one_step_errors(world_model: WorldModel, episodes: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Mean squared errors of the next latent (by the mixture's mean, by z as it is) and of the reward, and the NLL."""
    errors: dict[str, list[torch.Tensor]] = {"predicted": [], "z stays": [], "nll": [], "reward": []}
    for episode in episodes:
        z = world_model.vae.encode(torch.as_tensor(episode["observations"]))[None]
        actions = world_model.codec.encode(torch.as_tensor(episode["actions"]))[None]
        hidden, _ = world_model.mdn_rnn.unroll(z[:, :-1], actions)
        mixture = world_model.mdn_rnn.predict(hidden, z[:, :-1], actions)
        reward = world_model.mdn_rnn.outcome(z[:, :-1], actions, z[:, 1:]).reward
        mean = (mixture.log_pi.exp().unsqueeze(-1) * mixture.mean).sum(-2)
        errors["predicted"].append((mean - z[:, 1:]).square().mean(-1).flatten())
        errors["z stays"].append((z[:, :-1] - z[:, 1:]).square().mean(-1).flatten())
        errors["nll"].append(mixture_nll(mixture, z[:, 1:]).flatten())
        errors["reward"].append((reward - torch.as_tensor(episode["rewards"])).square().flatten())
    return {name: float(torch.cat(values).mean()) for name, values in errors.items()}


@pytest.mark.learning
@pytest.mark.parametrize("env_id", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)])
def test_m_beats_z_stays_and_its_untrained_self(env_id):
    """One step ahead, on random experience that it was not fitted to."""
    config = WorldModelPPOConfig().environment(env_id).world_model(random_collection_steps=1000, pretrain_epochs=250)
    config.device, config.seed = "cpu", 0
    algorithm = config.build_algo()
    try:
        assert [algorithm.train()["phase"] for _ in range(2)] == ["random", "pretrain"]
        trained = algorithm.learner_group._learner.world_model.eval()
        untrained = WorldModel(trained.config).eval()
        # The same latents and units, so that errors can be compared.
        untrained.vae.load_state_dict(trained.vae.state_dict())
        untrained.mdn_rnn.load_state_dict(dict(trained.mdn_rnn.named_buffers()), strict=False)
        episodes = random_episodes(env_id, seed=10_000)
        ours, theirs = one_step_errors(trained, episodes), one_step_errors(untrained, episodes)
    finally:
        algorithm.stop()
    assert ours["z stays"] == theirs["z stays"] > 0
    assert ours["predicted"] < 0.5 * ours["z stays"], ours
    assert ours["predicted"] < 0.5 * theirs["predicted"], (ours, theirs)
    assert ours["nll"] < theirs["nll"] - 1.0, (ours, theirs)
    assert ours["reward"] < 0.5 * theirs["reward"], (ours, theirs)


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.timeout(1200)
def test_cartpole_in_1500_real_steps():
    """The defaults, in a single process; random actions reach about 20."""
    config = WorldModelPPOConfig().environment("CartPole-v1").evaluation(evaluation_interval_steps=125)
    config.device, config.seed = "cpu", 0
    algorithm = config.build_algo()
    returns: dict[int, float] = {}
    try:
        while algorithm._state.num_env_steps < 1500 and max(returns.values(), default=0.0) <= 195.0:
            result = algorithm.train()
            evaluation = result.get("evaluation", {}).get("episode_return_mean")
            if evaluation is not None:
                returns[result["num_env_steps_sampled_lifetime"]] = evaluation
    finally:
        algorithm.stop()
    assert max(returns.values()) > 195.0, returns
