"""Messages and bytes of dream rounds on 1, 2, 4, ... logical nodes, with stages that wait.

    python -m wm_rllib benchmark speed scaling --json benchmarks/results/speed/scaling.json

What is real: the dreamers' pool, the parameter server and its clients, Ray's object store and scheduler. What is not:
the nodes share a machine (`ray.cluster_utils.Cluster`), a dreamer sleeps instead of dreaming, and a learner reads its
rows and does nothing with them. Sizes are those of the default config on CartPole-v1 (docs/performance.md).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations
from ray.rllib.utils.actor_manager import FaultAwareApply
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wm_rllib.actors.parameter_server import ParameterClient, ParameterServer, make_record
from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json
from wm_rllib.dreamers.dreamer import Dreamed, DreamRequest
from wm_rllib.dreamers.orders import DreamOrder
from wm_rllib.dreamers.pool import DreamerPool

NODES = (1, 2, 4, 8)
DREAMERS_PER_NODE = 2
ROWS_PER_DREAMER = 6400
HORIZON = 50
BYTES_PER_ROW = 316
WEIGHTS = {"world_model": 240_000, "policy": 37_000}
"""Bytes of a publication."""
STARTS_BYTES = 470
"""Of a lane's start: its burn-in of 15 real steps."""
DREAM_S = 0.5


class WaitingDreamer(FaultAwareApply):
    """Pulls real objects, sleeps, and delivers as many bytes as a dream of its size."""

    def __init__(self, server: Any):
        self._client = ParameterClient(server)

    def dream(self, request: DreamRequest) -> Dreamed:
        """As `Dreamer.dream`."""
        start = time.perf_counter()
        self._client.pull()
        ray.get(request.starts_ref)
        time.sleep(DREAM_S)
        refs = [ray.put(np.zeros(count * BYTES_PER_ROW, np.uint8)) for count in request.rows]
        lanes, record = request.num_lanes, self._client
        versions = record.sequence, record.world_model_version, record.policy_version
        return Dreamed(refs, request.rows, lanes, 0, *versions, time.perf_counter() - start)


class ReadingLearner:
    """Puts weights, and reads what it is given."""

    def put(self, size: int) -> list[ray.ObjectRef]:
        """A reference, in a list so that Ray hands it over as it is."""
        return [ray.put(np.zeros(size, np.uint8))]

    def read(self, refs: list[ray.ObjectRef]) -> tuple[int, float]:
        """Bytes of all objects, and the seconds until they were here."""
        start = time.perf_counter()
        return sum(array.nbytes for array in ray.get(refs)), time.perf_counter() - start


class StartsOnly:
    """The part of the replay that dreams need, in this process."""

    def starts(self, num_starts: int, burn_in: int) -> ray.ObjectRef:
        """As `ReplayService.starts`."""
        return ray.put(np.zeros(num_starts * STARTS_BYTES, np.uint8))


def measure(num_nodes: int, rounds: int) -> list[dict[str, float]]:
    """Raw numbers of each dream round on a cluster of `num_nodes` beside the head."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2, wait=False).node_id for _ in range(num_nodes)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        return _measure(nodes, rounds)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _measure(nodes: list[str], rounds: int) -> list[dict[str, float]]:
    head = ray.get_runtime_context().get_node_id()
    server = ray.remote(max_concurrency=16, **on_node(head))(ParameterServer).remote()
    learner: Any = ray.remote(**on_node(head))(ReadingLearner).remote()

    def make_dreamer(index: int) -> Any:
        return ray.remote(**on_node(nodes[index % len(nodes)]))(WaitingDreamer).remote(server)

    num_dreamers = DREAMERS_PER_NODE * len(nodes)
    pool = DreamerPool(
        None,  # type: ignore[arg-type]  # a dreamer in this process would be built from it, and there is none
        server,
        StartsOnly(),
        num_dreamers=num_dreamers,
        make_actor=make_dreamer,
        push_again=lambda: None,
        timeout_s=120.0,
    )
    order = DreamOrder([ROWS_PER_DREAMER * num_dreamers], HORIZON, 1.0, None, 0.0, 0.0, 15)
    measured = []
    for number in range(rounds + 1):
        weights = [ray.get(learner.put.remote(size))[0] for size in WEIGHTS.values()]
        ray.get(server.push.remote(make_record(number + 1, (weights[0], number), (weights[1], number))))
        start = time.perf_counter()
        harvest = pool.dream(order, lambda _: None, lambda _: False)
        seconds = time.perf_counter() - start
        size, read_s = ray.get(learner.read.remote(harvest.shard_refs[0]))
        measured.append(
            {
                "dreamers": num_dreamers,
                "round_s": seconds,
                "beside_dreaming_s": seconds - DREAM_S,
                "slowest_dreamer_s": harvest.slowest_s,
                "objects_put_per_publication": len(weights),
                "copies_of_a_publication": copies(weights, len(nodes) + 1),
                "bytes_to_learner": size,
                "learner_read_s": read_s,
                "dream_objects": len(harvest.shard_refs[0]),
            }
        )
    pool.stop()
    return measured[1:]  # in the first round processes start


def on_node(node_id: str) -> dict[str, Any]:
    """Options of an actor that runs there, and asks for nothing."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def copies(refs: list[ray.ObjectRef], expected: int, patience_s: float = 3.0) -> int:
    """Nodes that hold the object with the most copies; Ray's directory of locations follows some time later."""
    deadline = time.monotonic() + patience_s
    while True:
        found = max(len(set(place["node_ids"])) for place in get_object_locations(refs).values())
        if found >= expected or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def driver_costs(calls: int = 2000, actors: int = 4) -> dict[str, float]:
    """Seconds of this process for an order to a dreamer and its answer, and of the server for a pull, one by one."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        server: Any = ray.remote(num_cpus=0, max_concurrency=16)(ParameterServer).remote()
        record = ray.put(b"weights")
        ray.get(server.push.remote(make_record(1, (record, 1), (record, 1))))
        request = DreamRequest([100], HORIZON, 1.0, None, 0.0, 0.0, ray.put(b"starts"), 0, None)
        answering = [ray.remote(num_cpus=0)(_Answering).remote() for _ in range(actors)]
        ray.get([actor.dream.remote(request) for actor in answering])
        start = time.perf_counter()
        ray.get([answering[i % actors].dream.remote(request) for i in range(calls)])
        order_s = (time.perf_counter() - start) / calls
        start = time.perf_counter()
        ray.get([server.pull_if_newer.remote(0) for _ in range(calls)])
        return {"order_and_answer_s": order_s, "pull_s": (time.perf_counter() - start) / calls}
    finally:
        ray.shutdown()


class _Answering:
    def dream(self, request: DreamRequest) -> Dreamed:
        return Dreamed([ray.put(b"rows")], request.rows, 2, 0, 0, 0, 0, 0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="scaling", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured dream rounds of each cluster")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES), help="sizes of the cluster")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args(argv)
    command = f"python -m wm_rllib benchmark speed scaling --turns {args.rounds}"
    result: dict[str, Any] = {"provenance": provenance(command, 1), "driver": driver_costs(), "raw": {}}
    print(", ".join(f"{name} {value * 1e6:.0f} us" for name, value in result["driver"].items()))
    for num_nodes in args.nodes:
        rounds = measure(num_nodes, args.rounds)
        result["raw"][num_nodes] = rounds
        medians = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
        print(f"{num_nodes} nodes: " + ", ".join(f"{name} {value:.4g}" for name, value in medians.items()), flush=True)
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
