"""What dreamers ask of a cluster, by the hundred; a publication is one object, of which a node gets one copy."""

from __future__ import annotations

import time

import numpy as np
import pytest
import ray
from fake_dreamers import FakeDreamer, FakeReplay
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations
from remote import dreamers, env_runners
from tiny import tiny_config

from wm_rllib import WorldModelPPO
from wm_rllib.actors.parameter_server import POLICY_REF, WORLD_MODEL_REF
from wm_rllib.dreamers.orders import DreamOrder
from wm_rllib.dreamers.pool import DreamerPool
from wm_rllib.settings.settings import parse_tree
from wm_rllib.training.placement import ClusterTooSmallError, _near_driver, check_cluster, wait_for_resources

pytestmark = pytest.mark.integration

FRACTIONS = {"num_cpus_per_dreamer": 0.1, "num_cpus_per_env_runner": 0.1, "num_cpus_for_replay": 0.1}


def request_of(**overrides):
    config = tiny_config(**overrides)
    return WorldModelPPO.default_resource_request(config), config


# --- the request -----------------------------------------------------------------------------------------------------


def test_request_has_a_bundle_for_each_dreamer_with_all_it_needs():
    request, _ = request_of(
        num_dreamers=300,
        num_cpus_per_dreamer=0.5,
        num_gpus_per_dreamer=0.25,
        custom_resources_per_dreamer={"dream_node": 1.0},
        num_env_runners=2,
        num_cpus_for_replay=0.25,
        num_cpus_for_main_process=0.5,
    )
    # The main process with the replay, two env runners, then the dreamers; the parameter server asks for nothing. RLlib
    # reserves one CPU for a learner in the main process, if that is more than was asked for.
    assert request.bundles[0]["CPU"] == 1.0 + 0.25
    assert request.bundles[-300:] == [{"CPU": 0.5, "GPU": 0.25, "dream_node": 1.0}] * 300
    assert len(request.bundles) == 1 + 2 + 300


def test_custom_resources_alone_are_a_bundle_too():
    request, _ = request_of(num_dreamers=3, num_cpus_per_dreamer=0.0, custom_resources_per_dreamer={"dream_node": 0.5})
    assert request.bundles[-3:] == [{"dream_node": 0.5}] * 3


