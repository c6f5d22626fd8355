"""Problems for the two primitives, padded and packed, of every type."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from tolerance import Named
from torch import Tensor

from fused_bptt import _ops


class Operators:
    """The compiled operators with the reference's signatures: `recurrence_` on a copy of u."""

    @staticmethod
    def recurrence(u: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        h = u.clone(memory_format=torch.contiguous_format)
        last = _ops.recurrence_(h, *others)
        return h, last

    linear_recurrence = staticmethod(_ops.linear_recurrence)


@dataclass
class Problem:
    """The operands of either primitive; u is `v`, h_0 is `s0`."""

    T: int
    B: int
    G: int
    H: int
    reverse_groups: int = 0
    lengths: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float64
    v: Tensor = field(init=False, repr=False)
    factor: Tensor = field(init=False, repr=False)
    weight: Tensor = field(init=False, repr=False)
    s0: Tensor = field(init=False, repr=False)
    batch_sizes: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def uniform(*shape: int, bound: float = 1) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
            return ((2 * drawn - 1) * bound).to(self.dtype)

        rows: tuple[int, ...] = (self.T, self.B)
        if self.lengths is not None:
            sizes = [sum(length > t for length in self.lengths) for t in range(self.T)]
            self.batch_sizes = torch.tensor(sizes, dtype=torch.int64)
            rows = (sum(sizes),)
        self.v = uniform(*rows, self.G, self.H, bound=2)
        self.factor = uniform(*rows, self.G, self.H)  # a value of h, or of d
        self.weight = uniform(self.G, self.H, self.H, bound=self.H**-0.5)
        self.s0 = uniform(self.G, self.B, self.H)

    def __str__(self) -> str:
        packed = "" if self.lengths is None else f"-packed{len(self.lengths)}x{self.T}"
        kind = str(self.dtype).removeprefix("torch.")
        return f"T{self.T}-B{self.B}-G{self.G}r{self.reverse_groups}-H{self.H}{packed}-{kind}"

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another type."""
        other = Problem(self.T, self.B, self.G, self.H, self.reverse_groups, self.lengths, dtype)
        for name in ("v", "factor", "weight", "s0"):
            setattr(other, name, getattr(self, name).to(dtype))
        return other

    def recurrence(self, source: Any, nonlinearity: int) -> Named:
        """Solved by `source.recurrence`; the source is `Operators` or the reference."""
        walk = (self.batch_sizes, self.reverse_groups)
        h, last = source.recurrence(self.v, self.weight, self.s0, *walk, nonlinearity)
        return {"h": h, "last": last}

    def linear_recurrence(
        self, source: Any, derivative: int, adjoint: bool, without: str = ""
    ) -> Named:
        """Solved by `source.linear_recurrence`; `without` names an operand to leave out."""
        v, s0 = (None if name == without else getattr(self, name) for name in ("v", "s0"))
        walk = (self.batch_sizes, self.reverse_groups, derivative, adjoint)
        s, last = source.linear_recurrence(self.factor, v, self.weight, s0, *walk)
        return {"s": s, "last": last}


def problems(dtypes: tuple[torch.dtype, ...]) -> list[Problem]:
    """A few shapes, padded and packed, with each number of reversed groups."""
    sizes = [(1, 1, 1, 1, 0), (5, 3, 1, 5, 0), (5, 3, 1, 5, 1), (4, 7, 3, 17, 1), (3, 15, 2, 33, 2)]
    padded = [Problem(*size, None, dtype) for size, dtype in itertools.product(sizes, dtypes)]
    packed = [
        Problem(max(lengths), len(lengths), 2, 9, reverse, lengths, dtype)
        for lengths in ((1,), (4, 4), (6, 5, 5, 2, 1, 1))
        for reverse in (0, 1, 2)
        for dtype in dtypes
    ]
    return padded + packed
