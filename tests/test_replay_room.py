"""Whether a replay that will not fit is said at the start."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import psutil
import pytest

from wm_rllib import WorldModelPPO
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.training import replay_room
from wm_rllib.training.replay_room import memory_limit, warn_of_little_room

FRAMES = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
FITTING = 1_000_000_000 // (64 * 64 * 3)
"""Frames in a billion bytes."""


@pytest.fixture(autouse=True)
def a_gigabyte_of_memory_and_half_of_disk(monkeypatch, caplog):
    monkeypatch.setattr(replay_room, "memory_limit", lambda: 1_000_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=500_000_000))
    monkeypatch.setattr(replay_room.logger, "handlers", [caplog.handler])  # the package's logger ends propagation
    monkeypatch.setattr(replay_room.logger, "propagate", False)


def said(caplog, space=FRAMES, **settings):
    warn_of_little_room(WorldModelPPOConfig().world_model(**settings), space)
    return caplog.text


@pytest.mark.parametrize("capacity", [FITTING, FITTING + 1])
def test_memory(caplog, capacity):
    text = said(caplog, replay_capacity=capacity)
    assert ("will take 1.0 GB, and this machine has 1.0 GB of memory" in text) == (capacity > FITTING)


def test_a_bound_below_it_is_enough(caplog):
    assert not said(caplog, replay_capacity=10 * FITTING, replay_max_gigabytes=0.9)
    assert "will take 1.1 GB" in said(caplog, replay_capacity=10 * FITTING, replay_max_gigabytes=1.1)


def test_disk(caplog, tmp_path):
    settings = {"replay_storage": "disk", "replay_directory": str(tmp_path)}
    assert not said(caplog, replay_capacity=FITTING // 2, **settings)
    text = said(caplog, replay_capacity=FITTING, **settings)
    assert f"will take 1.0 GB, and this machine has 0.5 GB free in {tmp_path}" in text and "another replay_dir" in text


def test_nothing_is_said_of_compressed_frames_and_of_vectors(caplog):
    assert not said(caplog, replay_capacity=10 * FITTING, replay_storage="compressed")
    assert not said(caplog, gym.spaces.Box(0, 1, (64 * 64,), np.float32), replay_capacity=10 * FITTING)


def test_it_is_said_before_anything_starts(caplog, monkeypatch):
    def start(*_):
        raise RuntimeError("starts")

    monkeypatch.setattr("wm_rllib.training.placement.check_cluster", start)
    config = WorldModelPPOConfig().environment("image_env:DotEnv").world_model(replay_capacity=10**9)
    with pytest.raises(RuntimeError, match="starts"):
        WorldModelPPO(config)
    assert "replay_capacity = 1,000,000,000 frames of shape (16, 16, 3) will take 768.0 GB" in caplog.text


@pytest.mark.parametrize(("written", "expected"), [("max", None), ("4096", 4096), (str(2**63 - 4096), None)])
def test_a_container_has_what_its_group_allows(monkeypatch, tmp_path, written, expected):
    (tmp_path / "memory.max").write_text(written + "\n")
    monkeypatch.setattr(replay_room, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "absent"))
    assert memory_limit() == (expected or psutil.virtual_memory().total)
