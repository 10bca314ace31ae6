"""`ray job submit` for real: the cluster files' entry point on a head with token authentication, killed and resumed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.request

import cluster_rules as rules
import pytest
from ray_head import ROOT, RayHead
from test_cli import SETTINGS

from wm_rllib.runs.checkpoints import read_meta
from wm_rllib.settings.settings import parse_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 700
REDUCED = {
    **parse_tree({name: value for name, value in SETTINGS.items() if name not in ("env", "stop")}),
    "env_runners.num_env_runners": 1,
    "env_runners.num_cpus_per_env_runner": 0.5,
    "dreamers.num_dreamers": 1,
    "dreamers.num_cpus_per_dreamer": 0.5,
    "ppo.num_gpus_per_learner": 0,
    "ppo.num_cpus_per_learner": 0.5,
    "stop.return": 1000,
}
"""Settings that fit the cluster's entry point onto two CPUs without a GPU."""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    one = RayHead(tmp_path_factory.mktemp("head"))
    try:
        yield one
    finally:
        one.stop()


def entrypoint(run_dir, *more):
    """rayjob.yaml's own command, with the image's folder and the shared volume as they are here, and less to do."""
    document = rules.documents((rules.CLUSTER / "rayjob.yaml").read_text())[0]
    words = shlex.split(document["spec"]["entrypoint"])
    words = [word.replace("/opt/wm_rllib/", "").replace("/mnt/runs/acrobot", str(run_dir)) for word in words]
    for path, value in REDUCED.items():
        words += ["--set", f"{path}={json.dumps(value)}"]
    return [*words, *more]


def iterations(run_dir):
    progress = run_dir / "progress.jsonl"
    lines = progress.read_text().splitlines() if progress.exists() else []
    return [json.loads(line)["training_iteration"] for line in lines]


def assert_contiguous(run_dir):
    rows = iterations(run_dir)
    assert rows == list(range(1, len(rows) + 1))


def test_start_kill_terminate_stop_resume_finish(head, tmp_path):
    """One command, submitted again and again: kill -9, SIGTERM from the preStop hook, `ray job stop`, the end."""
    run_dir = tmp_path / "shared" / "run"
    command = entrypoint(run_dir, "--total-timesteps", str(STEPS), "--set", "world_model.training.num_dream_rounds=8")

    job = head.submit(*command)
    head.wait_until(lambda: len(iterations(run_dir)) >= 5, 120, "five iterations")
    driver = head.driver(job)
    assert "wm_rllib" in driver.cmdline()
    driver.kill()  # -9
    info = head.wait(job)
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 137)
    lost = len(iterations(run_dir))
    resumed_from = read_meta(run_dir / "checkpoints" / "last").training_iteration
    assert 3 <= resumed_from <= lost

    job = head.submit(*command)
    head.wait_until(lambda: (run := iterations(run_dir)) and run[-1] > lost + 1, 120, "two more iterations")
    asked = time.monotonic()
    subprocess.run([sys.executable, ROOT / "cluster" / "pre_stop.py", head.address], env=head.env, check=True)
    info = head.wait(job)
    assert time.monotonic() - asked < 60
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 143), info["logs"]
    assert f"resumed at iteration {resumed_from}," in info["logs"]
    assert "after the signal" in info["logs"] and "Traceback" not in info["logs"]
    terminated = iterations(run_dir)[-1]
    assert_contiguous(run_dir)
    assert read_meta(run_dir / "checkpoints" / "last").training_iteration == terminated

    job = head.submit(*command)
    head.wait_until(lambda: iterations(run_dir)[-1] > terminated, 120, "one more iteration")
    head.job("stop", job)
    info = head.wait(job)
    assert info["status"] == "STOPPED"
    assert f"resumed at iteration {terminated}," in info["logs"] and "after the signal" in info["logs"]
    stopped = iterations(run_dir)[-1]
    assert read_meta(run_dir / "checkpoints" / "last").training_iteration == stopped > terminated

    info = head.wait(head.submit(*command))
    assert info["status"] == "SUCCEEDED", info["logs"]
    assert_contiguous(run_dir)
    assert read_meta(run_dir / "checkpoints" / "last").finished
    info = head.wait(head.submit(*command))
    assert info["status"] == "SUCCEEDED" and "has ended already" in info["logs"]


