"""A million frames of 64 x 64 x 3 in 12.5 GB of memory, everything that the replay keeps of them included."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from wm_rllib.replay.replay import SequenceReplay

NUM_FRAMES, LENGTH = 1_000_000, 1000


def episode(number: int, pool: np.ndarray) -> SingleAgentEpisode:
    frames = np.roll(pool, number, 0)
    frames[:, 0, 0, 0] = number % 256
    return SingleAgentEpisode(
        id_=f"episode-{number}",
        observations=list(frames),
        actions=[0] * LENGTH,
        rewards=[1.0] * LENGTH,
        infos=[{}] * (LENGTH + 1),
        terminated=True,
        len_lookback_buffer=0,
    ).to_numpy()


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 15e9, reason="needs 15 GB of free memory")
def test_a_million_frames_within_twelve_and_a_half_gigabytes():
    pool = np.random.default_rng(0).integers(0, 256, (LENGTH + 1, 64, 64, 3), np.uint8)
    replay, process = SequenceReplay(NUM_FRAMES, 0), psutil.Process()
    replay.add([episode(0, pool)])
    before = process.memory_info().rss - replay.frames.num_bytes
    for number in range(1, NUM_FRAMES // (LENGTH + 1) + 1):
        replay.add([episode(number, pool)])
    held = process.memory_info().rss - before
    print(
        f"{len(replay.frames):,} frames: {held / 1e9:.3f} GB of memory, {replay.frames.num_bytes / 1e9:.3f} GB in slabs"
    )
    assert len(replay.frames) >= NUM_FRAMES - LENGTH
    assert held < 12.5e9
    # What is beyond the capacity takes the oldest's room.
    for number in range(1000, 1010):
        replay.add([episode(number, pool)])
    assert process.memory_info().rss - before < 12.5e9
