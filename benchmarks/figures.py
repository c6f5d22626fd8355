"""What README.md says of speed, computed from results: a table, a picture, figures in sentences.

Never measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_bptt.bench import summary
from fused_bptt.bench.cells import FLOAT32, FORWARD_BACKWARD
from fused_bptt.bench.results import BASELINE, Block
from fused_bptt.bench.summary import number, title

Results = Mapping[str, Any]


def _grid(results: Results, threads: int) -> list[Block]:
    """Forward + backward, float32, the grid over B and H."""
    found = summary.select(results, threads, FORWARD_BACKWARD)
    return list(summary.grid(found, FLOAT32).values())


def faster_than_nn_rnn(results: Results) -> str:
    """From the least to the most over the grid and all thread counts, such as `2 to 31`."""
    blocks = [b for n in summary.thread_counts(results) for b in _grid(results, n)]
    ratios = [one.ratio.median for one in summary.comparisons(blocks, [BASELINE])]
    return f"{min(ratios):.0f} to {max(ratios):.0f}"


#: What stands between `<!-- figure:NAME -->` and `<!-- /figure -->`.
FIGURES = {"faster-than-nn.RNN": faster_than_nn_rnn}


def table(results: Results, source: str, picture: str) -> str:
    """Against everyone, losses first; and how each stands."""
    lines = []
    for threads in summary.thread_counts(results):
        blocks = _grid(results, threads)
        standings = summary.standings(blocks, summary.opponents(results))
        lines += [
            f"**{summary.count(threads).capitalize()}**",
            "",
            "| rival | lost | even | won | least | mean | most |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in standings:
            least, most = one.least, one.most
            lines.append(
                f"| {title(one.rival)} | {one.losses} | {one.evens} | {one.wins} "
                f"| {number(least.ratio.median)} at {least.block.cell.name} "
                f"| {number(one.geometric_mean)} "
                f"| {number(most.ratio.median)} at {most.block.cell.name} |"
            )
        lines.append("")
    lines += [
        f"![Times faster over batch and hidden size]({picture})",
        "",
        f"{summary.machine_line(results)}. {_alone(results)}"
        f"Data: [{source}]({source}); method: [benchmarks/README.md](benchmarks/README.md).",
    ]
    B, H = (_range([getattr(b.cell, size) for b in blocks]) for size in "BH")
    return (
        "Times faster than each rival, forward + backward, over the shapes of the picture, "
        f"B in {B} and H in {H} (T=100, I=min(H, 64), float32): shapes lost, even and won, then "
        "the ratio, least, mean and most, as medians of interleaved rounds. A shape is B x H.\n\n"
        + "\n".join(lines)
    )


def _range(sizes: list[int]) -> str:
    return f"{min(sizes)} to {max(sizes)}"


def _alone(results: Results) -> str:
    """What is not a module is spared what a module costs."""
    said = "oneDNN is called from C++ without autograd, module or allocation. "
    return said if "onednn" in summary.opponents(results) else ""
