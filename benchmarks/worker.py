"""Measures in a process of its own, at one thread count; measure.py starts it.

Reads its orders as JSON from the command line and writes a JSON object a line, each after a mark
that tells it from what libraries print.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.cells import Cell
from benchmarks.contention import Elsewhere
from benchmarks.isolation import isolate
from benchmarks.results import DISTURBED

if TYPE_CHECKING:  # torch is imported once the process has its cores
    from benchmarks.data import Data, Reference
    from benchmarks.rivals import Prepared, Rival

MARK = "@fused-bptt-benchmark "

# A block during which others used the cores is measured again, at most so often in all; the attempt
# that had most of the cores counts, whatever it gave, and the file says how much others took.
ATTEMPTS = 3


def send(**message: Any) -> None:
    print(MARK + json.dumps(message), flush=True)


def present(names: Sequence[str], threads: int) -> dict[str, Rival]:
    """Those that can be measured here; says of everyone who they are, or why not."""
    from benchmarks.rivals import RIVALS

    found = {}
    for name in names:
        rival = RIVALS[name]
        why = rival.missing()
        if why is None:
            found[name] = rival
            send(rival=name, version=rival.version(), settings=rival.settings(threads))
        else:
            send(rival=name, missing=why)
    return found


def check(
    rival: Rival, data: Data, reference: Reference, threads: int
) -> tuple[Prepared | None, dict[str, Any]]:
    """A rival ready to be timed, and its error; or None, and what is wrong with it."""
    try:
        prepared = rival.prepare(data, threads)
        found = prepared.results()
        error, wrong = reference.check(found)
        if wrong is None:
            alone, wrong = reference.check({**found, "output": prepared.output()})
            error = max(error, alone)
    except Exception as problem:  # whatever a rival raises is part of the result
        return None, {"wrong": f"{type(problem).__name__}: {problem}"}
    return (prepared, {"error": error}) if wrong is None else (None, {"wrong": wrong})


def undisturbed(
    affinity: list[int], measure: Callable[[], dict[str, list[float]]]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Measure until the cores were the block's own, or keep the least disturbed attempt."""
    kept: tuple[dict[str, list[float]], float | None] | None = None
    attempts = 0
    while kept is None or (kept[1] is not None and kept[1] > DISTURBED and attempts < ATTEMPTS):
        attempts += 1
        share = Elsewhere(affinity)
        samples = measure()
        elsewhere = share.so_far()
        if kept is None or kept[1] is None or elsewhere is None or elsewhere < kept[1]:
            kept = samples, elsewhere
    return kept[0], {"elsewhere": kept[1], "attempts": attempts}


def blocks(orders: dict[str, Any], affinity: list[int]) -> Iterator[dict[str, Any]]:
    """What was measured, block by block."""
    import torch

    from benchmarks.data import cell_data
    from benchmarks.probe import probe
    from benchmarks.roofline import Rates, seconds_per_step
    from benchmarks.timing import interleave

    threads: int = orders["threads"]
    torch.set_num_threads(threads)
    rivals = present(orders["rivals"], threads)
    probe(threads)
    before = probe(threads)
    for entry in orders["cells"]:
        cell = Cell(**entry["cell"])
        data, reference = cell_data(cell)
        checked = {name: check(rival, data, reference, threads) for name, rival in rivals.items()}
        for mode in entry["modes"]:
            calls = {name: getattr(ready, mode) for name, (ready, _) in checked.items() if ready}
            turns = (calls, orders["rounds"], orders["turn_seconds"])
            samples, quiet = undisturbed(affinity, lambda turns=turns: interleave(*turns))
            after = probe(threads)
            limit = seconds_per_step(cell, Rates.from_probes(before, after), threads, mode)
            outcomes = {name: dict(outcome) for name, (_, outcome) in checked.items()}
            for name, seconds in samples.items():
                outcomes[name]["seconds"] = seconds
            yield {
                "cell": vars(cell),
                "threads": threads,
                "affinity": affinity,
                "mode": mode,
                "rivals": outcomes,
                "roofline_seconds": limit * cell.T,
                **quiet,
                "probes": {"before": before, "after": after},
            }
            before = after


def main() -> None:
    orders = json.loads(sys.argv[1])
    affinity = isolate(orders["threads"])
    for block in blocks(orders, affinity):
        send(block=block)


if __name__ == "__main__":
    main()
