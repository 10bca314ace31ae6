"""RLlib's connector pipelines of an env runner, shortened to what a policy without state needs.

RLlib's default pieces turn rows into dicts of lists by episode and back, twice a step: a module with state and
multi-agent episodes need that. Features come as one batch, a policy without state returns one, and with 8 small envs
that traffic (and RLlib's timer around every piece) is a quarter of an env step.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.connectors.module_to_env import (
    GetActions,
    ListifyDataForVectorEnv,
    NormalizeAndClipActions,
    RemoveSingleTsTimeRankFromBatch,
    TensorToNumpy,
    UnBatchToIndividualItems,
)
from ray.rllib.core.columns import Columns
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import clip_action, get_base_struct_from_space, unsquash_action

from wm_rllib.acting.connectors import FeatureConnector

ENV_TO_MODULE = (
    FeatureConnector,
    AddObservationsFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    BatchIndividualItems,
    NumpyToTensor,
)
MODULE_TO_ENV = (
    GetActions,
    TensorToNumpy,
    UnBatchToIndividualItems,
    RemoveSingleTsTimeRankFromBatch,
    NormalizeAndClipActions,
    ListifyDataForVectorEnv,
)
"""RLlib's own pieces, in order: a pipeline that holds anything else is left alone."""


def actions_for_env(actions: np.ndarray, space: gym.Space[Any], *, normalize: bool, clip: bool) -> np.ndarray:
    """Policy-space actions [B, ...] as `env.step` takes them: RLlib's `NormalizeAndClipActions` on all rows at once."""
    struct = get_base_struct_from_space(space)
    if normalize:
        return np.asarray(unsquash_action(actions, struct))
    return np.asarray(clip_action(actions, struct)) if clip else actions


class VectorActions(GetActions):
    """RLlib's `GetActions`, and what its other default pieces make of the actions: arrays with a row an env."""

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        normalize_actions: bool,
        clip_actions: bool,
    ):
        self._normalize, self._clip = normalize_actions, clip_actions
        self.num_greedy = 0
        """So many of the environments, the first ones, act greedily while the others explore."""
        super().__init__(input_observation_space, input_action_space)

    def _get_actions(self, batch: dict[str, Any], rl_module: Any, explore: bool | None) -> None:
        super()._get_actions(batch, rl_module, explore)
        if not (explore and self.num_greedy):
            return
        inputs = batch[Columns.ACTION_DIST_INPUTS]
        greedy = rl_module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic().sample()
        batch[Columns.ACTIONS][: self.num_greedy] = greedy[: self.num_greedy]
        distribution = rl_module.get_exploration_action_dist_cls().from_logits(inputs)
        batch[Columns.ACTION_LOGP] = distribution.logp(batch[Columns.ACTIONS])

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Actions, and the module's other outputs, as numpy arrays [B, ...]."""
        batch = convert_to_numpy(super().__call__(batch=batch, **kwargs))
        # The env gets a copy: what it does to its actions must not reach those stored in episodes.
        actions = np.array(batch[Columns.ACTIONS])
        batch[Columns.ACTIONS_FOR_ENV] = actions_for_env(
            actions, self.input_action_space, normalize=self._normalize, clip=self._clip
        )
        return batch


def shorten(env_to_module: ConnectorPipelineV2, module_to_env: ConnectorPipelineV2) -> None:
    """Replaces the default pieces of both pipelines, in place, by `FeatureConnector` and `VectorActions` alone.

    To be called for a single-agent module without state on the CPU. Pieces of the user's own stay as they are, and so
    do the default ones then.
    """
    if tuple(map(type, env_to_module.connectors)) == ENV_TO_MODULE:
        features = env_to_module.connectors[0]
        features.fills_batch = True
        env_to_module.connectors[:] = [features]
    if tuple(map(type, module_to_env.connectors)) == MODULE_TO_ENV:
        bounds = module_to_env.connectors[MODULE_TO_ENV.index(NormalizeAndClipActions)]
        module_to_env.connectors[:] = [
            VectorActions(
                module_to_env.input_observation_space,
                module_to_env.input_action_space,
                normalize_actions=bounds.normalize_actions,
                clip_actions=bounds.clip_actions,
            )
        ]
