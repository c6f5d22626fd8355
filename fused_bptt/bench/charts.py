"""The pictures of a report, each drawn from results alone, as SVG for the page and as PNG.

Colours are Okabe and Ito's, told apart by every kind of colour vision, and each rival has a marker
of its own besides. Heat maps run from orange (the rival is faster) to purple (ours is).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fused_bptt.bench import summary
from fused_bptt.bench.cells import FLOAT32, FORWARD_BACKWARD, SWEEPS, Cell
from fused_bptt.bench.results import OURS, Block

Results = Mapping[str, Any]

#: Inches; as wide as a telephone, so that a page need not shrink it.
WIDTH = 3.7

# The colour says who is ahead and by how much, up to this factor either way; the number says all.
_LIMIT = 32.0

_MARKS = {
    OURS: ("#0072B2", "o"),
    "nn.RNN": ("#E69F00", "s"),
    "onednn": ("#D55E00", "^"),
    "jax": ("#009E73", "v"),
    "keras": ("#56B4E9", "D"),
    "paddle": ("#CC79A7", "P"),
    "tensorflow": ("#000000", "X"),
    "torch.compile": ("#999999", "*"),
}
_UNKNOWN = ("#555555", ".")


@dataclass(frozen=True)
class Chart:
    """A picture: its file's name, what it shows in words, its height, and what draws it."""

    name: str
    words: str
    height: float
    draw: Callable[[Axes], None]

    def _figure(self) -> Figure:
        figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
        FigureCanvasAgg(figure)
        self.draw(figure.subplots())
        return figure

    def svg(self) -> str:
        """For a page."""
        file = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self._figure().savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    def png(self, folder: Path) -> Path:
        """Into a folder."""
        path = folder / f"{self.name}.png"
        self._figure().savefig(path, dpi=160)
        return path


def heat_maps(results: Results, threads: int, mode: str, dtype: str = FLOAT32) -> Iterator[Chart]:
    """Times faster than each rival over B and H; who comes closest first."""
    cells = summary.grid(summary.select(results, threads, mode), dtype)
    for standing in summary.standings(list(cells.values()), summary.opponents(results)):
        rival = standing.rival
        rows = len({B for B, _ in cells})
        yield Chart(
            f"ratio-{_slug(rival)}-{threads}-{mode.replace('_', '-')}"
            + ("" if dtype == FLOAT32 else f"-{dtype}"),
            f"Times faster than {summary.title(rival)} over B and H, {summary.count(threads)}, "
            f"{summary.MODE_NAMES[mode]}: {summary.number(standing.least.ratio.median)} to "
            f"{summary.number(standing.most.ratio.median)}.",
            0.95 + 0.36 * rows,
            partial(heat_map, cells=cells, rival=rival),
        )


def heat_map(axes: Axes, cells: Mapping[tuple[int, int], Block], rival: str) -> None:
    """A rival's time over ours."""
    batches = sorted({B for B, _ in cells})
    sizes = sorted({H for _, H in cells})
    values = np.full((len(batches), len(sizes)), np.nan)
    for (B, H), block in cells.items():
        ratio = block.ratio(rival, OURS)
        if ratio is not None:
            values[batches.index(B), sizes.index(H)] = ratio.median
    # The root of the logarithm: a loss by a few per cent must be seen beside a win by thirty.
    shades = np.sign(values - 1) * np.sqrt(np.abs(np.log2(values)) / np.log2(_LIMIT))
    colours = matplotlib.colormaps["PuOr"].with_extremes(bad="#eeeeee")
    axes.imshow(shades, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(j, i, "-", ha="center", va="center", color="0.4", fontsize=9)
            continue
        red, green, blue, _ = colours((shades[i, j] + 1) / 2)
        colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.52 else "black"
        weight = "bold" if value < 1 else "normal"
        text = summary.number(float(value))
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9, fontweight=weight)
    axes.set_xticks(range(len(sizes)), [str(H) for H in sizes], fontsize=8.5)
    axes.set_yticks(range(len(batches)), [str(B) for B in batches], fontsize=8.5)
    axes.tick_params(length=0)
    axes.set_xlabel("H", fontsize=9)
    axes.set_ylabel("B", fontsize=9)
    axes.set_title(f"vs {summary.title(rival)}", fontsize=10)


def limits(results: Results, threads: int) -> Iterator[Chart]:
    """Time a step against the machine's limit, a picture for each batch."""
    cells = summary.grid(summary.select(results, threads, FORWARD_BACKWARD), FLOAT32)
    for B in sorted({B for B, _ in cells}):
        row = {H: block for (batch, H), block in sorted(cells.items()) if batch == B}
        if len(row) < 2:
            continue
        yield Chart(
            f"limit-{threads}-B{B}",
            f"Microseconds a step over H at B={B}, {summary.count(threads)}, forward + backward, "
            "everyone's and the least that this machine could take.",
            4.1,
            partial(_limit, row=row, B=B),
        )


def _limit(axes: Axes, row: Mapping[int, Block], B: int) -> None:
    names = list(dict.fromkeys(name for block in row.values() for name in block.timed))
    for name in reversed(names):  # ours last, on top
        found = {H: block.seconds(name) for H, block in row.items()}
        points = {H: 1e6 * s / row[H].cell.T for H, s in found.items() if s is not None}
        _line(axes, points, name)
    least = {H: 1e6 * b.limit / b.cell.T for H, b in row.items() if b.limit is not None}
    axes.plot(
        list(least), list(least.values()), "k--", linewidth=1.2, label="limit of this machine"
    )
    _log(axes, sorted(row), "H", "µs a step", f"B = {B}")


