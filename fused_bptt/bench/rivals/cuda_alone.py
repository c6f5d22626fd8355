"""Implementations that have no kernels for a CPU: named, never timed here.

`make gpu` in a clone times them on a GPU, beside nn.RNN on cuDNN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data


@dataclass(frozen=True)
class CudaAlone:
    """Someone who cannot take part on a CPU."""

    name: str

    def missing(self) -> str | None:
        """Always."""
        return "has kernels for a GPU alone (`make gpu` in a clone measures there)"

    def refuses(self, cell: Cell) -> str | None:
        """Everything."""
        return self.missing()

    def version(self) -> NoReturn:
        """There is none here."""
        raise NotImplementedError(self.missing())

    def settings(self, threads: int) -> NoReturn:
        """There are none here."""
        raise NotImplementedError(self.missing())

    def prepare(self, data: Data, threads: int) -> NoReturn:
        """It cannot be prepared here."""
        raise NotImplementedError(self.missing())
