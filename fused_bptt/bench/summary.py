"""What results come to: who wins where and by how much, and how cost grows. Never measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fused_bptt.bench.cells import FORWARD, FORWARD_BACKWARD, SWEEPS, Cell
from fused_bptt.bench.results import OURS, TITLES, Block, Spread, blocks

MODE_NAMES = {FORWARD_BACKWARD: "forward + backward", FORWARD: "forward without gradient"}

# A slope is fitted to so many of a sweep's largest points.
FITTED = 3


def title(name: str) -> str:
    """How tables call a rival."""
    return TITLES.get(name, name)


def opponents(results: Mapping[str, Any]) -> list[str]:
    """Everyone that took part but us."""
    timed = {name for block in blocks(results) for name in block.timed}
    return [name for name in results["rivals"] if name != OURS and name in timed]


def thread_counts(results: Mapping[str, Any]) -> list[int]:
    """In ascending order."""
    return sorted({block.threads for block in blocks(results)})


def count(threads: int) -> str:
    """A thread count in words."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def select(results: Mapping[str, Any], threads: int, mode: str) -> list[Block]:
    """The blocks of a thread count and mode."""
    return [b for b in blocks(results) if (b.threads, b.mode) == (threads, mode)]


def grid(found: Sequence[Block], dtype: str) -> dict[tuple[int, int], Block]:
    """By B and H, the blocks of the grid's number of steps in a dtype."""
    return {
        (block.cell.B, block.cell.H): block
        for block in found
        if block.cell.in_grid and block.cell.dtype == dtype
    }


def dtypes(results: Mapping[str, Any]) -> list[str]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(block.cell.dtype for block in blocks(results)))


def number(value: float) -> str:
    """Three digits, no more than two behind the point."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


@dataclass(frozen=True)
class Comparison:
    """A rival's time over ours, in one block."""

    block: Block
    rival: str
    ratio: Spread

    @property
    def verdict(self) -> str:
        """`win` or `loss` where the middle half of the rounds agrees, else `even`."""
        if self.ratio.lower > 1:
            return "win"
        return "loss" if self.ratio.upper < 1 else "even"


def comparisons(found: Sequence[Block], rivals: Sequence[str]) -> list[Comparison]:
    """Everyone timed against us in these blocks."""
    pairs = ((block, rival, block.ratio(rival, OURS)) for block in found for rival in rivals)
    return [Comparison(block, rival, ratio) for block, rival, ratio in pairs if ratio is not None]


def losses_and_wins(results: Mapping[str, Any]) -> tuple[list[Comparison], list[Comparison]]:
    """The worst loss first; the greatest win first. Blocks that were disturbed do not count."""
    quiet = [block for block in blocks(results) if not block.disturbed]
    everything = comparisons(quiet, opponents(results))
    everything.sort(key=lambda comparison: comparison.ratio.median)
    losses = [c for c in everything if c.verdict == "loss"]
    wins = [c for c in reversed(everything) if c.verdict == "win"]
    return losses, wins


@dataclass(frozen=True)
class Standing:
    """How a rival stands against us over some blocks."""

    rival: str
    geometric_mean: float  # of its time over ours
    least: Comparison
    most: Comparison
    wins: int  # ours
    evens: int
    losses: int


def standings(found: Sequence[Block], rivals: Sequence[str]) -> list[Standing]:
    """Of every rival that was timed, who comes closest to us first."""
    standing = []
    for rival in rivals:
        mine = comparisons(found, [rival])
        if not mine:
            continue
        mine.sort(key=lambda comparison: comparison.ratio.median)
        verdicts = [comparison.verdict for comparison in mine]
        logarithms = [math.log(comparison.ratio.median) for comparison in mine]
        standing.append(
            Standing(
                rival,
                math.exp(sum(logarithms) / len(mine)),
                mine[0],
                mine[-1],
                *(verdicts.count(verdict) for verdict in ("win", "even", "loss")),
            )
        )
    return sorted(standing, key=lambda one: one.geometric_mean)


