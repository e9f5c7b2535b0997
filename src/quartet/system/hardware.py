"""Which number formats the machine computes fast, and how it reuses freed memory."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from contextlib import suppress
from functools import cache

import torch

SHAPE, REPEATS = (192, 768), 3  # a matrix of the default Transformer: 1 ms in float32, 20 ms where bfloat16 is emulated
TOLERATED = 2.0  # times float32; units of its own make a product faster, emulation was 8 to 28 times slower (measured)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)
NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")  # in messages of torch's RuntimeErrors
KEPT = 2**30  # bytes of freed memory on top of the heap that stay with the process


@cache
def is_fast(dtype: torch.dtype, device_type: str) -> bool:
    """Whether matrix products in this 16-bit type have units of their own here, instead of being emulated.

    CPUs are timed once per process, about 0.1 s at worst.
    """
    if device_type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return True
    # flags tell neither what torch's libraries make of them nor how far they were limited (ONEDNN_MAX_CPU_ISA)
    return _seconds(dtype) < TOLERATED * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """Processor time of one matrix product, the least of a few; other processes hardly disturb it."""
    matrix = torch.ones(SHAPE, dtype=dtype)
    times = []
    # the first one prepares kernels and threads
    for _ in range(1 + REPEATS):
        start = time.process_time()
        torch.mm(matrix, matrix.T)
        times.append(time.process_time() - start)
    return min(times[1:])


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to the kernel after each use; elsewhere do nothing."""
    # a training step allocates the same large tensors every time, and a fresh page costs a fault and its zeroing: 40,000
    # faults and a fifth of the time of the default Transformer's step (docs/notes.md)
    # there may be no C library that can be asked, or one without mallopt
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def peak_memory(device: torch.device) -> int:
    """The most bytes that torch has had on a GPU; elsewhere the most that this process has had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
