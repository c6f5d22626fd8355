"""The two operators: registered as PyTorch asks, and equal to the plain-torch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import FLOAT_TYPES
from primitives import Operators, Problem, problems
from tolerance import Named, assert_close, assert_exact, assert_no_worse
from torch import Tensor

import fused_bptt  # noqa: F401  loads the library
from fused_bptt import _ops
from fused_bptt import _reference as reference

PROBLEMS = problems(FLOAT_TYPES)
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
GIVEN, TANH, RELU = 0, 1, 2


def assert_equals_reference(p: Problem, solve: Callable[[Problem, Any], Named]) -> None:
    truth = solve(p.to(torch.float64), reference)
    if p.dtype == torch.float64:
        assert_close(solve(p, Operators), truth)
    else:
        assert_no_worse(solve(p, Operators), solve(p, reference), truth)


@pytest.mark.isa
@pytest.mark.parametrize("nonlinearity", [TANH, RELU])
@every_problem
def test_recurrence(problem: Problem, nonlinearity: int) -> None:
    assert_equals_reference(problem, lambda p, source: p.recurrence(source, nonlinearity))


@pytest.mark.isa
@pytest.mark.parametrize("without", ["", "v", "s0"])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("derivative", [GIVEN, TANH, RELU])
@every_problem
def test_linear_recurrence(problem: Problem, derivative: int, adjoint: bool, without: str) -> None:
    assert_equals_reference(
        problem, lambda p, source: p.linear_recurrence(source, derivative, adjoint, without)
    )


@pytest.mark.isa
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("B", range(1, 16))
def test_every_tile_meets_every_end_of_a_row(B: int, dtype: torch.dtype) -> None:
    """All numbers of rows that a tile has, with all numbers of units past the last whole vector."""
    for H in range(1, 34):
        p = Problem(T=2, B=B, G=1, H=H, dtype=dtype)
        assert_equals_reference(p, lambda p, source: p.recurrence(source, RELU))
        assert_equals_reference(p, lambda p, source: p.linear_recurrence(source, GIVEN, True))


def solve_all(p: Problem) -> Named:
    found = p.recurrence(Operators, TANH)
    for adjoint in (False, True):
        solved = p.linear_recurrence(Operators, TANH, adjoint)
        found |= {f"{name} adjoint={adjoint}": value for name, value in solved.items()}
    return found


def laid_out_otherwise(value: Tensor) -> Tensor:
    """The same values with dimensions in reversed order in memory."""
    order = tuple(reversed(range(value.dim())))
    return value.permute(order).contiguous().permute(order)


@every_problem
def test_layouts_do_not_change_the_bits(problem: Problem) -> None:
    other = problem.to(problem.dtype)
    for name in ("v", "factor", "weight", "s0"):
        setattr(other, name, laid_out_otherwise(getattr(other, name)))
    found = solve_all(other)
    assert_exact(found, solve_all(problem))
    assert all(value.is_contiguous() for value in found.values())


def test_one_group_may_be_left_out() -> None:
    """[T, B, H] with weight [H, H] is [T, B, 1, H] with weight [1, H, H]; packed alike."""
    for p in (Problem(T=5, B=3, G=1, H=9), Problem(5, 3, 1, 9, 1, (5, 4, 2))):
        expected = solve_all(p)
        p.v, p.factor, p.weight = p.v.squeeze(-2), p.factor.squeeze(-2), p.weight[0]
        found = solve_all(p)
        assert_exact({k: found[k].reshape(v.shape) for k, v in expected.items()}, expected)


@pytest.mark.parametrize("dims", [(1, 0, 2, 3), (2, 0, 1, 3)])
def test_in_place_of_a_transposed_u(dims: tuple[int, ...]) -> None:
    p = Problem(T=5, B=3, G=2, H=9)
    expected = p.recurrence(Operators, TANH)
    u = p.v.permute(dims).contiguous().permute(torch.argsort(torch.tensor(dims)).tolist())
    assert not u.is_contiguous()
    last = _ops.recurrence_(u, p.weight, p.s0, None, 0, TANH)
    assert_exact({"h": u.contiguous(), "last": last}, expected)


@pytest.mark.parametrize(
    "u",
    [torch.zeros(1, 3, 2, 5).expand(4, 3, 2, 5), torch.zeros(4, 3, 5, 2).mT],
    ids=["expanded", "last-dimension"],
)
def test_in_place_of_what_cannot_be_written(u: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"\bu: expected memory of its own.*got stride"):
        _ops.recurrence_(u, dense(2, 5, 5), dense(2, 3, 5), None, 0, TANH)


def test_expanded_operands() -> None:
    p = Problem(T=5, B=3, G=2, H=9)
    p.v, p.factor = p.v[:1].expand(5, 3, 2, 9), p.factor[:, :, :, :1].expand(5, 3, 2, 9)
    p.weight, p.s0 = p.weight[:1].expand(2, 9, 9), p.s0[:, :1].expand(2, 3, 9)
    found = solve_all(p)
    for name in ("v", "factor", "weight", "s0"):
        setattr(p, name, getattr(p, name).contiguous())
    assert_exact(found, solve_all(p))


@pytest.mark.parametrize(
    ("T", "B", "G", "H"), [(0, 3, 2, 5), (4, 0, 2, 5), (4, 3, 0, 5), (0, 0, 0, 0)]
)
def test_nothing_to_do(T: int, B: int, G: int, H: int) -> None:
    """What is carried comes out as it went in."""
    u, weight, h0 = torch.ones(T, B, G, H), torch.ones(G, H, H), torch.ones(G, B, H)
    h, last = Operators.recurrence(u, weight, h0, None, 0, TANH)
    assert_exact({"h": h}, {"h": u})
    if T == 0:
        assert_exact({"last": last}, {"last": h0})
    for adjoint in (False, True):
        for s0 in (h0, None):
            s, last = _ops.linear_recurrence(u, u, weight, s0, None, 0, GIVEN, adjoint)
            assert_exact({"s": s}, {"s": u})
            if T == 0:
                assert_exact({"last": last}, {"last": torch.zeros_like(h0) if s0 is None else s0})


def dense(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "u-dimensions": ("u", {"u": dense(4, 3, 5)}),
    "u-dimensions-one-group": ("u", {"weight": dense(5, 5)}),
    "weight-dimensions": ("weight", {"weight": dense(5)}),
    "u-type": ("u", {"u": dense(4, 3, 2, 5, dtype=torch.int64)}),
    "weight-groups": ("weight", {"weight": dense(1, 5, 5)}),
    "weight-square": ("weight", {"weight": dense(2, 5, 4)}),
    "weight-type": ("weight", {"weight": dense(2, 5, 5, dtype=torch.float64)}),
    "h0-rows": ("h0", {"h0": dense(2, 4, 5)}),
    "h0-type": ("h0", {"h0": dense(2, 3, 5, dtype=torch.bfloat16)}),
    "reverse-groups": ("reverse_groups", {"reverse_groups": 3}),
    "reverse-groups-negative": ("reverse_groups", {"reverse_groups": -1}),
    "nonlinearity": ("nonlinearity", {"nonlinearity": 6}),
    "nonlinearity-given": ("nonlinearity", {"nonlinearity": 0}),
    "sizes-sum": ("batch_sizes", {"u": dense(9, 2, 5), "batch_sizes": torch.tensor([3, 3, 2])}),
    "sizes-grow": ("batch_sizes", {"u": dense(9, 2, 5), "batch_sizes": torch.tensor([3, 2, 4])}),
    "sizes-negative": (
        "batch_sizes",
        {"u": dense(2, 2, 5), "batch_sizes": torch.tensor([3, -1])},
    ),
    "sizes-type": (
        "batch_sizes",
        {"u": dense(6, 2, 5), "batch_sizes": torch.tensor([3, 3], dtype=torch.int32)},
    ),
    "sizes-dimensions": ("batch_sizes", {"u": dense(6, 2, 5), "batch_sizes": torch.tensor([[6]])}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_operands_are_named(name: str) -> None:
    """No kernel runs on operands that do not fit: the error says name, expected and got."""
    culprit, wrong = WRONG[name]
    right = {
        "u": dense(4, 3, 2, 5),
        "weight": dense(2, 5, 5),
        "h0": dense(2, 3, 5),
        "batch_sizes": None,
        "reverse_groups": 1,
        "nonlinearity": TANH,
    }
    _ops.recurrence_(**right)
    with pytest.raises(RuntimeError, match=rf"\b{culprit}: expected .*got"):
        _ops.recurrence_(**(right | wrong))


@pytest.mark.parametrize(
    ("culprit", "wrong"),
    [
        ("factor", {"factor": dense(24, 5)}),
        ("factor", {"factor": dense(4, 3, 2, 5, dtype=torch.int64)}),
        ("s0", {"s0": dense(2, 5)}),
        ("derivative", {"derivative": -1}),
        ("v", {"v": dense(4, 3, 2, 4)}),
        ("v", {"v": dense(4, 3, 2, 5, dtype=torch.bfloat16)}),
    ],
    ids=["factor-shape", "factor-type", "s0-shape", "derivative", "v-shape", "v-type"],
)
def test_wrong_operands_of_the_linear_recurrence(culprit: str, wrong: dict[str, Any]) -> None:
    right = {
        "factor": dense(4, 3, 2, 5),
        "v": dense(4, 3, 2, 5),
        "weight": dense(2, 5, 5),
        "s0": None,
        "batch_sizes": None,
        "reverse_groups": 1,
        "derivative": GIVEN,
        "adjoint": False,
    }
    _ops.linear_recurrence(**right)
    with pytest.raises(RuntimeError, match=rf"\b{culprit}: expected .*got"):
        _ops.linear_recurrence(**(right | wrong))


def test_operands_on_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="one device, got cpu, meta"):
        _ops.recurrence_(dense(4, 3, 5), dense(5, 5).to("meta"), dense(1, 3, 5), None, 0, TANH)


def test_a_lazy_copy_is_not_overwritten_through() -> None:
    u = torch.randn(4, 3, 5)
    before = u.clone()
    _ops.recurrence_(torch._lazy_clone(u), dense(5, 5), dense(1, 3, 5), None, 0, TANH)
    assert torch.equal(u, before)


def test_batch_sizes_whose_sum_overflows_are_refused() -> None:
    sizes = torch.tensor([2**62] * 4)
    with pytest.raises(RuntimeError, match=r"\bbatch_sizes: expected.*got"):
        _ops.recurrence_(dense(0, 2, 5), dense(2, 5, 5), dense(2, 3, 5), sizes, 0, TANH)
