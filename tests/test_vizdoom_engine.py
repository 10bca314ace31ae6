"""How ViZDoom's engine is started, with a script in its place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import psutil
import pytest

from wm_rllib.environments import vizdoom_engine

START_AND_TELL = """
import subprocess, sys, time
engine = subprocess.Popen([sys.argv[1]])
print(engine.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
def test_an_engine_does_not_outlive_a_killed_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ViZDoom's ignores SIGTERM and never looks whether anybody is there."""
    engine = tmp_path / "vizdoom"
    started = tmp_path / "started"
    engine.write_text(f"#!/bin/sh\ntrap '' TERM\ntouch {started}\nwhile :; do sleep 0.2; done\n")
    engine.chmod(0o700)
    spec = ModuleSpec("vizdoom", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(vizdoom_engine.importlib.util, "find_spec", lambda _: spec)
    launcher = vizdoom_engine._launcher.__wrapped__()
    parent = subprocess.Popen([sys.executable, "-c", START_AND_TELL, launcher], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    try:
        deadline = time.monotonic() + 20
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert started.exists()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        psutil.wait_procs([child], timeout=20)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    finally:
        parent.kill()
        if child.is_running():
            child.kill()
