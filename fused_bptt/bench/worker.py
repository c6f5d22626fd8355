"""Measures at one thread count, on its cores; session.py starts it.

Each rival is a process of its own (arm.py), which this one asks for turns; it computes the
reference and probes the machine itself, while the others wait.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fused_bptt.bench import memory
from fused_bptt.bench.cells import FORWARD_BACKWARD, Cell
from fused_bptt.bench.contention import Elsewhere
from fused_bptt.bench.data import cell_data
from fused_bptt.bench.native import BuildError
from fused_bptt.bench.probe import probe
from fused_bptt.bench.processes import EndedError, Process, end_with_parent, send
from fused_bptt.bench.results import DISTURBED
from fused_bptt.bench.roofline import Rates, seconds_per_step
from fused_bptt.bench.timing import interleave

# A block during which others used the cores is measured again, at most so often in all; the attempt
# that had most of the cores counts, whatever it gave, and the file says how much others took.
ATTEMPTS = 3

# The reference runs nn.RNN in float64: at most so many steps, and so many of a step's elements.
REFERENCE_STEPS = 10_000
REFERENCE_WORK = 3e8


class Arm:
    """A rival's process, seen from here; it is started again where it has ended."""

    def __init__(self, entry: dict[str, Any], orders: dict[str, Any], cpus: Sequence[int]) -> None:
        """Start the process."""
        folder = entry.get("folder")
        self.name: str = entry["name"]
        self._orders = {
            "rival": entry["rival"],
            "threads": len(cpus),
            "turn_seconds": orders["turn_seconds"],
        }
        self._start = functools.partial(
            Process,
            "fused_bptt.bench.arm",
            self._orders,
            cpus,
            folder=Path(folder) if folder else None,
            more=memory.ENVIRONMENT if orders["memory"] else None,
        )
        self._process: Process | None = self._start()
        self._mode = ""

    def introduce(self) -> dict[str, Any]:
        """Version and settings, or why it is missing."""
        assert self._process is not None
        try:
            return self._process.answer()
        except EndedError as error:
            return {"missing": str(error)}

    def _ask(self, do: str, **message: Any) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start()
            self._process.answer()
        try:
            self._process.tell(do=do, **message)
            return self._process.answer()
        except EndedError:
            self.close()
            raise

    def prepare(self, cell: Cell, checked: Cell, reference: Path) -> dict[str, Any]:
        """An outcome without times; with `error` if it is ready for them."""
        try:
            return self._ask(
                "prepare", cell=vars(cell), checked=vars(checked), reference=str(reference)
            )
        except EndedError as error:
            return {"wrong": str(error)}

    def in_mode(self, mode: str) -> Arm:
        """The turns of a mode."""
        self._mode = mode
        return self

    def warm_up(self) -> float:
        """Get ready."""
        return float(self._ask("warm_up", mode=self._mode)["seconds"])

    def take(self) -> float:
        """A turn."""
        return float(self._ask("take")["seconds"])

    def processor(self) -> float:
        """Processor time that its process has used."""
        return float(self._ask("processor")["seconds"]) if self._process else 0.0

    def memory(self, cell: Cell) -> dict[str, Any]:
        """What a step of a cell adds to its memory."""
        try:
            return self._ask("memory", cell=vars(cell))
        except EndedError as error:
            return {"failed": str(error)}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None


def present(orders: dict[str, Any], cpus: Sequence[int]) -> dict[str, Arm]:
    """Those that can be measured here; says of everyone who they are, or why not."""
    found = {}
    for arm in [Arm(entry, orders, cpus) for entry in orders["arms"]]:  # all start at once
        said = arm.introduce()
        send(rival=arm.name, **said)
        if "missing" in said:
            arm.close()
        else:
            found[arm.name] = arm
    return found


