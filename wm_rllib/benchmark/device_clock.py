"""Time, operations and bytes of work on a device, and the device's own ceilings for both."""

from __future__ import annotations

import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

FLOAT32, TF32, BFLOAT16 = "float32", "tf32", "bfloat16"
"""Float32 with TF32 off, in products and in cuDNN; with TF32 on, in both; torch.autocast to bfloat16, TF32 on."""

Work = Callable[[], Any]

SAMPLES = 5
SAMPLE_S = 0.05
"""A sample lasts so long at least: it is several calls, with the device waited for before and after all of them."""


class OutOfTimeError(Exception):
    """A measurement took longer than it may."""


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Lets TF32 stand for float32, in matrix products and in cuDNN, or not; puts torch's settings back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != FLOAT32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What a forward pass runs in: bfloat16 where that is the precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == BFLOAT16 else nullcontext()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTimeError` in what runs longer, compilation included; without effect outside of the main thread.

    The error may rise between any two instructions, also within `torch.no_grad`'s own, before there is anything to put
    its switch back: the switch is put back here.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTimeError(f"took longer than {seconds:.0f} s")

    gradients = torch.is_grad_enabled()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_grad_enabled(gradients)


def synchronise(device: torch.device) -> None:
    """Waits for all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_call_s(work: Work, device: torch.device) -> float:
    """Seconds of the first call: compilation, where there is any, and all else that is only done once."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def samples_s(work: Work, device: torch.device, samples: int = SAMPLES, sample_s: float = SAMPLE_S) -> list[float]:
    """Seconds of one call, in each of several samples, after two calls that do not count."""
    work()
    once = first_call_s(work, device)
    calls = max(1, min(1000, round(sample_s / max(once, 1e-6))))
    seconds = []
    for _ in range(samples):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def median_s(work: Work, device: torch.device, samples: int = SAMPLES, sample_s: float = SAMPLE_S) -> float:
    """Median of `samples_s`."""
    return statistics.median(samples_s(work, device, samples, sample_s))


def count_flops(work: Work) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, a multiply and an add being two.

    Without oneDNN, whose LSTM torch's counter takes for nothing: torch's own is made of products. For work on the CPU.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # putting oneDNN's settings back, torch speaks of Intel's GPUs
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            work()
    return int(counter.get_total_flops())


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors that go into operations, and of those that come out of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            # What is written in place is among the arguments and the results.
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count_bytes(work: Work) -> int:
    """Bytes that the operations of a call read and write, each by itself and views for nothing.

    An upper bound of what goes to memory: what one operation writes, the next may find in a cache, and a gather reads
    less than all it is given.
    """
    with _Traffic() as traffic:
        work()
    return traffic.num_bytes


def product_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of a large square matrix product of random numbers."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).unbind()
    with float32_products(precision):
        if precision == BFLOAT16:
            a, b = a.bfloat16(), b.bfloat16()  # not by autocast, which would cast at every call
        return 2 * side**3 / median_s(lambda: torch.mm(a, b), device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written, of a copy much larger than any cache."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / median_s(lambda: target.copy_(source), device)
