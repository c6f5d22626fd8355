"""What this project holds itself to: `python -m benchmarks.floors RESULTS.json` says what is short.

The exit code is 1 where something is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fused_bptt.bench import results as store
from fused_bptt.bench import summary
from fused_bptt.bench.cells import FORWARD_BACKWARD, HIDDEN_SIZES, MEMORY, OVERHEAD, Cell
from fused_bptt.bench.results import OURS, Block

# nn.RNN's time over ours, forward and backward, at any thread count; a row for each batch.
_NN_RNN = {
    1: (30, 30, 18, 10.5, 5, 3.3),
    8: (25, 16, 8, 4.4, 3.3, 3.4),
    32: (15, 7, 3.3, 2.15, 1.8, 1.85),
    128: (6, 3.2, 2.1, 1.7, 1.35, 1.55),
}

# Time over ours of those that are no module, where the recurrence is neither tiny nor a large
# product; elsewhere oneDNN is only never to be ahead.
_IN_THE_MIDDLE = {"onednn": 1.15, "jax": 2.0}

ROOFLINE_SHARE = 1 / 1.3  # for H >= 64
OVERHEAD_SECONDS = 100e-6  # a call, forward and backward
MEMORY_RATIO = 1.3  # over u, h, q and the returned gradients


def ratio_floor(rival: str, cell: Cell) -> float | None:
    """The least that `rival`'s time over ours may be, None where nothing is promised."""
    if not cell.in_grid:
        return None
    if rival == "nn.RNN":
        row = _NN_RNN.get(cell.B)
        return row[HIDDEN_SIZES.index(cell.H)] if row and cell.H in HIDDEN_SIZES else None
    if cell.H >= 64 and cell.B * cell.H <= 8192:
        return _IN_THE_MIDDLE.get(rival)
    return 1.0 if rival == "onednn" else None


def share_floor(cell: Cell) -> float | None:
    """The least share of the roofline, None where nothing is promised."""
    return ROOFLINE_SHARE if cell.in_grid and cell.H >= 64 else None


def _of_block(block: Block, rivals: Sequence[str]) -> Iterator[str]:
    cell = block.cell
    for rival in rivals:
        ratio, floor = block.ratio(rival, OURS), ratio_floor(rival, cell)
        if ratio is not None and floor is not None and ratio.median < floor:
            yield f"{ratio.median:.2f} times faster than {rival}, {floor:g} is promised"
    share, floor = block.roofline_share(OURS), share_floor(cell)
    if share is not None and floor is not None and share < floor:
        yield f"{share:.0%} of the limit, {floor:.0%} is promised"
    seconds = block.seconds(OURS)
    if cell == OVERHEAD and seconds is not None and seconds > OVERHEAD_SECONDS:
        yield f"a call takes {1e6 * seconds:.0f} µs, {1e6 * OVERHEAD_SECONDS:.0f} is promised"


def shortfalls(results: Mapping[str, Any]) -> Iterator[str]:
    """A line for each figure below what is promised."""
    rivals = summary.opponents(results)
    for threads in summary.thread_counts(results):
        for block in summary.select(results, threads, FORWARD_BACKWARD):
            for what in _of_block(block, rivals):
                yield f"{summary.count(threads)}, {block.cell.name}: {what}"
    used, needed = summary.memory(results, MEMORY).get(OURS, (0, 1))
    if used > MEMORY_RATIO * needed:
        yield f"memory: {used / needed:.2f} of what a step needs, {MEMORY_RATIO} is promised"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is short; the number of such figures as an exit code of 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description=__doc__)
    parser.add_argument("results", type=Path, help="a file that `fused-bptt bench` wrote")
    found = list(shortfalls(store.load(parser.parse_args(arguments).results)))
    print("\n".join(found) or "everything is as promised")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
