"""PNG heat maps of results. Never measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks import tables
from benchmarks.cells import BATCHES, HIDDEN_SIZES
from benchmarks.results import Block

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import TwoSlopeNorm

# The colour says who is ahead and by how much, up to this factor either way; the number says all.
_LIMIT = 32.0


def draw(results: Mapping[str, Any], mode: str, path: Path) -> None:
    """Times faster than each rival over B and H: a row a rival, a column a thread count."""
    rivals, counts = tables.opponents(results), tables.thread_counts(results)
    shape = (len(rivals), len(counts))
    figure, axes = plt.subplots(
        *shape, figsize=(5.2 * shape[1], 0.5 + 2.9 * shape[0]), squeeze=False, layout="constrained"
    )
    norm = TwoSlopeNorm(0.0, -np.log2(_LIMIT), np.log2(_LIMIT))
    for row, rival in zip(axes, rivals, strict=True):
        for axis, threads in zip(row, counts, strict=True):
            found = tables.grid(tables.select(results, threads, mode))
            _panel(axis, found, rival, norm)
            axis.set_title(
                f"vs {tables.NAMES.get(rival, rival)}, {tables.count(threads)}", fontsize=10
            )
    figure.suptitle(
        f"Times faster than each rival, {tables.MODE_NAMES[mode]}, T=100, float32\n"
        "purple: fused_bptt ahead, orange: behind",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(
    axis: plt.Axes, found: Mapping[tuple[int, int], Block], rival: str, norm: TwoSlopeNorm
) -> None:
    values = np.full((len(BATCHES), len(HIDDEN_SIZES)), np.nan)
    for i, B in enumerate(BATCHES):
        for j, H in enumerate(HIDDEN_SIZES):
            ratio = found[B, H].ratio(rival, tables.OURS) if (B, H) in found else None
            if ratio is not None:
                values[i, j] = ratio.median
    axis.imshow(np.log2(values), cmap="PuOr", norm=norm, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = abs(np.log2(value)) > 0.55 * np.log2(_LIMIT)
            colour = "white" if dark else "black"
            axis.text(j, i, tables.number(value), ha="center", va="center", color=colour)
    axis.set_xticks(range(len(HIDDEN_SIZES)), [str(H) for H in HIDDEN_SIZES])
    axis.set_yticks(range(len(BATCHES)), [str(B) for B in BATCHES])
    axis.set_xlabel("H")
    axis.set_ylabel("B")
