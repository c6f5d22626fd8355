"""Interleaved timing: within a cell, rivals take turns, round after round.

Who takes a turn is anything with `Turns`' two methods: a call in this process, or a process
elsewhere that answers.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

WARM_UP_SECONDS = 0.1
SETTLE_SECONDS = 0.1
LONG_CALL_SECONDS = 0.5
MAX_CALLS = 1000
FEWEST_ROUNDS = 3


class Turns(Protocol):
    """Someone who takes part."""

    def warm_up(self) -> float:
        """Get ready; about how many seconds a turn takes."""

    def take(self) -> float:
        """One turn: seconds a call."""


class Calls:
    """The turns of a call in this process: the median over as many calls as fit into a turn."""

    def __init__(self, call: Callable[[], Any], turn_seconds: float) -> None:
        """Not warmed up yet."""
        self._call = call
        self._turn_seconds = turn_seconds
        self._estimate = 0.0

    def warm_up(self) -> float:
        """Call at least twice and for a while, or once where a call takes long."""
        times = [_time(self._call)]
        while (len(times) < 2 and times[0] < LONG_CALL_SECONDS) or (
            sum(times) < WARM_UP_SECONDS and len(times) < MAX_CALLS
        ):
            times.append(_time(self._call))
        self._estimate = max(min(times), 1e-7)
        return max(self._turn_seconds, self._estimate)

    def take(self) -> float:
        """A call that is not timed opens the turn of the quick ones.

        So caches and thread pools are the caller's own.
        """
        count = min(MAX_CALLS, max(1, math.ceil(self._turn_seconds / self._estimate)))
        if self._estimate < SETTLE_SECONDS:
            self._call()
        return statistics.median(_time(self._call) for _ in range(count))


Key = TypeVar("Key")


def interleave(
    everyone: Mapping[Key, Turns], rounds: int, seconds: float = math.inf
) -> dict[Key, list[float]]:
    """Seconds a call of each, one number a round.

    The order rotates and is reversed every other round, so that nobody always follows the same one.
    Where all rounds would take longer than `seconds` there are fewer, but at least three.
    """
    samples: dict[Key, list[float]] = {name: [] for name in everyone}
    names = list(everyone)
    if not names:
        return samples
    with _no_collection():
        round_seconds = sum(turns.warm_up() for turns in everyone.values())
        if math.isfinite(seconds):
            rounds = min(rounds, max(FEWEST_ROUNDS, int(seconds / round_seconds)))
        for index in range(rounds):
            shift = index % len(names)
            order = names[shift:] + names[:shift]
            for name in reversed(order) if index % 2 else order:
                samples[name].append(everyone[name].take())
    return samples


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
