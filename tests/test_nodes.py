"""A job on three nodes, one of which is killed and another cut off for a minute while it trains."""

from __future__ import annotations

import json
import time

import pytest
from node_cluster import NodeCluster, may_make_namespaces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not may_make_namespaces(), reason="network namespaces need root and iproute2"),
]

SETTINGS = {
    "env_runners.num_env_runners": 3,
    "env_runners.num_cpus_per_env_runner": 1,
    "env_runners.num_envs_per_env_runner": 2,
    "dreamers.num_dreamers": 3,
    "dreamers.num_cpus_per_dreamer": 1,
    # The driver's node is the one that may not be lost; a learner of its own might be anywhere.
    "ppo.num_learners": 0,
    # The first evaluation, which may end the run, comes after all that is to happen.
    "evaluation.interval": 1500,
    "env_runners.sample_timeout_s": 20,
    "dreamers.dreamer_timeout_s": 20,
    "stop.total_timesteps": 8000,
}
CUT_OFF_S = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    one = NodeCluster(tmp_path_factory.mktemp("nodes"))
    yield one
    one.remove()


def rows_of(run_dir):
    progress = run_dir / "progress.jsonl"
    return [json.loads(line) for line in progress.read_text().splitlines()] if progress.exists() else []


def mixed_rows(run_dir):
    return [row for row in rows_of(run_dir) if row["phase"] == "mixed"]


def test_a_node_is_killed_and_another_cut_off(cluster, tmp_path):
    run_dir, head = tmp_path / "run", cluster.head
    command = ["python", "-m", "wm_rllib", "train", "--config", "tune_configs/cartpole.yaml", "--run-dir", str(run_dir)]
    for path, value in SETTINGS.items():
        command += ["--set", f"{path}={json.dumps(value)}"]
    job = head.submit(*command)
    killed, cut_off = cluster.workers

    head.wait_until(lambda: mixed_rows(run_dir), 240, "the first mixed iteration")
    killed.kill()
    events = [("killed", len(rows_of(run_dir)))]
    head.wait_until(lambda: rows_of(run_dir)[-1]["faults/nodes_lost"] == 1, 240, "the killed node to be counted")
    head.wait_until(lambda: len(mixed_rows(run_dir)) >= 4, 240, "another iteration")
    cut_off.cut_off()
    events.append(("cut off", len(rows_of(run_dir))))
    time.sleep(CUT_OFF_S)
    cut_off.connect()
    events.append(("connected", len(rows_of(run_dir))))
    assert head.info(job)["status"] == "RUNNING", "the job had ended before the node was back"

    info = head.wait(job, 900)
    assert info["status"] == "SUCCEEDED", info["logs"]
    rows = rows_of(run_dir)
    warnings = [line for line in info["logs"].splitlines() if "WARNING wm_rllib" in line]
    print("\n", events, *(summary(row) for row in rows), *warnings, sep="\n")
    assert [row["training_iteration"] for row in rows] == list(range(1, len(rows) + 1))
    for row in mixed_rows(run_dir):
        assert row["rows/imagined"] == 99 * row["rows/real"]
        assert row["rows/real"] or row["imagination/updates_skipped"]
    last = rows[-1]
    assert last["evaluation/episode_return_mean"] >= 475 and last["evaluation/confirmation_return_mean"] >= 475
    assert last["faults/nodes_lost"] >= 1
    assert last["restarts/env_runners"] + last["restarts/dreamers"] >= 2


def summary(row):
    names = ("training_iteration", "num_env_steps_sampled_lifetime", "rows/real", "rows/imagined", "seconds/iteration")
    faults = [name for name in row if name.startswith(("faults/", "restarts/"))]
    return {name.rpartition("/")[2]: row[name] for name in (*names, *faults, "evaluation/episode_return_mean")}
