"""The versioned parameter server: one atomic record of references to the newest policy and world model."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.env.env_runner_state_server import EnvRunnerStateServer
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from wm_rllib.actors.calling import call
from wm_rllib.actors.restarts import PROCESS

logger = logging.getLogger(__name__)

WORLD_MODEL_REF = "world_model_ref"
WORLD_MODEL_VERSION = "world_model_version"
POLICY_REF = "policy_ref"
POLICY_VERSION = "policy_version"


class ParameterServer(EnvRunnerStateServer):
    """Holds the newest record: {sequence number, world-model reference and version, policy reference and version}.

    RLlib's `EnvRunnerStateServer` with two changes: a push never takes the sequence number back (contract 5), and it
    says in which process it was made, so that the driver learns of a restart, which leaves the server empty.
    References only: the weights themselves stay in the object store, one copy a node.
    """

    def push(self, state: dict[str, Any]) -> str:
        """Stores a record and returns the name of this process.

        Raises:
            ValueError: The record carries no sequence number.
        """
        if state.get(WEIGHTS_SEQ_NO, math.inf) > self.get_version():
            super().push(state)
        return PROCESS


def make_record(sequence: int, world_model: tuple[Any, int], policy: tuple[Any, int]) -> dict[str, Any]:
    """The record the server holds; `world_model` and `policy` are (reference, version)."""
    return {
        WEIGHTS_SEQ_NO: sequence,
        WORLD_MODEL_REF: world_model[0],
        WORLD_MODEL_VERSION: world_model[1],
        POLICY_REF: policy[0],
        POLICY_VERSION: policy[1],
    }


@dataclass(frozen=True)
class WeightUpdate:
    """What is new since the last pull: state dicts of numpy arrays, or None where the version did not change."""

    world_model: dict[str, Any] | None
    policy: dict[str, Any] | None


class ParameterClient:
    """The puller's side: an env runner or a dreamer holds one and asks before each piece of work.

    Attributes:
        sequence: Number of the record last taken, -1 before the first.
        world_model_version: Version of the world model last pulled, -1 before the first.
        policy_version: The same for the policy.
    """

    def __init__(self, server: Any):
        self._server = server
        self.sequence = -1
        self.world_model_version = -1
        self.policy_version = -1
        self._refs: tuple[Any, Any] = (None, None)

    def connect(self, server: Any) -> None:
        """Sets the server of a client that was made without one."""
        if self._server is None:
            self._server = server

    def forget_policy(self) -> None:
        """Others have set C's weights: the next pull takes those of the newest record, whether or not it is new."""
        self.sequence, self._refs = -1, (self._refs[0], None)

    def pull(self) -> WeightUpdate | None:
        """Fetches what is newer than the last pull; None when nothing is, or when the server cannot be reached.

        A restarted, empty server means: keep your weights (contract 5). The driver pushes again.
        """
        if self._server is None:
            return None
        try:
            record = call(self._server, "pull_if_newer", self.sequence, timeout_s=30.0)
            return None if record is None else self.take(record)
        except ray.exceptions.RayError as error:
            logger.warning("keeping the current weights: the parameter server cannot be reached (%s)", error)
            return None

    def take(self, record: dict[str, Any]) -> WeightUpdate:
        """Fetches what a record holds that is not held already, and adopts its versions.

        References are compared, not versions: a checkpoint restored in place may carry the versions that are held here.

        Raises:
            ray.exceptions.RayError: The weights are gone with the process that put them.
        """
        world_model_ref, policy_ref = self._refs
        update = WeightUpdate(
            ray.get(record[WORLD_MODEL_REF]) if record[WORLD_MODEL_REF] != world_model_ref else None,
            ray.get(record[POLICY_REF]) if record[POLICY_REF] != policy_ref else None,
        )
        self._refs = record[WORLD_MODEL_REF], record[POLICY_REF]
        self.sequence = record[WEIGHTS_SEQ_NO]
        self.world_model_version = record[WORLD_MODEL_VERSION]
        self.policy_version = record[POLICY_VERSION]
        logger.debug("took world model %d, policy %d", self.world_model_version, self.policy_version)
        return update
