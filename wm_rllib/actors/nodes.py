"""The nodes of the cluster, as the driver sees them come and go."""

from __future__ import annotations

import logging

import ray

logger = logging.getLogger(__name__)


class NodeWatch:
    """Counts nodes, and those that left: killed, cut off for longer than Ray's health check waits, or scaled away.

    Attributes:
        num_lost: Nodes that have left so far.
    """

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self.num_lost = 0
        self.look()

    @property
    def num_alive(self) -> int:
        """Nodes that were there at the last look."""
        return len(self._addresses)

    def look(self) -> None:
        """Asks Ray which nodes are alive."""
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        for gone in self._addresses.keys() - alive.keys():
            self.num_lost += 1
            logger.warning("the node at %s is lost; %d are left", self._addresses[gone], len(alive))
        for new in alive.keys() - self._addresses.keys() if self._addresses else ():
            logger.warning("a node has joined at %s; there are %d", alive[new], len(alive))
        self._addresses = alive
