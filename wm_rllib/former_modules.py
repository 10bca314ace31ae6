"""Where checkpoints of before the packages looked for their classes: they name modules that have moved since."""

import sys
from importlib import import_module

FORMER_MODULES = {
    "wm_rllib.connectors": "wm_rllib.acting.connectors",
    "wm_rllib.collection": "wm_rllib.env_runners.collection",
    "wm_rllib.dreamer_pool": "wm_rllib.dreamers.pool",
    "wm_rllib.env_runner": "wm_rllib.env_runners.env_runner",
    "wm_rllib.evaluation_runners": "wm_rllib.env_runners.evaluation_runners",
    "wm_rllib.fresh": "wm_rllib.replay.fresh",
    "wm_rllib.half_played": "wm_rllib.env_runners.half_played",
    "wm_rllib.learner": "wm_rllib.learners.learner",
    "wm_rllib.learner_calls": "wm_rllib.learners.calls",
    "wm_rllib.pipelines": "wm_rllib.acting.pipelines",
    "wm_rllib.pixels": "wm_rllib.environments.pixels",
    "wm_rllib.policy_module": "wm_rllib.rl_modules.policy_module",
    "wm_rllib.replayable_env": "wm_rllib.environments.replayable",
    "wm_rllib.world_model_module": "wm_rllib.rl_modules.world_model_module",
}
"""Of all classes that are in the pickles of a checkpoint, and of the errors in those of Ray Tune's trials."""


def keep_former_names() -> None:
    """Has pickles find the classes of modules that have moved. New code imports nothing by these names."""
    for former, module in FORMER_MODULES.items():
        sys.modules.setdefault(former, import_module(module))
