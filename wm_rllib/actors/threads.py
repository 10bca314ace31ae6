"""How many threads torch computes on, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread meanwhile.

    A few rows gain nothing from more, and threads that wait for each other on a busy machine cost much: with two of
    them random steps of CarRacing-v3 took four times as long beside two other processes on two cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
