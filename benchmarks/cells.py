"""The shapes that are measured. Imports nothing heavy, so that reading results stays cheap."""

from __future__ import annotations

from dataclasses import dataclass

BATCHES = (1, 8, 32, 128)
HIDDEN_SIZES = (16, 64, 128, 256, 512, 1024)
STEPS = 100

FORWARD_BACKWARD = "forward_backward"
FORWARD = "forward"
MODES = (FORWARD_BACKWARD, FORWARD)


@dataclass(frozen=True)
class Cell:
    """One shape: batch B, hidden size H, T steps, input size I."""

    B: int
    H: int
    T: int = STEPS
    I: int = 0  # noqa: E741 -- the field's own name; 0 stands for min(H, 64)

    def __post_init__(self) -> None:
        if self.I == 0:
            object.__setattr__(self, "I", min(self.H, 64))

    @property
    def name(self) -> str:
        """BxH, with the number of steps where it is not the grid's."""
        return f"{self.B}x{self.H}" + ("" if self.T == STEPS else f"xT{self.T}")

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read what `name` writes, such as 8x64 or 1x16xT1."""
        sizes, _, steps = text.partition("xT")
        try:
            B, H = (int(size) for size in sizes.split("x"))
            T = int(steps) if steps else STEPS
        except ValueError:
            raise ValueError(f"expected a cell such as 8x64 or 1x16xT1, got {text!r}") from None
        return cls(B, H, T)


GRID = tuple(Cell(B, H) for B in BATCHES for H in HIDDEN_SIZES)

# What a call costs beside the arithmetic shows where there is next to none.
OVERHEAD = Cell(B=1, H=16, T=1)

# What a training step adds to memory.
MEMORY = Cell(B=32, H=256, T=1000)