@pytest.mark.parametrize(
    ("bundles", "missing"),
    [
        ([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}], None),
        ([{"CPU": 4.0}, {"CPU": 4.0}], "one actor needs 4 CPU, and no node has as much"),
        ([{"CPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}], "one actor needs 1 CPU and 2 GPU, and no node has as much"),
        ([{"CPU": 3.0}], "one actor needs 3 CPU"),
    ],
)
def test_each_actor_needs_a_node_that_is_large_enough(bundles, missing, monkeypatch):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    needed = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    if missing is None:
        wait_for_resources(needed, 0.0, bundles)
        return
    with pytest.raises(ClusterTooSmallError, match=missing):
        wait_for_resources(needed, 0.0, bundles)


@pytest.mark.parametrize("resources", [{"GPU": 1.0}, {"dream_node": 0}, {"": 1.0}, ["dream_node"]])
def test_custom_resources_are_checked(resources):
    with pytest.raises(
        ValueError, match=r"dreamers\.custom_resources_per_dreamer .*must be a mapping of custom resources"
    ):
        tiny_config(custom_resources_per_dreamer=resources).validate()
    with pytest.raises(ValueError, match=r"dreamers\.custom_resources_per_dreamer is .*amounts above 0"):
        parse_tree({"dreamers": {"custom_resources_per_dreamer": resources}})


def test_custom_resources_in_yaml():
    assert parse_tree({"dreamers": {"custom_resources_per_dreamer": {"dream_node": 0.5}}}) == {
        "dreamers.custom_resources_per_dreamer": {"dream_node": 0.5}
    }


# --- the replay, beside the driver ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("offered", "reserved"), [({}, 0.0), ({"CPU": 0.2}, 0.0), ({"CPU": 2.0}, 0.25)])
def test_a_head_without_cpus_gets_the_replay_all_the_same(offered, reserved, monkeypatch):
    here = ray.get_runtime_context().get_node_id()
    nodes = [{"NodeID": "far", "Resources": {"CPU": 64.0}}, {"NodeID": here, "Resources": offered}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    options = _near_driver(0.25)
    assert options["num_cpus"] == reserved
    assert (options["scheduling_strategy"].node_id, options["scheduling_strategy"].soft) == (here, False)


# --- hundreds of dreamers --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("ahead", [False, True], ids=["now", "ahead"])
@pytest.mark.parametrize("num_dreamers", [1, 200])
def test_a_pool_of_two_hundred(num_dreamers, ahead):
    """Exact rows for each learner, every start used once, an object of starts for each 16 dreamers."""
    replay, fakes = FakeReplay(), []

    def make(index):
        fakes.append(FakeDreamer(index))
        return fakes[-1]

    pool = DreamerPool(
        None, None, replay, num_dreamers=num_dreamers, make_actor=make, push_again=lambda: None, timeout_s=30.0
    )
    rows = [6336, 6337]
    order = DreamOrder(rows, 50, 1.0, None, 0.0, 0.0, 15)
    start = time.perf_counter()
    if ahead:
        harvest = pool.gather(pool.order_ahead(order, 7), rows, lambda attempt: 7, lambda part: False)
    else:
        harvest = pool.dream(order, lambda attempt: 7, lambda part: False)
    assert time.perf_counter() - start < 100
    assert harvest.rows == rows
    asked = [request for fake in fakes for request in fake.requests]
    assert len(asked) == num_dreamers and all(len(fake.requests) == 1 for fake in fakes)
    assert [sum(counts) for counts in zip(*(request.rows for request in asked), strict=True)] == rows
    lanes = [request.num_lanes for request in asked]
    assert max(lanes) - min(lanes) <= 1
    # A dream is as long as it was ordered, but for the last one of each learner.
    assert sum(count % 50 != 0 for request in asked for count in request.rows) == 2
    # Each dreamer begins where the one before it ends, within the starts that it shares with 15 others.
    chunks = [asked[i : i + 16] for i in range(0, num_dreamers, 16)]
    for chunk, num_starts in zip(chunks, replay.num_starts, strict=True):
        lanes = [request.num_lanes for request in chunk]
        assert [request.first_start for request in chunk] == np.cumsum([0, *lanes[:-1]]).tolist()
        assert num_starts == sum(lanes)
        assert len({request.starts_ref for request in chunk}) == 1
    assert len({request.starts_ref for request in asked}) == len(chunks)
    assert len({request.seed for request in asked}) == num_dreamers


@pytest.mark.usefixtures("local_ray")
def test_fewer_rows_than_dreamers_leave_some_without_a_share():
    fakes = [FakeDreamer(index) for index in range(200)]
    pool = DreamerPool(
        None,
        None,
        FakeReplay(),
        num_dreamers=200,
        make_actor=fakes.__getitem__,
        push_again=lambda: None,
        timeout_s=30.0,
    )
    harvest = pool.dream(DreamOrder([90], 50, 1.0, None, 0.0, 0.0, 15), lambda _: None, lambda _: False)
    assert harvest.rows == [90] and [fake.requests[0].rows for fake in fakes if fake.requests] == [[50], [40]]


# --- logical nodes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_nodes():
    """A head, and a node for dreamers that has a resource of their own; 200 of them would fit there."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=2, resources={"dream_node": 100})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield node.node_id
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_cluster_that_lacks_the_resource_is_an_error(two_nodes):
    each = {"num_cpus_per_dreamer": 0.0, "custom_resources_per_dreamer": {"dream_node": 0.5}}
    request, config = request_of(num_dreamers=200, **each)
    check_cluster(request, config, patience_s=0.0)
    request, config = request_of(num_dreamers=201, **each)
    with pytest.raises(ClusterTooSmallError, match=r"100\.5 dream_node are needed and 100 exist"):
        check_cluster(request, config, patience_s=0.0)


@pytest.mark.slow
def test_dreamers_run_where_their_resource_is_and_a_publication_is_one_copy_a_node(two_nodes, monkeypatch):
    algorithm = tiny_config(
        num_dreamers=3, num_env_runners=1, custom_resources_per_dreamer={"dream_node": 0.5}, **FRACTIONS
    ).build_algo()
    try:
        for _ in range(3):
            algorithm.train()

        def node(_):
            return ray.get_runtime_context().get_node_id()

        places = [ray.get(actor.__ray_call__.remote(node)) for actor in dreamers(algorithm).values()]
        assert places == [two_nodes] * 3

        # What one publication puts: a single object, whoever pulls it.
        puts, original = [], ray.put
        with monkeypatch.context() as patch:
            patch.setattr(ray, "put", lambda value, **kwargs: puts.append(value) or original(value, **kwargs))
            algorithm._publisher.publish(algorithm.iteration, policy=True, world_model=False)
            assert len(puts) == 1
            algorithm._publisher.publish(algorithm.iteration, policy=True, world_model=True)
            assert len(puts) == 3
        record = algorithm._publisher.record
        refs = [record[WORLD_MODEL_REF], record[POLICY_REF]]
        driver_node = ray.get_runtime_context().get_node_id()
        assert [copies_of(ref) for ref in refs] == [{driver_node}] * 2
        ray.get([actor.__ray_call__.remote(lambda dreamer: dreamer._pull()) for actor in dreamers(algorithm).values()])
        ray.get([actor.__ray_call__.remote(lambda runner: runner.pull()) for actor in env_runners(algorithm).values()])
        # Three dreamers pulled on the second node, and it has one copy.
        assert [copies_of(ref) for ref in refs] == [{driver_node, two_nodes}] * 2
    finally:
        algorithm.stop()


def copies_of(ref: ray.ObjectRef) -> set[str]:
    deadline = time.monotonic() + 2.0
    while True:  # the directory of locations follows a little later
        nodes = set(get_object_locations([ref])[ref]["node_ids"])
        if len(nodes) > 1 or time.monotonic() > deadline:
            return nodes
        time.sleep(0.2)
