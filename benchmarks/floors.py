"""What this project holds itself to, so that a report can say where it falls short."""

from __future__ import annotations

from benchmarks.cells import HIDDEN_SIZES, Cell

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
    if rival == "nn.RNN":
        row = _NN_RNN.get(cell.B)
        return row[HIDDEN_SIZES.index(cell.H)] if row and cell.H in HIDDEN_SIZES else None
    if cell.H >= 64 and cell.B * cell.H <= 8192:
        return _IN_THE_MIDDLE.get(rival)
    return 1.0 if rival == "onednn" else None


def share_floor(cell: Cell) -> float | None:
    """The least share of the roofline, None where nothing is promised."""
    return ROOFLINE_SHARE if cell.H >= 64 else None
