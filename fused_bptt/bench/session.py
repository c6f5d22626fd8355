"""A run: what is to be measured, in which processes, and the file that grows block by block.

It times nothing itself: each thread count, and each rival's memory, has a process of its own.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fused_bptt.bench import results as store
from fused_bptt.bench.cells import FORWARD, FORWARD_BACKWARD, Cell, Preset
from fused_bptt.bench.isolation import choose_cpus
from fused_bptt.bench.machine import describe_machine, describe_software
from fused_bptt.bench.processes import Process

Block = tuple[Cell, str]  # and its mode


@dataclass(frozen=True)
class Entrant:
    """Who takes part: an adapter, and where its package lies if not where Python finds it."""

    rival: str
    folder: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure and where to keep it."""

    preset: Preset
    threads: Sequence[int]
    rivals: Mapping[str, Entrant]  # by the name in the results
    path: Path  # of the finished results
    resume: bool = False
    with_memory: bool = True
    minutes: float | None = None  # after which the run stops as by Ctrl-C

    @property
    def unfinished(self) -> Path:
        """Where results are until all are there."""
        return self.path.with_suffix(".partial.json")


@dataclass(frozen=True)
class Watcher:
    """Who is told how far a run is."""

    start: Callable[[float], None]  # with the whole work, in about seconds
    now: Callable[[str], None]  # what is being measured
    done: Callable[[float], None]  # that much work is done
    say: Callable[[str], None]  # something to be read


class ResumeError(Exception):
    """The results that are there were measured otherwise; the text says in what."""


def _fresh(plan: Plan) -> dict[str, Any]:
    preset = plan.preset
    return {
        "schema": store.SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "software": describe_software(),
        "method": {
            "nonlinearity": "tanh",
            "rounds": preset.rounds,
            "turn_seconds": preset.turn_seconds,
            "call_seconds": preset.call_seconds,
            "block_seconds": preset.block_seconds,
            "sample": "median over the calls of a turn, seconds a call; one sample a round",
            "memory": "high-water mark of a second step less the resident size before preparation",
        },
        "rivals": {},
        "blocks": [],
        "memory": [],
    }


def begin(plan: Plan) -> dict[str, Any]:
    """New results, or those to go on with.

    Raises:
        ResumeError: the machine, the versions, the commit or the method differ.
        ValueError: what is there is of another schema.
    """
    fresh = _fresh(plan)
    if not (plan.resume and plan.unfinished.exists()):
        return fresh
    kept = store.load(plan.unfinished)
    for part in ("machine", "software", "method"):
        if kept[part] != fresh[part]:
            raise ResumeError(
                f"{plan.unfinished} cannot be gone on with: its {part} differs; without --resume "
                "it is begun anew."
            )
    return kept


