"""What became slower from one revision to another, by interleaved rounds of both. Never measures.

The older revision takes part twice: what differs between its two selves is the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fused_bptt.bench.results import Block, Spread, blocks


@dataclass(frozen=True)
class Names:
    """Of those who take part, in the results."""

    old: str
    new: str

    @property
    def again(self) -> str:
        """The older revision a second time."""
        return f"{self.old} again"


@dataclass(frozen=True)
class Change:
    """Of one block: time of the new revision over that of the old, by round."""

    block: Block
    ratio: Spread
    noise: Spread  # the old one's second self over its first

    @property
    def verdict(self) -> str:
        """`slower` or `faster` beyond the noise, else `the same`.

        The middle half of the rounds must agree, and lie wholly outside that of the noise.
        """
        if self.ratio.lower > max(1.0, self.noise.upper):
            return "slower"
        if self.ratio.upper < min(1.0, self.noise.lower):
            return "faster"
        return "the same"


def changes(results: Mapping[str, Any], names: Names) -> Iterator[Change]:
    """Of every block in which all three were timed."""
    for block in blocks(results):
        ratio, noise = block.ratio(names.new, names.old), block.ratio(names.again, names.old)
        if ratio is not None and noise is not None:
            yield Change(block, ratio, noise)


def _percent(spread: Spread) -> str:
    median, lower, upper = (100 * (x - 1) for x in (spread.median, spread.lower, spread.upper))
    return f"{median:+.1f} % ({lower:+.1f} to {upper:+.1f})"


def lines(results: Mapping[str, Any], names: Names) -> list[str]:
    """What became slower first, then the others, and the count of each."""
    found = sorted(changes(results, names), key=lambda change: -change.ratio.median)
    order = ("slower", "the same", "faster")
    head = f"{'shape':<16}{'threads':>8} {'mode':<17}{names.old + ', µs':>16}"
    said = [f"{head}{names.new + ', µs':>24}  {'change':<28}{'noise':<28}"]
    for verdict in order:
        for change in found:
            if change.verdict != verdict:
                continue
            block = change.block
            old, new = block.seconds(names.old), block.seconds(names.new)
            assert old is not None
            assert new is not None
            said.append(
                f"{block.cell.name:<16}{block.threads:>8} {block.mode.replace('_', '+'):<17}"
                f"{1e6 * old:>16.1f}{1e6 * new:>24.1f}  {_percent(change.ratio):<28}"
                f"{_percent(change.noise):<28}{verdict}" + (" (disturbed)" * block.disturbed)
            )
    counts = [f"{sum(c.verdict == verdict for c in found)} {verdict}" for verdict in order]
    said.append(f"{names.new} against {names.old}: {', '.join(counts)}")
    wrong = {
        (name, block.cell.name): outcome["wrong"]
        for block in blocks(results)
        for name, outcome in block.raw["rivals"].items()
        if "wrong" in outcome
    }
    said += [f"{name}, {cell}: wrong, not timed: {why}" for (name, cell), why in wrong.items()]
    return said