def test_run_folder_by_uri_and_an_environment_of_ones_own(head, tmp_path):
    """What the working directory brings is what workers import; the run folder is reached by URI."""
    uri = f"file://{tmp_path}/run"
    # A greedy agent may walk to and fro for ever: no evaluation.
    more = ("--env", "tests.custom_envs:Walk", "--set", "evaluation.interval=100000", "--total-timesteps")
    job = head.submit(*entrypoint(uri, *more, "150"))
    info = head.wait(job)
    assert info["status"] == "SUCCEEDED", info["logs"]
    assert f"checkpoint: {uri}/checkpoints/" in info["logs"]
    assert_contiguous(tmp_path / "run")
    info = head.wait(head.submit(*entrypoint(uri, *more, "220")))
    assert info["status"] == "SUCCEEDED" and "resumed at iteration" in info["logs"]
    assert_contiguous(tmp_path / "run")


def test_a_script_of_ones_own_goes_on(head, tmp_path):
    def own_job(steps):
        command = ("python", "own_job.py", str(tmp_path / "mine"), str(steps))
        info = head.wait(head.submit(*command, working_dir="examples", runtime_env=None))
        assert info["status"] == "SUCCEEDED", info["logs"]
        return info["logs"]

    logs = own_job(300)
    assert "starts at iteration 0" in logs
    done = re.search(r"done at iteration (\d+), (\d+) real steps", logs)
    assert done is not None and 300 <= int(done[2]) < 400
    again = own_job(300)  # it has ended
    assert f"starts at iteration {done[1]}, {done[2]} real steps" in again and done[0] in again
    assert f"starts at iteration {done[1]}" in own_job(400)


def test_workers_import_what_the_job_brings(head):
    code = (
        "import ray, wm_rllib; ray.init()\n"
        "where = ray.remote(lambda: __import__('wm_rllib').__file__)\n"
        "print(wm_rllib.__file__, ray.get(where.remote()), sep='\\n')"
    )
    info = head.wait(head.submit("python", "-c", code))
    found = [line for line in info["logs"].splitlines() if line.endswith("wm_rllib/__init__.py")]
    assert len(found) == 2 and all("working_dir_files" in line for line in found), info["logs"]
    [copy] = {line.removesuffix("wm_rllib/__init__.py") for line in found}
    info = head.wait(
        head.submit("python", "-c", "import os; print(*sorted(os.listdir('.') + os.listdir('benchmarks')))")
    )
    for absent in ("runs", "results", "docs", ".git", ".venv"):
        assert absent not in info["logs"].split(), (copy, info["logs"])


def test_metrics_reach_prometheus(head, tmp_path):
    job = head.submit(*entrypoint(tmp_path / "charted", "--total-timesteps", "100000"))

    def exported():
        with urllib.request.urlopen(head.metrics_url) as answer:
            lines = answer.read().decode().splitlines()
        ours = [line for line in lines if line.startswith("ray_wm_rllib_") and 'run="charted"' in line]
        return {line.partition("{")[0] for line in ours} | {line for line in ours if 'stage="fit"' in line}

    # What the first evaluations and lost processes bring comes later.
    wanted = {"ray_wm_rllib_imagination_ratio", "ray_wm_rllib_imagination_return_gap", "ray_wm_rllib_stage_seconds"}
    head.wait_until(lambda: exported() >= wanted, 90, "the gauges")
    assert rules.exported_names() >= {name for name in exported() if "{" not in name}
    head.job("stop", job)
    assert head.wait(job)["status"] == "STOPPED"


def test_without_the_token_nothing_is_started(head):
    refused = head.job("submit", "--", "true", check=False, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="")
    assert refused.returncode != 0
    with pytest.raises(urllib.error.HTTPError) as error:
        head.get("/api/jobs/", token=False)
    assert error.value.code == 401


def test_mistakes_end_a_job_with_one_message(head):
    info = head.wait(head.submit(*entrypoint("runs/acrobot")))
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)
    assert "run folder runs/acrobot is relative" in info["logs"] and "Traceback" not in info["logs"]
