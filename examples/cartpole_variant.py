r"""CartPole with another gravity, pole or push: a similar environment for `world_model.transfer`.

python -m wm_rllib train --config tune_configs/cartpole.yaml --env examples.cartpole_variant:make_env \
    --set "env.config={gravity: 12.0, length: 0.7}" --set world_model.transfer.from=runs/cartpole
"""

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit


def make_env(gravity: float = 9.8, length: float = 0.5, force: float = 10.0) -> gym.Env:
    """CartPole-v1 but for these.

    Args:
        gravity: In m/s^2.
        length: Half of the pole's, in m.
        force: Of a push, in N.
    """
    env = CartPoleEnv()
    env.gravity, env.length, env.force_mag = gravity, length, force
    env.polemass_length = env.masspole * length
    return TimeLimit(env, 500)
