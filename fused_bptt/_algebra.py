"""What both tables of derivatives are written with: products, sums and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops
from ._steps import Steps


def activate(x: Tensor, phi: int) -> Tensor:
    """φ(x)."""
    if phi == _ops.SOFTPLUS:
        return torch.logaddexp(x, torch.zeros_like(x))  # F.softplus has a threshold
    functions = {_ops.TANH: torch.tanh, _ops.RELU: torch.relu, _ops.SIGMOID: torch.sigmoid}
    return functions[phi](x) if phi in functions else x


def slope(r: Tensor, phi: int) -> Tensor:
    """φ' where φ is r."""
    if phi == _ops.TANH:
        return 1 - r * r
    if phi == _ops.RELU:
        return (r > 0).to(r.dtype)
    if phi == _ops.SIGMOID:
        return r - r * r
    return -torch.expm1(-r) if phi == _ops.SOFTPLUS else torch.ones_like(r)


def curvature(r: Tensor, phi: int) -> Any:
    """The derivative of :func:`slope` in r, where it is not zero everywhere; 1 of ``GIVEN``."""
    if phi == _ops.TANH:
        return -2 * r
    if phi == _ops.SIGMOID:
        return 1 - 2 * r
    return torch.exp(-r) if phi == _ops.SOFTPLUS else 1


def primals(saved: Sequence[Tensor | None]) -> list[Any]:
    """Of what ``jvp`` finds saved, the values without the tangents that ``jvp`` is to make.

    torch calls ``jvp`` with forward mode off, so tangents of tangents would be lost: zero instead
    of a second derivative. With forward mode on, the saved tensors' own tangents must not count.
    """
    return [
        x if x is None or not x.is_floating_point() else forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-untyped-call]
        for x in saved
    ]


def groups_of(weight: Tensor) -> int:
    """G of weight [G, H, H]; 1 of [H, H]."""
    return weight.size(0) if weight.dim() == 3 else 1


def add(x: Tensor | None, y: Tensor) -> Tensor:
    """x + y, where nothing is zero."""
    return y if x is None else x + y


def sum_of_products(
    steps: Steps,
    weight: Tensor,
    y: Tensor,
    x: Tensor,
    x0: Tensor | None,
    replacement: Tensor | None,
    keep: bool = False,
) -> Tensor:
    """:meth:`Steps.sums_of_products` of sequences, of weight's shape."""
    rows = (steps.rows, groups_of(weight) * weight.size(-1))
    sums = steps.sums_of_products(y.reshape(rows), x.reshape(rows), x0, replacement, keep)
    return torch.stack(sums) if weight.dim() == 3 else sums[0]


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Each row of x [..., G, H] times its group's matrix [G, H, H]; G may be left out."""
    if weight.dim() == 2:
        return x @ weight
    count = math.prod(x.shape[:-2])
    rows = x.reshape(count, *weight.shape[:2]).transpose(0, 1)
    return torch.bmm(rows, weight).transpose(0, 1).reshape(x.shape)
