"""One seed for each (run seed, iteration, stage, worker): what happens in a stage depends on nothing drawn before it.

That is what lets a run that was killed and resumed draw the same numbers as one that was not (contract 7).
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def stage_seed(seed: int, iteration: int, stage: str, worker: int = 0) -> int:
    """A 31-bit seed, the same on every machine and in every process."""
    text = f"{seed}/{iteration}/{stage}/{worker}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1


def seed_process(seed: int | None) -> None:
    """Seeds the global generators of random, numpy and torch; None leaves them alone."""
    if seed is None:
        return
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