def fastest(block: Block) -> tuple[str, float] | None:
    """Who is fastest, and how many times as fast as the next; None if fewer than two were timed.

    By ratios of the same round to one of them, ours if it was timed: where two are close, medians
    of their times can contradict the ratio that stands beside.
    """
    timed = block.timed
    if len(timed) < 2:
        return None
    one = OURS if OURS in timed else timed[0]

    def ratio(slow: str, fast: str) -> float:
        found = block.ratio(slow, fast)
        return math.inf if found is None else found.median

    first, second = sorted(timed, key=lambda name: ratio(name, one))[:2]
    return first, ratio(second, first)


def size(cell: Cell, axis: str) -> int:
    """A cell's size along a sweep's axis."""
    return int(getattr(cell, axis))


def sweep(found: Sequence[Block], axis: str, rival: str) -> list[tuple[int, float]]:
    """Seconds a call by the size that grows, where a rival was timed."""
    cells = SWEEPS[axis]
    points = []
    for block in found:
        seconds = block.seconds(rival)
        if block.cell in cells and seconds is not None:
            points.append((size(block.cell, axis), seconds))
    return sorted(points)


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """The exponent with which seconds grow over the largest points; None with too few.

    Least squares on logarithms.
    """
    last = [(math.log(size), math.log(seconds)) for size, seconds in points[-FITTED:]]
    if len(last) < FITTED:
        return None
    mean_x, mean_y = (sum(values) / len(last) for values in zip(*last, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in last)
    return float(above / sum((x - mean_x) ** 2 for x, _ in last))


def memory(results: Mapping[str, Any], cell: Cell) -> dict[str, tuple[int, int]]:
    """By rival: the bytes that a step of a cell adds at most, and those that it needs."""
    return {
        entry["rival"]: (entry["extra_bytes"], sum(entry["needed_bytes"].values()))
        for entry in results["memory"]
        if Cell(**entry["cell"]) == cell and "extra_bytes" in entry
    }


def memory_cells(results: Mapping[str, Any]) -> list[Cell]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(Cell(**entry["cell"]) for entry in results["memory"]))


def machine_line(results: Mapping[str, Any]) -> str:
    """The machine and the versions in one sentence."""
    machine = results["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    virtual = ", virtual" if machine["hypervisor"] else ""
    versions = ", ".join(
        f"{title(name)} {rival['version']}"
        for name, rival in results["rivals"].items()
        if "version" in rival
    )
    return (
        f"{machine['cpu']} ({machine['cores']} cores{virtual}; {caches}; "
        f"{' '.join(machine['flags'])}); {versions}; {results['created'][:10]}"
    )


def lines(results: Mapping[str, Any]) -> list[str]:
    """Who stands where, for a terminal; losses before everything else."""
    losses, wins = losses_and_wins(results)
    said = [
        f"times faster than each rival (of {len(losses) + len(wins)} comparisons that are clear,"
    ]
    said[0] += f" {len(losses)} are lost)"
    for threads in thread_counts(results):
        for mode in MODE_NAMES:
            found = select(results, threads, mode)
            table = standings(found, opponents(results))
            if not table:
                continue
            said += ["", f"{count(threads)}, {MODE_NAMES[mode]}"]
            said.append(f"  {'':<26}{'mean':>6}{'least':>8}{'most':>7}  lost/even/won")
            for one in table:
                said.append(
                    f"  {title(one.rival):<26}{number(one.geometric_mean):>6}"
                    f"{number(one.least.ratio.median):>8}{number(one.most.ratio.median):>7}"
                    f"  {one.losses}/{one.evens}/{one.wins}"
                )
    disturbed = [block for block in blocks(results) if block.disturbed]
    if disturbed:
        said += [
            "",
            f"Other processes disturbed {len(disturbed)} of {len(results['blocks'])} blocks:",
        ]
        said[-1] += " run it again on quiet cores before quoting them."
    return said
