"""The driver's side of the parameter server: one atomic record for each publication."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

from wm_rllib.actors.calling import call
from wm_rllib.actors.parameter_server import make_record
from wm_rllib.learners.calls import put_on_first
from wm_rllib.training.state import TrainingState

logger = logging.getLogger(__name__)

PUSH_TIMEOUT_S = 20.0


class Publisher:
    """Publishes what learner 0 holds, under the versions of the training state.

    Args:
        server: The parameter server, an actor handle or object.
        learners: The learner group.
        state: Whose sequence number is advanced.
    """

    def __init__(self, server: Any, learners: LearnerGroup, state: TrainingState):
        self._server, self._learners, self._state = server, learners, state
        self._policy_ref: ray.ObjectRef | None = None
        self._world_model_ref: ray.ObjectRef | None = None
        self._server_process: str | None = None
        self.record: dict[str, Any] = {}
        """The newest record, as pushed."""

    def publish(self, iteration: int, *, policy: bool, world_model: bool) -> None:
        """Puts the named weights into the object store and pushes a record of both references.

        A push that is lost with the server is repeated by the next publication: pullers keep their weights meanwhile.
        """
        if policy or self._policy_ref is None:
            self._policy_ref = put_on_first(self._learners, "put_policy")
        if world_model or self._world_model_ref is None:
            self._world_model_ref = put_on_first(self._learners, "put_world_model")
        self._state.sequence += 1
        self._state.note_publication(iteration)
        self.record = make_record(
            self._state.sequence,
            (self._world_model_ref, self._state.world_model_version),
            (self._policy_ref, self._state.policy_version),
        )
        self.push()

    def push(self) -> None:
        """Pushes the newest record, whether or not the server has it already."""
        try:
            process = call(self._server, "push", self.record, timeout_s=PUSH_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            logger.warning("the parameter server did not take record %d: %s", self._state.sequence, error)
            return
        # Ray repeats a push that was lost with the server: what the new one holds does not tell that it is new.
        if self._server_process not in (None, process):
            self._state.server_restarts += 1
            logger.warning("the parameter server was restarted; record %d was pushed to it", self._state.sequence)
        self._server_process = process
        logger.debug("pushed record %d", self._state.sequence)
