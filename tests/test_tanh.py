"""The kernels' own tanh: how many ULP it is off, and the values that have no digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from primitives import Operators
from tolerance import TANH_ULPS
from torch import Tensor

TANH = 1


def fused_tanh(z: Tensor) -> Tensor:
    """tanh of every element: one step of as many recurrences as there are elements."""
    H = 64
    padded = torch.cat([z, z.new_zeros(-len(z) % H)])
    u = padded.view(1, -1, 1, H)
    zero = z.new_zeros(1, u.shape[1], H)
    h, _ = Operators.recurrence(u, z.new_zeros(1, H, H), zero, None, 0, TANH)
    return h.flatten()[: len(z)]


def every_exponent(dtype: torch.dtype, count: int) -> Tensor:
    """Random bit patterns: as many values of each exponent as of any other, and both signs."""
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(whole)
    bits = torch.randint(limits.min, limits.max, (count,), dtype=whole, generator=generator)
    values = bits.view(dtype)
    return values[values.isfinite()]


def where_it_bends(dtype: torch.dtype, count: int) -> Tensor:
    """Where tanh is neither its argument nor one, and the neighbours of the kernel's seams."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(count, dtype=dtype, generator=generator) * 40 - 20
    near = torch.rand(count, dtype=dtype, generator=generator) * 2 - 1
    seams = torch.tensor([0.625, 9.0, 9.01, 9.02, 10.0, 19.0, 19.07, 20.0], dtype=dtype)
    around = [seams]
    for toward in (math.inf, -math.inf):
        step = seams
        for _ in range(20):
            step = torch.nextafter(step, torch.full_like(step, toward))
            around.append(step)
    return torch.cat([values, near, *around, *(-seam for seam in around)])


def flushed(z: Tensor) -> Tensor:
    """Without the subnormal numbers, which the walks take for zero (docs/design.md, numerics)."""
    return torch.where(z.abs() < torch.finfo(z.dtype).tiny, 0 * z, z)


def ulps_off(found: Tensor, exact: np.ndarray, dtype: torch.dtype) -> float:
    """Largest distance from `exact` (of a wider type), in units of its last place in `dtype`."""
    kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    rounded = np.abs(exact.astype(kind))
    unit = np.spacing(np.maximum(rounded, np.finfo(kind).tiny)).astype(exact.dtype)
    return float(np.max(np.abs(found.numpy().astype(exact.dtype) - exact) / unit))


@pytest.mark.isa
def test_float32() -> None:
    z = torch.cat([every_exponent(torch.float32, 1 << 19), where_it_bends(torch.float32, 1 << 19)])
    exact = torch.tanh(flushed(z).double()).numpy()
    assert ulps_off(fused_tanh(z), exact, torch.float32) <= TANH_ULPS[torch.float32]


@pytest.mark.isa
def test_float64() -> None:
    z = torch.cat([every_exponent(torch.float64, 2000), where_it_bends(torch.float64, 2000)])
    found = fused_tanh(z)
    worst = mpmath.mpf(0)
    with mpmath.workdps(40):
        for argument, value in zip(flushed(z).tolist(), found.tolist(), strict=True):
            exact = mpmath.tanh(mpmath.mpf(argument))
            unit = math.ulp(max(abs(float(exact)), 2.0**-1022))
            worst = max(worst, abs(mpmath.mpf(value) - exact) / unit)
    assert worst <= TANH_ULPS[torch.float64]


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_without_digits(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    z = torch.tensor(
        [torch.inf, -torch.inf, torch.nan, 0.0, tiny, -tiny, tiny / 8, 1e30, -1e30], dtype=dtype
    )
    expected = torch.tensor(
        [1, -1, torch.nan, 0.0, tiny, -tiny, 0.0, 1, -1], dtype=torch.float64
    ).to(dtype)
    assert torch.equal(fused_tanh(z).nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_never_beyond_one_never_turning_back(dtype: torch.dtype) -> None:
    z = torch.linspace(-22, 22, 200_001, dtype=dtype)
    h = fused_tanh(z)
    assert h.abs().max() <= 1
    assert torch.equal(h, -fused_tanh(-z)), "odd"
    allowed = TANH_ULPS[dtype] * torch.finfo(dtype).eps
    assert (h.diff() >= -allowed).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_the_float32_result_rounded(dtype: torch.dtype) -> None:
    """All values of the type."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = fused_tanh(values.float()).to(dtype)
    found = fused_tanh(values)
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
