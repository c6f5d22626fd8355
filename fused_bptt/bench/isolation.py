"""A process that has that many cores and no more.

The affinity binds every library, whatever its own settings say; the environment makes the
libraries size their pools to it. Both are inherited: whoever starts a process that measures does so
inside `cores`, with `environment`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    Raises:
        ValueError: there are not so many cores.
    """
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0), reverse=True):
        cores.setdefault(_siblings(cpu), cpu)
    if threads > len(cores):
        raise ValueError(f"threads: expected at most {len(cores)}, the cores here, got {threads}")
    return sorted(list(cores.values())[:threads])


def environment(threads: int) -> dict[str, str]:
    """What makes each library size its pool to that many threads."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,  # torch, MKL, oneDNN
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NPROC": count,  # XLA's CPU client sizes its pool by this, or else by the affinity
        "TF_NUM_INTRAOP_THREADS": count,
        "TF_NUM_INTEROP_THREADS": "1",
        # Milliseconds for which Intel's OpenMP, which Paddle brings, spins after a parallel region:
        # its default of 200 would reach into the turns of the rivals that follow.
        "KMP_BLOCKTIME": "1",
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "GLOG_minloglevel": "3",  # Paddle's
    }


@contextmanager
def cores(cpus: Sequence[int]) -> Iterator[None]:
    """Processes that are started inside are bound to these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def isolate(threads: int) -> list[int]:
    """Bind this process, before it has threads, to as many cores as threads."""
    cpus = choose_cpus(threads)
    os.sched_setaffinity(0, cpus)
    os.environ.update(environment(threads))
    return cpus
