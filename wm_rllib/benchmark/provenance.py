"""Where a result comes from: command, commit, hardware and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("ray", "torch", "gymnasium", "numpy", "stable-baselines3")

CODE = (":(top)wm_rllib", ":(top)tune_configs")
"""What makes a difference when it differs from the commit; results and reports do not."""


def provenance(command: str, num_threads: int) -> dict[str, Any]:
    """Return what a result says of its making.

    Args:
        command: The command that asked for it.
        num_threads: Threads of torch.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", *CODE)
    return {
        "command": command,
        "git_commit": commit,
        "git_dirty": None if changed is None else bool(changed),
        "hardware": {
            "cpu": cpu_model(),
            "logical_cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": _gpu(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "num_threads": num_threads,
        "load_average": list(os.getloadavg()),
    }


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return what git says of this package's own repository, or None where it is none."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
