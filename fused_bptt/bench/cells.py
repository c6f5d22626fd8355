"""The shapes that are measured. Imports nothing heavy, so that reading results stays cheap."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

BATCHES = (1, 8, 32, 128)
HIDDEN_SIZES = (16, 64, 128, 256, 512, 1024)
STEPS = 100
FLOAT32 = "float32"
DTYPES = (FLOAT32, "float64", "bfloat16")

FORWARD_BACKWARD = "forward_backward"
FORWARD = "forward"
MODES = (FORWARD_BACKWARD, FORWARD)

_NAME = re.compile(r"(\d+)x(\d+)(?:xT(\d+))?(?:xL(\d+))?(?::(\w+))?")


@dataclass(frozen=True)
class Cell:
    """One shape: batch B, hidden size H, T steps, input size I, layers; and its dtype."""

    B: int
    H: int
    T: int = STEPS
    I: int = 0  # noqa: E741 -- the field's own name; 0 stands for min(H, 64)
    layers: int = 1
    dtype: str = FLOAT32

    def __post_init__(self) -> None:
        """Settle the input size."""
        if self.I == 0:
            object.__setattr__(self, "I", min(self.H, 64))

    @property
    def name(self) -> str:
        """BxH, with the number of steps, layers and the dtype where they are not the grid's."""
        return (
            f"{self.B}x{self.H}"
            + ("" if self.T == STEPS else f"xT{self.T}")
            + ("" if self.layers == 1 else f"xL{self.layers}")
            + ("" if self.dtype == FLOAT32 else f":{self.dtype}")
        )

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read what `name` writes, such as 8x64, 1x16xT1, 8x64xL4 or 8x64:bfloat16.

        Raises:
            ValueError: it is no such name, or a size is 0 or the dtype unknown.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise ValueError(f"shape: expected one such as 8x64 or 1x16xT1000xL2, got {text!r}")
        B, H, T, layers = (int(size) if size else None for size in found.groups()[:4])
        assert B is not None
        assert H is not None
        cell = cls(
            B,
            H,
            STEPS if T is None else T,
            layers=1 if layers is None else layers,
            dtype=found[5] or FLOAT32,
        )
        if min(cell.B, cell.H, cell.T, cell.layers) < 1:
            raise ValueError(f"shape: expected sizes of at least 1, got {text!r}")
        if cell.dtype not in DTYPES:
            raise ValueError(f"shape: expected a dtype of {', '.join(DTYPES)}, got {text!r}")
        return cell

    @property
    def in_grid(self) -> bool:
        """Whether it has the number of steps and layers of the grid over B and H."""
        return (self.T, self.layers) == (STEPS, 1)


GRID = tuple(Cell(B, H) for B in BATCHES for H in HIDDEN_SIZES)

# What a call costs beside the arithmetic shows where there is next to none.
OVERHEAD = Cell(B=1, H=16, T=1)

# What a training step adds to memory, beside the grid.
MEMORY = Cell(B=32, H=256, T=1000)

# torch.compile unrolls a loop over time: a short one compiles in seconds, one of 100 steps in half
# a minute.
SHORT = (Cell(B=8, H=64, T=20), Cell(B=32, H=256, T=20))

# Cost as the work grows: one size at a time, the others fixed. Points that are in the grid are
# measured there.
SWEEPS: dict[str, tuple[Cell, ...]] = {
    "T": tuple(Cell(B=1, H=16, T=T) for T in (100, 1000, 10_000, 100_000, 1_000_000)),
    "B": tuple(Cell(B=B, H=64) for B in (1, 8, 32, 128, 512, 4096)),
    "H": tuple(Cell(B=1, H=H) for H in (*HIDDEN_SIZES, 2048, 4096)),
    "layers": tuple(Cell(B=8, H=64, layers=layers) for layers in (1, 2, 4, 8)),
}


def _unique(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(dict.fromkeys(cells))


@dataclass(frozen=True)
class Preset:
    """What is measured unless options say otherwise."""

    cells: tuple[Cell, ...]
    forward_too: tuple[Cell, ...]  # in these, the forward alone is timed as well
    memory: tuple[Cell, ...]  # in ascending order
    rounds: int
    turn_seconds: float
    call_seconds: float  # a rival of which a call would take longer is left out
    block_seconds: float  # fewer rounds where a block would take longer, but three at least

    def of_dtypes(self, dtypes: Sequence[str]) -> Preset:
        """The same shapes in each of the dtypes."""

        def spread(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
            return tuple(replace(cell, dtype=dtype) for dtype in dtypes for cell in cells)

        return replace(
            self,
            cells=spread(self.cells),
            forward_too=spread(self.forward_too),
            memory=spread(self.memory),
        )

    def of_shapes(self, cells: Sequence[Cell]) -> Preset:
        """These shapes instead."""
        by_work = sorted(cells, key=lambda cell: cell.layers * cell.T * cell.B * cell.H)
        return replace(self, cells=tuple(cells), forward_too=tuple(cells), memory=_unique(by_work))


_CORNERS = (Cell(1, 16), Cell(1, 256), Cell(32, 64), Cell(32, 256))
PRESETS = {
    "quick": Preset(
        cells=(*_CORNERS, OVERHEAD),
        forward_too=(),
        memory=(Cell(32, 256),),
        rounds=5,
        turn_seconds=0.02,
        call_seconds=0.5,
        block_seconds=3.0,
    ),
    "full": Preset(
        cells=_unique((*GRID, OVERHEAD, *SHORT, *(c for sweep in SWEEPS.values() for c in sweep))),
        forward_too=(*(cell for cell in GRID if cell.B in (1, 32)), OVERHEAD),
        memory=(*sorted(GRID, key=lambda cell: cell.B * cell.H), MEMORY),
        rounds=5,
        turn_seconds=0.03,
        call_seconds=2.0,
        block_seconds=6.0,
    ),
}
