"""Honest thread counts: a process that measures has that many cores and no more.

Call `isolate` before torch or JAX is imported. The affinity binds every library, whatever its own
settings say; the environment makes the libraries size their pools to it.
"""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def _siblings(cpu: int) -> str:
    """The hardware threads that share this one's core, as the kernel writes them."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def choose_cpus(threads: int) -> list[int]:
    """The CPUs for that many threads: a core each, the last ones first.

    The last, because the first CPU is where interrupts tend to be served.
    """
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0), reverse=True):
        cores.setdefault(_siblings(cpu), cpu)
    if threads > len(cores):
        raise ValueError(f"{threads} threads asked for, {len(cores)} cores available")
    return sorted(list(cores.values())[:threads])


def isolate(threads: int) -> list[int]:
    """Bind this process to as many cores as threads, and size the libraries' pools."""
    cpus = choose_cpus(threads)
    os.sched_setaffinity(0, cpus)
    count = str(threads)
    os.environ.update(
        OMP_NUM_THREADS=count,  # torch, MKL, oneDNN
        MKL_NUM_THREADS=count,
        OPENBLAS_NUM_THREADS=count,
        NPROC=count,  # XLA's CPU client sizes its pool by this, or else by the affinity
        JAX_PLATFORMS="cpu",
    )
    return cpus
