"""PPO's hyperparameters of rl-baselines3-zoo, for the peers.

Source: github.com/DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml, commit 00128b5d46d497b772f3bd891ae9f520919e8971.
What that file leaves out are the defaults of Stable-Baselines3's PPO.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ZooSettings:
    """Settings of one environment, under Stable-Baselines3's names and with its defaults.

    Attributes:
        n_envs: Parallel environments.
        n_steps: Steps of each in a rollout.
        batch_size: Rows of a minibatch.
        n_epochs: Passes over a rollout.
        gamma: Discount.
        gae_lambda: Lambda of the advantage estimate.
        ent_coef: Weight of the entropy bonus.
        learning_rate: Adam's.
        clip_range: Clipping of the policy ratio.
        linear: Whether learning rate and clip range fall linearly to 0 at `n_timesteps`.
        n_timesteps: Length of the zoo's own run.
        normalize: Whether observations and rewards are divided by running statistics.
        use_sde: Whether exploration is state-dependent.
        sde_sample_freq: Steps between draws of that noise; -1: once a rollout.
    """

    n_envs: int = 1
    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.0
    learning_rate: float = 3e-4
    clip_range: float = 0.2
    linear: bool = False
    n_timesteps: int = 1_000_000
    normalize: bool = False
    use_sde: bool = False
    sde_sample_freq: int = -1


VF_COEF, MAX_GRAD_NORM = 0.5, 0.5
"""Stable-Baselines3's defaults; the zoo changes neither for these environments."""

# The zoo names LunarLander-v2, which Gymnasium 1.x has replaced by v3.
_LUNAR_LANDER = ZooSettings(
    n_envs=16, n_steps=1024, gae_lambda=0.98, gamma=0.999, n_epochs=4, ent_coef=0.01, n_timesteps=1_000_000
)

_SETTINGS = {
    "CartPole-v1": ZooSettings(
        n_envs=8,
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        learning_rate=1e-3,
        linear=True,
        n_timesteps=100_000,
    ),
    "Pendulum-v1": ZooSettings(
        n_envs=4,
        n_steps=1024,
        gamma=0.9,
        learning_rate=1e-3,
        n_timesteps=100_000,
        use_sde=True,
        sde_sample_freq=4,
    ),
    "Acrobot-v1": ZooSettings(n_envs=16, n_steps=256, gae_lambda=0.94, n_epochs=4, normalize=True),
    "LunarLander-v3": _LUNAR_LANDER,
}


def zoo_settings(env_id: str) -> ZooSettings:
    """Return the zoo's settings of an environment; Stable-Baselines3's defaults where it has none."""
    return _SETTINGS.get(env_id, ZooSettings())
