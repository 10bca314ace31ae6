"""Whether a full replay will fit where it is kept: found out at the start, not when memory has run out after hours."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil

from wm_rllib.models.conv_vae import is_image

logger = logging.getLogger(__name__)

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux tells a container how much memory it may use, in version 2 and 1 of control groups."""


def warn_of_little_room(config: Any, observation_space: gym.Space[Any]) -> None:
    """Warns if the frames of a full replay take more than this machine has; the replay is on the driver's node.

    Not of compressed ones: how much they take is known only when they are there.

    Args:
        config: A `WorldModelPPOConfig`.
        observation_space: What V sees.
    """
    shape, storage = observation_space.shape or (), config.replay_storage
    if not is_image(shape) or storage == "compressed":
        return
    wanted = float(config.replay_capacity * math.prod(shape) * np.dtype(observation_space.dtype).itemsize)
    if config.replay_max_gigabytes is not None:
        wanted = min(wanted, config.replay_max_gigabytes * 1e9)
    if storage == "disk":
        directory = config.replay_directory or tempfile.gettempdir()
        room, place, fix = shutil.disk_usage(directory).free, f"free in {directory}", "another replay_directory"
    else:
        room, place, fix = memory_limit(), "of memory", "replay_storage compressed or disk"
    if wanted > room:
        logger.warning(
            "replay_capacity = %s frames of shape %s will take %.1f GB, and this machine has %.1f GB %s: a run "
            "that fills it will fail. Fix: a smaller replay_capacity, replay_max_gigabytes, or %s.",
            f"{config.replay_capacity:,}",
            shape,
            wanted / 1e9,
            room / 1e9,
            place,
            fix,
        )


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    total = psutil.virtual_memory().total
    for path in CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # there is no such group, or its limit is "max"
            continue
    return total
