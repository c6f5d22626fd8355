"""What this machine's cores can do at this moment: products, reads and streams by working set."""

from __future__ import annotations

import ctypes
import functools
import time
from pathlib import Path
from typing import Any

import torch

from fused_bptt.bench import native

KIB, MIB = 2**10, 2**20
# Up to the largest W (64 MiB at H=4096), and to the largest u and h of the grid (100 MiB together,
# of which the rates no longer change much beyond 64).
READ_SIZES = (
    *(k * KIB for k in (16, 32, 64, 256, 512)),
    *(m * MIB for m in (1, 2, 4, 16, 64)),
)
STREAM_SIZES = (16 * KIB, 128 * KIB, 1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)
PRODUCT_SIZE = 1024


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = native.load(Path(__file__).with_name("probe.cpp"))
    for name in ("probe_multiply_add", "probe_read", "probe_stream"):
        getattr(library, name).restype = ctypes.c_double
    return library


def probe(threads: int, seconds: float = 0.003) -> dict[str, Any]:
    """Measure a core's rates while all `threads` are busy; each is the best of several tries.

    GF/s for products, GB/s by bytes of working set a core for the rest. `sgemm_gflops` is a large
    torch.mm's rate divided by the number of threads.

    Raises:
        BuildError: there is no C++ compiler to build the probe with.
    """
    library = _library()
    duration = ctypes.c_double(seconds)

    def bandwidth(function: Any, sizes: tuple[int, ...]) -> list[tuple[int, float]]:
        return [(size, function(threads, ctypes.c_int64(size), duration) / 1e9) for size in sizes]

    return {
        "multiply_add_gflops": library.probe_multiply_add(threads, duration) / 1e9,
        "sgemm_gflops": _sgemm() / threads / 1e9,
        "read_gbps": bandwidth(library.probe_read, READ_SIZES),
        "stream_gbps": bandwidth(library.probe_stream, STREAM_SIZES),
    }


def _sgemm() -> float:
    n = PRODUCT_SIZE
    a, b, out = (torch.ones(n, n) for _ in range(3))
    best = float("inf")
    for _ in range(4):  # the first warms up and is never the best
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2.0 * n**3 / best
