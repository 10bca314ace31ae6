"""Where the algorithm's own actors run, and what they ask of the cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wm_rllib.actors.parameter_server import ParameterServer
from wm_rllib.dreamers.dreamer import Dreamer, DreamerSpec
from wm_rllib.replay.service import ReplayService


class ClusterTooSmallError(RuntimeError):
    """The cluster lacks resources that the config asks for."""


def add_own_bundles(request: PlacementGroupFactory, config: Any) -> PlacementGroupFactory:
    """RLlib's bundles, with the replay's CPUs in the main process's bundle and one bundle a dreamer at the end.

    At the end, because RLlib gives its own actors bundles by index. The parameter server asks for no CPU. The first
    bundle is never empty (num_cpus_for_main_process is above 0): Ray would drop it and shift all indices.
    """
    bundles = [dict(bundle) for bundle in request.bundles]
    if config.replay_is_remote:
        bundles[0]["CPU"] = bundles[0].get("CPU", 0) + config.num_cpus_for_replay
    if dreamer_bundle := _dreamer_bundle(config):
        bundles += [dreamer_bundle] * config.num_dreamers_to_place
    return PlacementGroupFactory(bundles=bundles, strategy=request.strategy)


def _dreamer_bundle(config: Any) -> dict[str, float]:
    standard = {"CPU": config.num_cpus_per_dreamer, "GPU": config.num_gpus_per_dreamer}
    bundle = {**standard, **config.custom_resources_per_dreamer}
    return {name: amount for name, amount in bundle.items() if amount}


def check_cluster(request: PlacementGroupFactory, config: Any, patience_s: float | None = None) -> None:
    """Raises unless the cluster has, in total, what the actors ask for; an autoscaler is asked for what is missing.

    Outside of Tune there is no placement group: actors that do not fit would wait for ever, in silence. The main
    process's own bundle is left out, since a driver reserves nothing; of it only the replay counts.

    Args:
        request: The bundles.
        config: The `WorldModelPPOConfig`.
        patience_s: How long the cluster may take to grow, in seconds; None: the config's `cluster_timeout_s`.

    Raises:
        ClusterTooSmallError: Naming what is missing, after that time.
    """
    if ray.util.get_current_placement_group() is not None:
        return
    replay = {"CPU": config.num_cpus_for_replay} if config.replay_is_remote and config.num_cpus_for_replay else {}
    bundles = [bundle for bundle in (replay, *request.bundles[1:]) if bundle]
    await_bundles(bundles, config.cluster_timeout_s if patience_s is None else patience_s)


def await_bundles(bundles: Sequence[Mapping[str, float]], patience_s: float) -> None:
    """Returns as soon as the cluster has these bundles; an autoscaler is asked for them if it has not.

    Args:
        bundles: What each of the actors, or groups of them on one node, needs.
        patience_s: How long the cluster may take to grow, in seconds.

    Raises:
        ClusterTooSmallError: Naming what is missing, after that time.
    """
    needed: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] = needed.get(name, 0.0) + amount
    if not patience_s or not (_missing(needed) or _too_large(bundles)):
        wait_for_resources(needed, 0.0, bundles)
        return
    # Nothing waits for these nodes yet that an autoscaler could see. Later the actors are what it sees.
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        wait_for_resources(needed, patience_s, bundles)
    finally:
        request_resources(bundles=[])


def check_own_gpu(config: Any) -> None:
    """Raises if the learner is in this process and is to have a GPU, and there is none: Ray reserves nothing for it.

    Raises:
        ValueError: Naming what asks for it.
    """
    wanted = config.num_gpus_per_learner or config.device == "cuda"
    if config.num_learners or not wanted or torch.cuda.is_available():
        return
    raise ValueError(
        f"device = {config.device!r} with num_gpus_per_learner = {config.num_gpus_per_learner:g} asks for a GPU, and "
        "the learner is in this process (num_learners 0), which sees no GPU. Fix: device auto (--device auto) and "
        "num_gpus_per_learner 0, or num_learners 1 where another machine of the cluster has one."
    )


def wait_for_resources(
    needed: dict[str, float], patience_s: float, bundles: Sequence[Mapping[str, float]] = ()
) -> None:
    """Returns as soon as the cluster has `needed` in total, and a node that is large enough for each of `bundles`.

    Raises:
        ClusterTooSmallError: It has not after `patience_s`; names what is missing.
    """
    deadline = time.monotonic() + patience_s
    while missing := _missing(needed) or _too_large(bundles):
        if time.monotonic() >= deadline:
            raise ClusterTooSmallError(
                f"the cluster cannot meet the request: {', '.join(missing)}. Use fewer env runners, dreamers or "
                f"learners, ask for {_less_of(missing)}, or add nodes. Nodes that need longer to start: raise "
                "cluster.timeout_s."
            )
        time.sleep(1.0)


def _missing(needed: dict[str, float]) -> list[str]:
    has = ray.cluster_resources()
    return [
        f"{amount:g} {name} are needed and {has.get(name, 0.0):g} exist"
        for name, amount in needed.items()
        if amount > has.get(name, 0.0) + 1e-9
    ]


def _less_of(missing: Sequence[str]) -> str:
    """The settings that ask for what is missing."""
    gpus = "no GPU on a machine without one (ppo.num_gpus_per_learner, dreamers.num_gpus_per_dreamer)"
    cpus = "fractions (env_runners.num_cpus_per_env_runner, dreamers.num_cpus_per_dreamer, ppo.num_cpus_per_learner)"
    lacks_gpus = any(" GPU" in line for line in missing)
    lacks_others = any(" GPU" not in line for line in missing)
    return " and ".join([gpus] * lacks_gpus + [cpus] * lacks_others)


def _too_large(bundles: Sequence[Mapping[str, float]]) -> list[str]:
    """What is asked for one actor and no node has: it would wait for ever, in silence."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        if not any(all(node.get(name, 0.0) >= amount - 1e-9 for name, amount in bundle.items()) for node in nodes):
            wanted = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
            return [f"one actor needs {wanted}, and no node has as much"]
    return []


