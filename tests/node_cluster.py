"""Three Ray nodes on one machine, each in a network namespace of its own, so that one can be killed or cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from ray_head import RAY, RayHead

BRIDGE = "wmbr0"
NETWORK = "10.77.0"
JOIN_TIMEOUT_S = 90


def may_make_namespaces() -> bool:
    """Whether this machine and user can: root, and iproute2."""
    name = "wmprobe"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        _ip("netns", "del", name)
    return made


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True)


class Node:
    """A network namespace with one end of a cable to the bridge in it.

    Args:
        number: 1, 2, ...; its address ends with it.
    """

    def __init__(self, number: int):
        self.name, self._cable = f"wm{number}", f"wmveth{number}"
        self.address = f"{NETWORK}.{number}"
        self.prefix = ("ip", "netns", "exec", self.name)
        _ip("netns", "add", self.name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._cable, "master", BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", device, "up")

    def cut_off(self) -> None:
        """Pulls the cable: nothing is refused, packets just get lost."""
        _ip("link", "set", self._cable, "down")

    def connect(self) -> None:
        _ip("link", "set", self._cable, "up")

    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        """SIGKILL to all that runs on it."""
        for _ in range(50):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)
        raise AssertionError(f"{self.name} cannot be killed")

    def remove(self) -> None:
        self.kill()
        _ip("netns", "del", self.name)  # its end of the cable goes with it, and so does the other


class NodeCluster:
    """A head and two more nodes; all actors may run on any of them, and are spread over all.

    Attributes:
        head: Jobs are submitted to it.
        workers: The two others.
    """

    def __init__(self, folder: Path):
        self._made: list[Node] = []
        _ip("link", "add", BRIDGE, "type", "bridge")
        try:
            _ip("link", "set", BRIDGE, "up")
            _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)  # for this process, which submits the jobs
            first, *self.workers = self._made = [Node(number) for number in (1, 2, 3)]
            self.head = RayHead(folder, first.address, first.prefix, num_cpus=8, RAY_scheduler_spread_threshold="0")
            self._processes = [self._join(node, folder) for node in self.workers]
            nodes = "ray.init(); import time\nwhile sum(n['Alive'] for n in ray.nodes()) < 3: time.sleep(0.5)"
            self.head.wait(self.head.submit("python", "-c", f"import ray; {nodes}"))
        except BaseException:
            self.remove()
            raise

    def _join(self, node: Node, folder: Path) -> subprocess.Popen[bytes]:
        """Starts a node and waits for it: two that start at once may choose the same socket in the session's folder."""
        flags = {"address": self.head.gcs, "node-ip-address": node.address, "num-cpus": 8}
        log = folder / f"{node.name}.txt"
        process = subprocess.Popen(
            [*node.prefix, RAY, "start", "--block", *(f"--{name}={value}" for name, value in flags.items())],
            env=self.head.env,
            cwd=folder,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, (
                f"{node.name} did not start:\n{log.read_text()}"
            )
            time.sleep(0.2)
        return process

    def remove(self) -> None:
        """Ends all nodes and takes the network away."""
        for node in self._made[1:]:
            node.remove()
        if hasattr(self, "head"):
            self.head.stop()
        for node in self._made[:1]:
            node.remove()
        for process in getattr(self, "_processes", []):
            process.wait()
        _ip("link", "del", BRIDGE)
