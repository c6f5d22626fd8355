"""One implementation in a process of its own, which worker.py starts and asks.

So no rival meets another's libraries, memory or threads, and two revisions of one package can take
part. It is asked, a line each: to prepare a cell and check it against float64, to get ready for a
mode, for a turn, for the processor time that it used, for the memory that a step takes.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from fused_bptt.bench import memory
from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data, Reference
from fused_bptt.bench.processes import end_with_parent, received, send
from fused_bptt.bench.rivals import RIVALS, Prepared, Rival
from fused_bptt.bench.timing import Calls


class Arm:
    """A rival, and what it has prepared."""

    def __init__(self, rival: Rival, threads: int, turn_seconds: float) -> None:
        """Nothing is prepared yet."""
        self._rival = rival
        self._threads = threads
        self._turn_seconds = turn_seconds
        self._prepared: Prepared | None = None
        self._loaded = False
        self._calls: Calls | None = None

    def prepare(self, cell: dict[str, Any], checked: dict[str, Any], reference: str) -> Any:
        """Ready to be timed, with its error; or what is wrong with it, or why it is left out.

        `checked` is the cell of the reference: the cell, or one with fewer steps.
        """
        self._prepared = self._calls = None
        gc.collect()
        whole, small = Cell(**cell), Cell(**checked)
        if (why := self._rival.refuses(whole)) is not None:
            return {"skipped": why}
        try:
            begin = time.perf_counter()
            prepared = self._rival.prepare(Data.draw(small), self._threads)
            prepared.forward_backward()
            seconds = time.perf_counter() - begin
            error, wrong = check(prepared, Reference.load(Path(reference)))
            if wrong is not None:
                return {"wrong": wrong}
            outcome: dict[str, Any] = {"error": error, "prepare_seconds": seconds}
            if small != whole:
                outcome["checked_at"] = small.name
                del prepared
                prepared = self._rival.prepare(Data.draw(whole), self._threads)
        except Exception as problem:  # whatever a rival raises is part of the result
            return {"wrong": in_words(problem)}
        self._prepared = prepared
        return outcome

    def warm_up(self, mode: str) -> Any:
        """Get ready for a mode."""
        gc.collect()
        gc.disable()
        self._calls = Calls(getattr(self._prepared, mode), self._turn_seconds)
        return {"seconds": self._calls.warm_up()}

    def take(self) -> Any:
        """A turn."""
        assert self._calls is not None
        return {"seconds": self._calls.take()}

    def processor(self) -> Any:
        """Processor time of this process so far."""
        return {"seconds": time.process_time()}

    def memory(self, cell: dict[str, Any]) -> Any:
        """What a step adds to this process's memory."""
        sizes = Cell(**cell)
        if (why := self._rival.refuses(sizes)) is not None:
            return {"skipped": why}
        try:
            if not self._loaded:  # code, thread pools: of the first step ever, not of this cell
                first = Data.draw(Cell(1, 16, T=2))
                self._rival.prepare(first, self._threads).forward_backward()
                self._loaded = True
            extra = memory.extra_bytes(self._rival, sizes, self._threads)
        except Exception as problem:  # whatever a rival raises is part of the result
            return {"failed": in_words(problem)}
        return {"extra_bytes": extra, "needed_bytes": memory.allowance(sizes)}


def check(prepared: Prepared, reference: Reference) -> tuple[float, str | None]:
    """The largest error of what a rival computes, and what is wrong with it."""
    found = prepared.results()
    error, wrong = reference.check(found)
    if wrong is None:
        alone, wrong = reference.check({**found, "output": prepared.output()})
        error = max(error, alone)
    return error, wrong


def in_words(problem: Exception) -> str:
    """Its type, and the first line of its text."""
    words = str(problem).splitlines() or [""]
    return f"{type(problem).__name__}: {words[0]}"


def main() -> None:
    """Say who it is, then answer until nobody asks."""
    end_with_parent()
    orders = json.loads(sys.argv[1])
    rival, threads = RIVALS[orders["rival"]], orders["threads"]
    why = rival.missing()
    if why is not None:
        send(missing=why)
        return
    send(version=rival.version(), settings=rival.settings(threads))
    arm = Arm(rival, threads, orders["turn_seconds"])
    for message in received():
        send(**getattr(arm, message.pop("do"))(**message))


if __name__ == "__main__":
    main()
