"""Layers with all their operands, and three ways to solve them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from tolerance import Named
from torch import Tensor

from fused_bptt import _autograd, _ops
from fused_bptt import _reference as reference

TANH, RELU = _ops.TANH, _ops.RELU
#: The results of `layer_backward`.
BARS = ("x_bar", "h0_bar", "weight_ih_bar", "weight_hh_bar", "bias_bar")
OPERANDS = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "g", "g_last")


@dataclass
class Layer:
    """The operands of a layer; one group has no dimension of its own in weight_hh."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    G: int = 1
    reverse_groups: int = 0
    lengths: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float64
    x: Tensor = field(init=False, repr=False)
    weight_ih: Tensor = field(init=False, repr=False)
    weight_hh: Tensor = field(init=False, repr=False)
    bias_ih: Tensor | None = field(init=False, repr=False)
    bias_hh: Tensor | None = field(init=False, repr=False)
    h0: Tensor = field(init=False, repr=False)
    g: Tensor | None = field(init=False, repr=False)
    g_last: Tensor | None = field(init=False, repr=False)
    batch_sizes: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

        def uniform(*shape: int, bound: float = 1) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
            return ((2 * drawn - 1) * bound).to(self.dtype)

        rows: tuple[int, ...] = (self.T, self.B)
        if self.lengths is not None:
            sizes = [sum(length > t for length in self.lengths) for t in range(self.T)]
            self.batch_sizes = torch.tensor(sizes, dtype=torch.int64)
            rows = (sum(sizes),)
        units, square = self.G * self.H, (self.G, self.H, self.H)
        self.x = uniform(*rows, self.I, bound=2)
        self.weight_ih = uniform(units, self.I, bound=max(self.H, 1) ** -0.5)
        self.weight_hh = uniform(*square[self.G == 1 :], bound=max(self.H, 1) ** -0.5)
        self.bias_ih, self.bias_hh = uniform(units), uniform(units)
        self.h0, self.g_last = uniform(self.G, self.B, self.H), uniform(self.G, self.B, self.H)
        self.g = uniform(*rows, units)

    @property
    def name(self) -> str:
        packed = "" if self.lengths is None else f"-packed{len(self.lengths)}x{self.T}"
        groups = f"G{self.G}r{self.reverse_groups}"
        return f"T{self.T}-B{self.B}-I{self.I}-H{self.H}-{groups}{packed}"

    def __str__(self) -> str:
        return f"{self.name}-{str(self.dtype).removeprefix('torch.')}"

    def but(self, **operands: Tensor | None) -> Layer:
        """The same layer with other operands."""
        other = copy(self)
        for name, value in operands.items():
            setattr(other, name, value)
        return other

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """The same layer with each of its operands changed."""
        values = {name: getattr(self, name) for name in OPERANDS}
        return self.but(**{n: None if v is None else change(v) for n, v in values.items()})

    def to(self, dtype: torch.dtype) -> Layer:
        """The same numbers in another type."""
        other = self.mapped(lambda x: x.to(dtype))
        other.dtype = dtype
        return other

    def without_biases(self) -> Layer:
        return self.but(bias_ih=None, bias_hh=None)

    def away_from_the_kink(self) -> Layer:
        """Biases of alternate sign and weights so small that no sum comes near zero: there, in few
        bits, two right computations choose different slopes."""
        signs = 1 - 2 * (torch.arange(self.G * self.H, dtype=self.dtype) % 2)
        return self.but(
            x=self.x / 8,
            weight_ih=self.weight_ih / 4,
            weight_hh=self.weight_hh / 4,
            bias_ih=3 * signs,
            bias_hh=torch.zeros_like(signs),
        )

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.G, self.H))


def arguments(p: Layer, phi: int) -> tuple[Any, ...]:
    """Those of the operator `layer`."""
    weights = (p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh)
    return (p.x, *weights, p.h0, p.batch_sizes, p.reverse_groups, phi)


def backward_arguments(p: Layer, h: Tensor, phi: int) -> tuple[Any, ...]:
    """Those of the operator `layer_backward` but for what is needed."""
    weights = (p.weight_ih, p.weight_hh)
    return (p.g, p.g_last, h, p.x, *weights, p.h0, p.batch_sizes, p.reverse_groups, phi)


def forward(p: Layer, phi: int) -> Named:
    return dict(zip(("h", "last"), _ops.layer(*arguments(p, phi)), strict=True))


def backward(p: Layer, h: Tensor, phi: int) -> Named:
    *bars, _ = _ops.layer_backward(*backward_arguments(p, h, phi), True, True, True, True)
    return dict(zip(BARS, bars, strict=True))


def solved(p: Layer, phi: int) -> Named:
    """Both operators."""
    found = forward(p, phi)
    return found | backward(p, found["h"], phi)


def composed(p: Layer, phi: int) -> Named:
    """The same of the primitives, with torch's products around them."""
    rows = p.x.flatten(0, -2) @ p.weight_ih.t()
    if p.bias_ih is not None:
        rows = torch.addmm(p.bias_ih + p.bias_hh, p.x.flatten(0, -2), p.weight_ih.t())
    h = rows.reshape(*p.x.shape[:-1], -1)
    u = h if p.G == 1 else p.split(h)
    last = _ops.recurrence_(u, p.weight_hh, p.h0, p.batch_sizes, p.reverse_groups, phi)
    return {"h": h, "last": last} | composed_backward(p, h, phi)


def composed_backward(p: Layer, h: Tensor, phi: int) -> Named:
    needed = (True, True, True, True)
    bars = _autograd._composed_layer_backward(*backward_arguments(p, h, phi), *needed)
    return dict(zip(BARS, bars[: len(BARS)], strict=True))


def taped(p: Layer, phi: int) -> Named:
    """The plain loop, and torch's own autograd of it."""
    leaves = {name: getattr(p, name) for name in OPERANDS[:6]}
    leaves = {name: v.clone().requires_grad_() for name, v in leaves.items() if v is not None}
    u = leaves["x"] @ leaves["weight_ih"].t()
    if p.bias_ih is not None:
        u = u + (leaves["bias_ih"] + leaves["bias_hh"])
    weight = leaves["weight_hh"].view(p.G, p.H, p.H)
    walk = (p.batch_sizes, p.reverse_groups, phi)
    h, last = reference.recurrence(p.split(u), weight, leaves["h0"], *walk)
    h = h.flatten(-2)
    pairs = [(y, c) for y, c in ((h, p.g), (last, p.g_last)) if c is not None]
    torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])
    bars = [leaves[name].grad for name in ("x", "h0", "weight_ih", "weight_hh")]
    bars.append(leaves["bias_ih"].grad if p.bias_ih is not None else None)
    found = {"h": h.detach(), "last": last.detach()}
    return found | {n: b for n, b in zip(BARS, bars, strict=True) if b is not None}


def only(found: Named, names: Iterable[str]) -> Named:
    return {name: found[name] for name in names}