def growths(results: Results, threads: int) -> Iterator[Chart]:
    """Seconds a call as one size grows, with fitted slopes."""
    found = summary.select(results, threads, FORWARD_BACKWARD)
    for axis in SWEEPS:
        points = {name: summary.sweep(found, axis, name) for name in _everyone(results)}
        points = {name: those for name, those in points.items() if len(those) > 1}
        if len(points.get(OURS, ())) < summary.FITTED:
            continue
        fixed = _fixed(axis)
        yield Chart(
            f"growth-{axis}-{threads}",
            f"Seconds a call, forward + backward, as {axis} grows ({fixed}), "
            f"{summary.count(threads)}; the slope is that of the largest {summary.FITTED} points.",
            4.1,
            partial(_growth, points=points, axis=axis, fixed=fixed),
        )


def _fixed(axis: str) -> str:
    """The sizes that do not grow."""
    cell = SWEEPS[axis][0]
    return ", ".join(f"{name}={getattr(cell, name)}" for name in ("B", "H", "T") if name != axis)


def _growth(
    axes: Axes, points: Mapping[str, list[tuple[int, float]]], axis: str, fixed: str
) -> None:
    for name, those in reversed(list(points.items())):
        slope = summary.slope(those)
        label = summary.title(name) + ("" if slope is None else f": {slope:.2f}")
        _line(axes, dict(those), name, label)
    sizes = sorted({size for those in points.values() for size, _ in those})
    _log(axes, sizes, axis, "seconds a call", f"as {axis} grows; {fixed} (name: slope)")


def memories(results: Results) -> Iterator[Chart]:
    """Peak memory of a step by rival, a picture for the largest case."""
    cells = summary.memory_cells(results)
    if not cells:
        return
    cell = max(cells, key=lambda cell: cell.T * cell.B * cell.H)
    found = summary.memory(results, cell)
    yield Chart(
        "memory",
        f"Megabytes that a step adds at most, forward + backward, at T={cell.T}, B={cell.B}, "
        f"H={cell.H}: "
        + ", ".join(f"{summary.title(name)} {used / 1e6:.0f}" for name, (used, _) in found.items()),
        0.9 + 0.32 * len(found),
        partial(_memory, cell=cell, found=found),
    )


def _memory(axes: Axes, cell: Cell, found: Mapping[str, tuple[int, int]]) -> None:
    ordered = sorted(found, key=lambda name: found[name][0], reverse=True)
    used = [found[name][0] / 1e6 for name in ordered]
    colours = [_MARKS.get(name, _UNKNOWN)[0] for name in ordered]
    bars = axes.barh([summary.title(name) for name in ordered], used, color=colours)
    axes.bar_label(bars, [f"{value:.0f}" for value in used], padding=3, fontsize=8.5)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("MB", fontsize=9)
    axes.set_title(f"T={cell.T}, B={cell.B}, H={cell.H}", fontsize=10)


def everything(results: Results) -> Iterator[Chart]:
    """All the charts of a report."""
    for threads in summary.thread_counts(results):
        for dtype in summary.dtypes(results):
            for mode in summary.MODE_NAMES:
                yield from heat_maps(results, threads, mode, dtype)
        yield from limits(results, threads)
        yield from growths(results, threads)
    yield from memories(results)


def overview(results: Results, path: Path, source: str) -> None:
    """One picture of the heat maps against nn.RNN and whoever comes closest to us.

    The file says which results it was drawn from.
    """
    counts = summary.thread_counts(results)
    cells = {
        threads: summary.grid(summary.select(results, threads, FORWARD_BACKWARD), FLOAT32)
        for threads in counts
    }
    everything = [block for found in cells.values() for block in found.values()]
    closest = [
        one.rival
        for one in summary.standings(everything, summary.opponents(results))
        if one.rival != "nn.RNN" and one.wins + one.evens + one.losses == len(everything)
    ][:1]
    rivals = ["nn.RNN", *closest]
    figure = Figure(
        figsize=(5.0 * len(counts), 0.4 + 2.3 * len(rivals)), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rivals), len(counts), squeeze=False)
    for row, rival in zip(axes, rivals, strict=True):
        for one, threads in zip(row, counts, strict=True):
            heat_map(one, cells[threads], rival)
            one.set_title(f"vs {summary.title(rival)}, {summary.count(threads)}", fontsize=10)
    figure.suptitle(
        "Times faster, forward + backward, T=100, float32 (purple: fused_bptt is ahead; "
        "orange and bold: behind)",
        fontsize=9.5,
    )
    figure.savefig(path, metadata={"Source": source, "Software": None})


def _everyone(results: Results) -> list[str]:
    return [OURS, *summary.opponents(results)]


def _line(axes: Axes, points: Mapping[int, float], name: str, label: str = "") -> None:
    colour, marker = _MARKS.get(name, _UNKNOWN)
    ours = name == OURS
    axes.plot(
        list(points),
        list(points.values()),
        color=colour,
        marker=marker,
        markersize=5.5 if ours else 4,
        linewidth=2.4 if ours else 1,
        label=label or summary.title(name),
    )


def _log(axes: Axes, sizes: list[int], x: str, y: str, title: str) -> None:
    """Both axes logarithmic, sizes written out, the legend below."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [_short(size) for size in sizes], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower center", ncols=2, fontsize=7,
        frameon=False, columnspacing=1, handlelength=1.8,
    )  # fmt: skip


def _short(size: int) -> str:
    if size >= 10_000 and size % 1000 == 0:
        return f"{size // 1_000_000}M" if size % 1_000_000 == 0 else f"{size // 1000}k"
    return str(size)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())