class Session:
    """The results of a run as they grow."""

    def __init__(self, plan: Plan, watcher: Watcher) -> None:
        """New, or with what an earlier run kept."""
        self.plan = plan
        self.results = begin(plan)
        self._watcher = watcher
        minutes = plan.minutes
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def run(self) -> None:
        """Measure what is left.

        Raises:
            TimeUpError: the minutes that were given are over; what was measured is kept.
            KeyboardInterrupt: likewise.
            EndedError: a process that measures failed.
        """
        todo = {threads: self._todo(threads) for threads in self.plan.threads}
        cells = self._memory_todo()
        blocks = itertools.chain.from_iterable(todo.values())
        total = sum(self._weight(*block) for block in blocks)
        self._watcher.start(total + len(cells) * self._memory_weight)
        for threads, left in todo.items():
            if left:
                self._measure(threads, left)
        if cells:
            self._measure_memory(cells)
        store.save(self.plan.path, self.results)
        self.plan.unfinished.unlink(missing_ok=True)

    def _todo(self, threads: int) -> list[Block]:
        done = {block.key for block in store.blocks(self.results)}
        preset = self.plan.preset
        wanted: list[Block] = []
        for cell in preset.cells:
            wanted.append((cell, FORWARD_BACKWARD))
            if cell in preset.forward_too:
                wanted.append((cell, FORWARD))
        return [block for block in wanted if (threads, *block) not in done]

    def _memory_todo(self) -> list[Cell]:
        if not self.plan.with_memory:
            return []
        done = [Cell(**entry["cell"]) for entry in self.results["memory"]]
        return [cell for cell in self.plan.preset.memory if cell not in done]

    def _weight(self, cell: Cell, mode: str) -> float:
        """Roughly the seconds that a block takes."""
        rounds = self.plan.preset.rounds * self.plan.preset.turn_seconds
        share = 1.0 if mode == FORWARD_BACKWARD else 0.3
        work = share * cell.B * cell.H**2 * cell.T * cell.layers * 3.5e-9
        longest = self.plan.preset.block_seconds
        return 1.0 + len(self.plan.rivals) * (rounds + 0.5) + min(work, 2 * longest)

    def _measure(self, threads: int, todo: list[Block]) -> None:
        """All blocks of a thread count."""
        preset = self.plan.preset
        orders = {
            "rounds": preset.rounds,
            "call_seconds": preset.call_seconds,
            "block_seconds": preset.block_seconds,
            "known": self._known(threads),
            "cells": [
                {"cell": vars(cell), "modes": [mode for _, mode in group]}
                for cell, group in itertools.groupby(todo, key=lambda block: block[0])
            ],
        }
        ahead = iter(todo)
        self._watcher.now(_title(threads, *next(ahead)))
        for message in self._worker(orders, threads, with_memory=False):
            if "block" in message:
                self._keep(message["block"])
                following = next(ahead, None)
                if following:
                    self._watcher.now(_title(threads, *following))
            elif "unprobed" in message:
                self._note_unprobed(message["unprobed"])
            else:
                self._note_rival(threads, message)

    def _worker(
        self, orders: dict[str, Any], threads: int, *, with_memory: bool
    ) -> Iterator[dict[str, Any]]:
        """The messages of a process that measures; it ends with them."""
        arms = [
            {
                "name": name,
                "rival": entrant.rival,
                "folder": str(entrant.folder) if entrant.folder else None,
            }
            for name, entrant in self.plan.rivals.items()
        ]
        process = Process(
            "fused_bptt.bench.worker",
            {
                "arms": arms,
                "memory": with_memory,
                "turn_seconds": self.plan.preset.turn_seconds,
                "known": [],
                **orders,
            },
            choose_cpus(threads),
            deadline=self._deadline,
        )
        try:
            yield from process.messages()
        finally:
            process.close()

    def _known(self, threads: int) -> list[tuple[str, dict[str, Any], float]]:
        """What calls took in blocks that are there already."""
        return [
            (name, vars(block.cell), min(block.samples(name) or ()))
            for block in store.blocks(self.results)
            if (block.threads, block.mode) == (threads, FORWARD_BACKWARD)
            for name in block.timed
        ]

    def _keep(self, raw: dict[str, Any]) -> None:
        self.results["blocks"].append(raw)
        store.save(self.plan.unfinished, self.results)
        block = store.Block(raw)
        self._watcher.done(self._weight(block.cell, block.mode))
        for name, outcome in raw["rivals"].items():
            if "wrong" in outcome:
                self._watcher.say(
                    f"{block.cell.name}: {name} is wrong, not timed: {outcome['wrong']}"
                )

    def _note_unprobed(self, why: str) -> None:
        if self.results.get("unprobed") != why:
            self.results["unprobed"] = why
            self._watcher.say(f"no roofline: {why}")

    def _note_rival(self, threads: int, message: dict[str, Any]) -> None:
        name = message["rival"]
        known = self.results["rivals"].setdefault(name, {"settings": {}})
        if "missing" in message:
            if "missing" not in known:
                self._watcher.say(f"{name}: {message['missing']}")
            known["missing"] = message["missing"]
        else:
            known.pop("missing", None)
            known["version"] = message["version"]
            known["settings"][str(threads)] = message["settings"]

    def _measure_memory(self, cells: Sequence[Cell]) -> None:
        """Everyone's memory, at the largest thread count."""
        threads = max(self.plan.threads)
        self._watcher.now("memory")
        orders = {"cells": [{"cell": vars(cell)} for cell in cells]}
        ahead = 0
        for message in self._worker(orders, threads, with_memory=True):
            if "memory" not in message:
                self._note_rival(threads, message)
                continue
            found = message["memory"]
            if "failed" in found:
                cell = Cell(**found["cell"])
                self._watcher.say(f"memory of {found['rival']}, {cell.name}: {found['failed']}")
            self.results["memory"].append({"threads": threads, **found})
            done = cells.index(Cell(**found["cell"]))
            self._watcher.done((done - ahead) * self._memory_weight)
            ahead = done
        store.save(self.plan.unfinished, self.results)

    @property
    def _memory_weight(self) -> float:
        """Roughly the seconds that a cell takes."""
        return 0.3 * len(self.plan.rivals)


def _title(threads: int, cell: Cell, mode: str) -> str:
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{count}, {cell.name}, {mode.replace('_', ' + ')}"
