"""What is timed: the grid, and a few cells with more layers, directions or ragged rows."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch

#: The name of a precision, the dtype, and whether PyTorch may use TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
B_SIZES = (1, 16, 64, 256)
H_SIZES = (64, 128, 256, 320, 512, 1024, 2048)
T_SIZES = (128, 1024)


@dataclass(frozen=True)
class Cell:
    """One module and one batch; I = min(H, 256)."""

    precision: str
    T: int
    B: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False

    @property
    def I(self) -> int:  # noqa: E743, N802
        return min(self.H, 256)

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    @property
    def name(self) -> str:
        extra = f"-{self.layers}layers" * (self.layers > 1)
        extra += "-bidirectional" * self.bidirectional + "-packed" * self.packed
        return f"{self.precision}-T{self.T}-B{self.B}-H{self.H}{extra}"

    def lengths(self) -> torch.Tensor:
        """Of packed rows: from T down to a quarter of it, evenly."""
        return torch.linspace(self.T, max(self.T // 4, 1), self.B).round().to(torch.int64)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "I": self.I, **asdict(self)}


def allow_tf32(cell: Cell) -> None:
    """Sets PyTorch's switches for RNNs and for products, the same for every rival."""
    word = "tf32" if PRECISIONS[cell.precision][1] else "ieee"
    torch.backends.cudnn.rnn.fp32_precision = word
    torch.backends.cuda.matmul.fp32_precision = word


def grid(only: str = "") -> list[Cell]:
    """All cells, those worth most first; or those of `BxHxT`, parted by blanks, in `only`."""
    found = [
        Cell(precision, T, B, H)
        for T, precision, B, H in itertools.product(T_SIZES, PRECISIONS, B_SIZES, H_SIZES)
    ]
    if only:
        wanted = {tuple(map(int, word.split("x"))) for word in only.split()}
        return [cell for cell in found if (cell.B, cell.H, cell.T) in wanted]
    for precision, H in itertools.product(("tf32", "bf16"), (256, 512)):
        base = {"precision": precision, "T": 128, "B": 64, "H": H}
        found += [
            Cell(**base, bidirectional=True),
            Cell(**base, layers=2),
            Cell(**base, packed=True),
            Cell(**base, packed=True, bidirectional=True),
        ]
    return found
