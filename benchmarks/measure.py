"""The command that measures: `python -m benchmarks.measure --help`.

It times nothing itself: each thread count and each memory case runs in a process of its own. The
results are written after every block, so that an interruption keeps what was measured and
`--resume` goes on from there.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks import results as store
from benchmarks.cells import FORWARD_BACKWARD, GRID, MODES, OVERHEAD, Cell
from benchmarks.machine import describe_machine, describe_software, slug
from benchmarks.worker import MARK

_HERE = Path(__file__).parent
RIVALS = ("fused_bptt.RNN", "nn.RNN", "onednn", "jax")
# Those whose preparation leaves nothing that belongs to a step's memory.
MEMORY_RIVALS = ("fused_bptt.RNN", "nn.RNN")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure", description=__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default: 1 2)"
    )
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=RIVALS, help="who takes part (default: all)"
    )
    parser.add_argument(
        "--cells",
        type=lambda text: [Cell.parse(name) for name in text.split()],
        default=[*GRID, OVERHEAD],
        help='shapes BxH or BxHxT.., such as "1x16 8x64" (default: the grid and the overhead case)',
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each rival (default: 9)")
    parser.add_argument(
        "--turn-seconds", type=float, default=0.04, help="a turn's length (default: 0.04)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the memory case out")
    parser.add_argument("--resume", action="store_true", help="keep the blocks that OUT has")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/MACHINE.json")
    return parser.parse_args(arguments)


def start(arguments: argparse.Namespace, path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """New results, or those to go on with."""
    fresh = {
        "schema": store.SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "software": describe_software(),
        "method": {
            "dtype": "float32",
            "nonlinearity": "tanh",
            "rounds": arguments.rounds,
            "turn_seconds": arguments.turn_seconds,
            "sample": "median over the calls of a turn, seconds a call; one sample a round",
        },
        "rivals": {},
        "blocks": [],
        "memory": [],
    }
    if not (arguments.resume and path.exists()):
        return fresh
    kept = store.load(path)
    for part in ("machine", "software", "method"):
        if kept[part] != fresh[part]:
            raise SystemExit(f"{path} cannot be resumed: its {part} differs")
    return kept


def run(module: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """The messages of a process that measures; ends it when the caller stops listening."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_HERE.parent)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(MARK):
                yield json.loads(line.removeprefix(MARK))
        if process.wait() != 0:
            raise SystemExit(f"{module} failed with exit status {process.returncode}")
    finally:
        process.kill()
        process.wait()


def weight(cell: Cell, mode: str) -> float:
    """Roughly the seconds that a block takes, for the time left."""
    share = 1.0 if mode == FORWARD_BACKWARD else 0.3
    return 2.5 + share * cell.B * cell.H**2 * cell.T * 3.5e-9


class Session:
    """The results of a run as they grow, its file and its progress bar."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        machine = describe_machine()
        self.arguments = arguments
        self.path: Path = arguments.out or _HERE / "results" / f"{slug(machine)}.json"
        self.results = start(arguments, self.path, machine)
        self.progress = progress
        self.todo = self._todo()
        total = sum(weight(cell, mode) for todo in self.todo.values() for cell, mode in todo)
        self.task: TaskID = progress.add_task("probing", total=total)

    def _todo(self) -> dict[int, list[tuple[Cell, str]]]:
        done = {block.key for block in store.blocks(self.results)}
        return {
            threads: [
                (cell, mode)
                for cell in self.arguments.cells
                for mode in self.arguments.modes
                if (threads, cell, mode) not in done
            ]
            for threads in self.arguments.threads
        }

    def show(self, description: str, advance: float = 0.0) -> None:
        self.progress.update(self.task, description=description, advance=advance)
        self.progress.refresh()

    def measure(self, threads: int) -> None:
        """All blocks of a thread count."""
        todo = self.todo[threads]
        if not todo:
            return
        orders = {
            "threads": threads,
            "rivals": list(self.arguments.rivals),
            "rounds": self.arguments.rounds,
            "turn_seconds": self.arguments.turn_seconds,
            "cells": [
                {"cell": vars(cell), "modes": [mode for _, mode in group]}
                for cell, group in itertools.groupby(todo, key=lambda block: block[0])
            ],
        }
        ahead = iter(todo)
        self.show(_title(threads, *next(ahead)))
        for message in run("benchmarks.worker", json.dumps(orders)):
            if "block" in message:
                block = store.Block(message["block"])
                self.results["blocks"].append(message["block"])
                store.save(self.path, self.results)
                following = next(ahead, None)
                title = _title(threads, *following) if following else "done"
                self.show(title, weight(block.cell, block.mode))
                for name, outcome in message["block"]["rivals"].items():
                    if "wrong" in outcome:
                        self.progress.console.print(
                            f"{block.cell.name}: {name} is wrong, not timed: {outcome['wrong']}"
                        )
            else:
                self.note_rival(threads, message)

    def note_rival(self, threads: int, message: dict[str, Any]) -> None:
        name = message["rival"]
        known = self.results["rivals"].setdefault(name, {"settings": {}})
        if "missing" in message:
            known["missing"] = message["missing"]
            self.progress.console.print(f"{name}: {message['missing']}")
        else:
            known.pop("missing", None)
            known["version"] = message["version"]
            known["settings"][str(threads)] = message["settings"]

    def measure_memory(self) -> None:
        """The memory case, once each."""
        self.results["memory"] = []
        threads = max(self.arguments.threads)
        for name in MEMORY_RIVALS:
            if name not in self.arguments.rivals:
                continue
            self.show(f"memory of {name}")
            for message in run("benchmarks.memory", name, str(threads)):
                if "memory" in message:
                    self.results["memory"].append(message["memory"])
        store.save(self.path, self.results)


def _title(threads: int, cell: Cell, mode: str) -> str:
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{count}, {cell.name}, {mode.replace('_', ' + ')}"


def main() -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<42}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Drawn between blocks only: a thread that draws would take time from a core that is measured.
    with Progress(*columns, console=console, auto_refresh=False, speed_estimate_period=600) as bar:
        session = Session(parse(), bar)
        try:
            for threads in session.arguments.threads:
                session.measure(threads)
            if not session.arguments.no_memory:
                session.measure_memory()
        except KeyboardInterrupt:
            console.print("interrupted; --resume goes on from here")
    console.print(f"results: {session.path}")


if __name__ == "__main__":
    main()
