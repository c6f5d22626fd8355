"""Interleaved timing: within a cell, rivals take turns, round after round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WARM_UP_SECONDS = 0.1
SETTLE_SECONDS = 0.1
MAX_CALLS = 1000


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _warm_up(call: Callable[[], Any]) -> float:
    """Call at least twice and for a while; the fastest call's time."""
    times = [_time(call)]
    while len(times) < 2 or (sum(times) < WARM_UP_SECONDS and len(times) < MAX_CALLS):
        times.append(_time(call))
    return min(times)


def interleave(
    calls: Mapping[str, Callable[[], Any]], rounds: int, turn_seconds: float
) -> dict[str, list[float]]:
    """Seconds a call of each, one number a round: the median over the calls of its turn.

    A turn lasts about `turn_seconds`, or one call. The order rotates and is reversed every other
    round, so that nobody always follows the same one; a call that is not timed opens the turn of
    the quick ones, so that caches and thread pools are the caller's own.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    if not names:
        return samples
    with _no_collection():
        estimates = {name: _warm_up(call) for name, call in calls.items()}
        for index in range(rounds):
            shift = index % len(names)
            order = names[shift:] + names[:shift]
            for name in reversed(order) if index % 2 else order:
                call, estimate = calls[name], estimates[name]
                count = min(MAX_CALLS, max(1, math.ceil(turn_seconds / max(estimate, 1e-7))))
                if estimate < SETTLE_SECONDS:
                    call()
                samples[name].append(statistics.median(_time(call) for _ in range(count)))
    return samples