def make_server(*, remote: bool) -> Any:
    """The parameter server: an actor that comes back by itself, empty, or an object in a single process."""
    if not remote:
        return ParameterServer()
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=16)(ParameterServer)
    return actor.options(**(_in_bundle(0) or _near_driver())).remote()


def make_replay(config: Any, seed: int | None) -> Any:
    """The replay: an actor on the driver's node, so that it can write checkpoints itself, or an object."""
    most = config.replay_max_gigabytes
    storage = config.replay_storage, config.replay_directory, None if most is None else most * 1e9
    arguments = (config.replay_capacity, seed, config.wm_log_level, *storage)
    if not config.replay_is_remote:
        return ReplayService(*arguments)
    options: dict[str, Any] = _in_bundle(0)
    if options:
        options["num_cpus"] = 0  # Tune's trial actor holds all of bundle 0, the replay's CPUs included
    else:
        options = _near_driver(config.num_cpus_for_replay)
    actor = ray.remote(num_cpus=config.num_cpus_for_replay)(ReplayService)
    return actor.options(**options).remote(*arguments)


def make_dreamer(
    dreamer_class: type[Dreamer],
    index: int,
    *,
    config: Any,
    spec: DreamerSpec,
    server: Any,
    request: PlacementGroupFactory,
) -> Any:
    """Dreamer number `index`, in the bundle reserved for it where learners cannot have taken that."""
    # RLlib binds remote learners to no bundle of their own, and they may have taken a dreamer's. Dreamers come last:
    # theirs is what is left, wherever that is, and one that insisted on its own bundle would wait for ever.
    own_bundle = bool(_dreamer_bundle(config)) and not config.num_learners
    options = _in_bundle(len(request.bundles) - config.num_dreamers_to_place + index) if own_bundle else {}
    actor = ray.remote(
        num_cpus=config.num_cpus_per_dreamer,
        num_gpus=config.num_gpus_per_dreamer,
        resources=config.custom_resources_per_dreamer,
        max_restarts=-1,
    )(dreamer_class)
    return actor.options(**options).remote(spec, server)


def _in_bundle(index: int) -> dict[str, int]:
    inside = ray.util.get_current_placement_group() is not None
    return {"placement_group_bundle_index": index} if inside else {}


def _near_driver(num_cpus: float = 0.0) -> dict[str, Any]:
    """On the driver's node: the nodes of env runners and dreamers may be taken away at any time.

    A head that offers no CPUs gets it all the same, as it got the driver; elsewhere it could not write to the driver's
    folders.
    """
    node = ray.get_runtime_context().get_node_id()
    here = next(info["Resources"] for info in ray.nodes() if info["NodeID"] == node)
    offered = num_cpus if here.get("CPU", 0.0) >= num_cpus else 0.0
    return {"num_cpus": offered, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
