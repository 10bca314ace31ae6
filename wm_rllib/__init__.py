"""World models for RLlib: PPO that learns from real and imagined experience at once.

Public names: `WorldModelPPO`, `WorldModelPPOConfig`, and `load_policy` for inference outside of training. Importing
this package registers "WorldModelPPO" with Ray Tune.
"""

from ray.tune.registry import register_trainable

from wm_rllib.algorithm import WorldModelPPO
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.policy import WorldModelPolicy, load_policy

__all__ = ["WorldModelPPO", "WorldModelPPOConfig", "WorldModelPolicy", "load_policy"]
__version__ = "0.1.0"

register_trainable("WorldModelPPO", WorldModelPPO)
