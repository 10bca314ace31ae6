"""Free memory goes back to the system, once a minute."""

import subprocess
import sys

import pytest

from wm_rllib.actors import heap
from wm_rllib.actors.heap import Heap

FRAGMENTED = """
import psutil
from wm_rllib.actors.heap import Heap, TRIM_EVERY_S

heap = Heap()
kept = [bytearray(100_000) for _ in range(2000)][::40]  # 200 MB, with a block in use here and there
before = psutil.Process().memory_info().rss
heap._trimmed_at -= TRIM_EVERY_S
assert heap.trim()
print((before - psutil.Process().memory_info().rss) / 1e6)
"""


@pytest.mark.skipif(Heap()._trim is None, reason="a C library without malloc_trim")
def test_a_fragmented_heap_shrinks(processes_without_ray):
    run = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    assert float(run.stdout) > 100


def test_once_a_minute(monkeypatch: pytest.MonkeyPatch):
    now, calls = [1000.0], []
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    one = Heap()
    one._trim = calls.append
    for seconds, due in ((59.0, False), (60.0, True), (61.0, False), (121.0, True)):
        now[0] = 1000.0 + seconds
        assert one.trim() is due
    assert calls == [0, 0]