def reference_cell(cell: Cell) -> Cell:
    """The cell itself, or with fewer steps where nn.RNN in float64 would take too long."""
    step = cell.layers * (cell.H**2 + cell.B * cell.H)
    most = min(REFERENCE_STEPS // cell.layers, int(REFERENCE_WORK / step))
    return cell if most >= cell.T else replace(cell, T=max(1, most))


class Experience:
    """How long calls took so far, so that one that would take minutes is not begun."""

    def __init__(self, known: Sequence[Sequence[Any]]) -> None:
        """With names, cells and seconds of an earlier run."""
        self._known = [(name, Cell(**cell), seconds) for name, cell, seconds in known]

    def learn(self, name: str, cell: Cell, seconds: float) -> None:
        """A call took that long, forward and backward."""
        self._known.append((name, cell, seconds))

    def at_least(self, name: str, cell: Cell) -> float:
        """Seconds: what a cell that is no larger in any way took, grown by steps and layers."""

        def sizes(of: Cell) -> tuple[int, ...]:
            return of.B, of.H, of.T, of.layers

        return max(
            (
                seconds * (cell.T / known.T) * (cell.layers / known.layers)
                for rival, known, seconds in self._known
                if rival == name
                and known.dtype == cell.dtype
                and known.T > 1  # a single step is mostly overhead
                and all(a <= b for a, b in zip(sizes(known), sizes(cell), strict=True))
            ),
            default=0.0,
        )


def undisturbed(
    elsewhere: Callable[[], Elsewhere], measure: Callable[[], dict[str, list[float]]]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Measure until the cores were the block's own, or keep the least disturbed attempt."""
    kept: tuple[dict[str, list[float]], float | None] | None = None
    attempts = 0
    while kept is None or (kept[1] is not None and kept[1] > DISTURBED and attempts < ATTEMPTS):
        attempts += 1
        share = elsewhere()
        samples = measure()
        taken = share.so_far()
        if kept is None or kept[1] is None or taken is None or taken < kept[1]:
            kept = samples, taken
    return kept[0], {"elsewhere": kept[1], "attempts": attempts}


def probed(threads: int) -> dict[str, Any] | None:
    """The cores' rates; None where the probe cannot be built, and a message says why."""
    try:
        return probe(threads)
    except BuildError as error:
        send(unprobed=str(error).splitlines()[0])
        return None


class Worker:
    """The blocks of a thread count."""

    def __init__(self, orders: dict[str, Any], cpus: list[int], folder: Path) -> None:
        """Start everyone's process."""
        self._orders = orders
        self._cpus = cpus
        self._reference = folder / "reference.pt"
        self._arms = present(orders, cpus)
        self._experience = Experience(orders["known"])

    def close(self) -> None:
        """End everyone's process."""
        for arm in self._arms.values():
            arm.close()

    def memory(self) -> Iterator[dict[str, Any]]:
        """What a step adds to each rival's memory, cell by cell."""
        for sizes in self._orders["cells"]:
            cell = Cell(**sizes["cell"])
            for name, arm in self._arms.items():
                yield {"rival": name, "cell": vars(cell), **arm.memory(cell)}

    def blocks(self) -> Iterator[dict[str, Any]]:
        """What was measured, block by block."""
        threads = len(self._cpus)
        torch.set_num_threads(threads)
        probed(threads)  # warms up
        before = probed(threads)
        for entry in self._orders["cells"]:
            cell = Cell(**entry["cell"])
            outcomes = self._prepare(cell)
            for mode in entry["modes"]:
                found = {name: dict(outcome) for name, outcome in outcomes.items()}
                quiet = self._time(cell, mode, found)
                after = probed(threads)
                both = before and after
                limit = None
                if before and after:
                    rates = Rates.from_probes(before, after)
                    limit = seconds_per_step(cell, rates, threads, mode)
                yield {
                    "cell": vars(cell),
                    "threads": threads,
                    "affinity": self._cpus,
                    "mode": mode,
                    "rivals": found,
                    "roofline_seconds": None if limit is None else limit * cell.T,
                    **quiet,
                    "probes": {"before": before, "after": after} if both else None,
                }
                before = after

    def _prepare(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Everyone ready for a cell, or with the reason why not."""
        small = reference_cell(cell)
        cell_data(small)[1].save(self._reference)
        most = self._orders["call_seconds"]
        found = {}
        for name, arm in self._arms.items():
            expected = self._experience.at_least(name, cell)
            if expected > most:
                why = f"a call would take about {expected:.0f} s or more; {most:g} s are given"
                found[name] = {"skipped": why}
            else:
                found[name] = arm.prepare(cell, small, self._reference)
        return found

    def _time(self, cell: Cell, mode: str, outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Add everyone's seconds; how quiet the cores were."""
        turns = {
            name: arm.in_mode(mode) for name, arm in self._arms.items() if "error" in outcomes[name]
        }
        budget = (self._orders["rounds"], self._orders["block_seconds"])

        def own() -> float:
            return time.process_time() + sum(arm.processor() for arm in self._arms.values())

        samples, quiet = undisturbed(
            lambda: Elsewhere(self._cpus, own), lambda: interleave(turns, *budget)
        )
        for name, seconds in samples.items():
            outcomes[name]["seconds"] = seconds
            if mode == FORWARD_BACKWARD:
                self._experience.learn(name, cell, min(seconds))
        return quiet


def main() -> None:
    """Carry out the orders."""
    end_with_parent()
    orders = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(orders, sorted(os.sched_getaffinity(0)), Path(folder))
        try:
            if orders["memory"]:
                for entry in worker.memory():
                    send(memory=entry)
            else:
                for block in worker.blocks():
                    send(block=block)
        finally:
            worker.close()


if __name__ == "__main__":
    main()
