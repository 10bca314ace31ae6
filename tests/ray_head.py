"""A Ray head of a test's own, with token authentication, and what `ray job` says about the jobs on it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
DONE = ("SUCCEEDED", "FAILED", "STOPPED")


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class RayHead:
    """`ray start --head` on free ports, in a process group of its own.

    Args:
        folder: For its output, its token, and as the home folder of all that runs on it.
        address: Where it listens.
        prefix: Command that the head is started by, as `ip netns exec <name>`.
        num_cpus: Logical CPUs.
        **env: More of its environment.
    """

    def __init__(
        self, folder: Path, address: str = "127.0.0.1", prefix: tuple[str, ...] = (), num_cpus: int = 2, **env: str
    ):
        self.folder = folder
        self._temp = Path(tempfile.mkdtemp(prefix="wmj", dir="/tmp"))  # sockets' paths must be short
        gcs, dashboard, agent, metrics, client = _free_ports(5)
        self.address, self.gcs = f"http://{address}:{dashboard}", f"{address}:{gcs}"
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        # Nothing of this checkout but what a job brings along: neither PYTHONPATH nor the tests' Ray settings.
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
        self.env = {
            **clean,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_DISABLE_USAGE_STATS": "1",
            "RAY_worker_niceness": "0",  # else any other load on the machine would come first
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
            "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
            **env,
        }
        flags = {
            "port": gcs,
            "dashboard-host": address,
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "ray-client-server-port": client,
            "node-ip-address": address,
            "num-cpus": num_cpus,
            "resources": '{"rollout": 4}',
            "temp-dir": self._temp,
        }
        self.metrics_url = f"http://{address}:{metrics}/metrics"
        self._log = (folder / "head.txt").open("w")
        self._head = subprocess.Popen(
            [*prefix, RAY, "start", "--head", "--block", *(f"--{name}={value}" for name, value in flags.items())],
            env=self.env,
            cwd=folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.wait_until(lambda: self.job("list", check=False).returncode == 0, 60, "the head to answer")

    def wait_until(self, done: Callable[[], Any], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert self._head.poll() is None, (self.folder / "head.txt").read_text()
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}"
            time.sleep(0.3)

    def job(self, command: str, *argv: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """`ray job <command>`, from the root of this checkout as a user runs it."""
        done = subprocess.run(
            [RAY, "job", command, "--address", self.address, *argv],
            env={**self.env, **env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(
        self,
        *command: str,
        working_dir: str = ".",
        runtime_env: str | None = "cluster/runtime_env.yaml",
        check: bool = True,
    ) -> str:
        """Submits a command without waiting for it; returns the job's id."""
        environment = ["--working-dir", working_dir]
        environment += [] if runtime_env is None else ["--runtime-env", runtime_env]
        done = self.job("submit", "--no-wait", *environment, "--", *command, check=check)
        found = re.search(r"Job '(raysubmit_\w+)' submitted", done.stdout)
        assert found, done.stdout + done.stderr
        return found[1]

    def get(self, path: str, token: bool = True) -> Any:
        headers = {"Authorization": f"Bearer {self.token.read_text()}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers)) as answer:
            return json.load(answer)

    def info(self, job: str) -> dict[str, Any]:
        return self.get(f"/api/jobs/{job}")

    def wait(self, job: str, timeout_s: float = 150) -> dict[str, Any]:
        """Waits for a job's end; returns what is known of it, with its output under `logs`."""
        self.wait_until(lambda: self.info(job)["status"] in DONE, timeout_s, f"the end of {job}")
        return {**self.info(job), "logs": self.get(f"/api/jobs/{job}/logs")["logs"]}

    def driver(self, job: str) -> psutil.Process:
        """The driver's process, once it has joined the cluster."""
        self.wait_until(lambda: self.info(job)["driver_info"], 60, "the driver")
        return psutil.Process(int(self.info(job)["driver_info"]["pid"]))

    def stop(self) -> None:
        """Ends the head and all that it started, by their ids."""
        processes = [psutil.Process(self._head.pid), *psutil.Process(self._head.pid).children(recursive=True)]
        self._head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=20)
        for process in alive:
            try:
                process.kill()  # psutil checks that the id still means the same process
            except psutil.NoSuchProcess:
                pass
        self._head.wait()
        self._log.close()
        shutil.rmtree(self._temp, ignore_errors=True)
