"""World models for RLlib: PPO that learns from real and imagined experience at once.

Public names: `WorldModelPPO`, `WorldModelPPOConfig`, `load_policy` for inference outside of training, the dream as an
environment, `DreamEnv` and `DreamVectorEnv`. Importing this package registers "WorldModelPPO" with Ray Tune and
"wm_rllib/Dream-v0" with Gymnasium. Where Ray is not installed there are only `wm_rllib.models` and their
speed on a device (`wm_rllib.benchmark.speed_gpu`).
"""

import os
from importlib.util import find_spec

# oneDNN keeps the code that it generates for each shape of an LSTM's input, 1,024 of them. An env runner whose weights
# change recomputes h over histories of every length, and grew by 25 to 60 MB a minute (docs/performance.md).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# OpenMP's threads spin while they wait for each other: beside other busy processes fits were many times slower for it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if find_spec("ray") is not None:
    from ray.tune.registry import register_trainable

    from wm_rllib.acting.policy import WorldModelPolicy, load_policy
    from wm_rllib.algorithm import WorldModelPPO
    from wm_rllib.config import WorldModelPPOConfig
    from wm_rllib.dreamers.dream_env import DreamEnv, DreamVectorEnv, register_dream
    from wm_rllib.former_modules import keep_former_names

__all__ = [
    "DreamEnv",
    "DreamVectorEnv",
    "WorldModelPPO",
    "WorldModelPPOConfig",
    "WorldModelPolicy",
    "load_policy",
    "register",
]
__version__ = "0.1.0"


def register() -> None:
    """Registers "WorldModelPPO" with Ray Tune; importing the package does it.

    Tune's registry lives with Ray: a process that shuts Ray down and starts it again has to register again.
    """
    register_trainable("WorldModelPPO", WorldModelPPO)


if find_spec("ray") is not None:
    register()
    register_dream()
    keep_former_names()
