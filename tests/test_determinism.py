"""The same bits: from run to run, on any number of threads, however the batch is split."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import LENGTHS, WIDE, Case, ids
from helpers import FLOAT_TYPES, outputs, run_case
from primitives import Operators, Problem
from tolerance import Named, assert_exact

import fused_bptt

# The product W_ih x is PyTorch's, which promises less for many threads than the primitives do.
THREADS_OF_PRODUCTS = (1, 2)
THREADS = (1, 2, 3, 7)

CASES = (
    *WIDE,
    Case("long", T=60, B=33, I=40, H=70),
    Case("one-row", T=60, B=1, I=40, H=130),
    Case("relu", T=40, B=17, I=9, H=97, nonlinearity="relu", num_layers=2),
    Case("packed", T=7, B=16, I=9, H=131, lengths=LENGTHS["tiles"], bidirectional=True),
)

# Work that is split by rows, by columns, by groups, by two of them, and with a meeting each step.
PROBLEMS = (
    Problem(T=40, B=67, G=1, H=61),
    Problem(T=60, B=3, G=1, H=331),
    Problem(T=20, B=21, G=3, H=97, reverse_groups=1),
    Problem(T=100, B=1, G=1, H=640),
    Problem(
        T=70,
        B=16,
        G=2,
        H=131,
        reverse_groups=1,
        lengths=tuple(10 * n for n in sorted(LENGTHS["tiles"])[::-1]),
    ),
    Problem(T=60, B=70, G=1, H=61, lengths=tuple(60 - row // 2 for row in range(70))),
)

Primitive = Callable[[Problem], Named]

PRIMITIVES: dict[str, Primitive] = {
    "tanh": lambda p: p.recurrence(Operators, 1),
    "relu": lambda p: p.recurrence(Operators, 2),
    "linear": lambda p: p.linear_recurrence(Operators, 0, adjoint=False),
    "adjoint": lambda p: p.linear_recurrence(Operators, 1, adjoint=True, without="s0"),
}
each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
each_primitive = pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES.keys())


@each_type
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_forward_on_one_thread_and_on_two(case: Case, dtype: torch.dtype) -> None:
    results = []
    for threads in THREADS_OF_PRODUCTS:
        torch.set_num_threads(threads)
        results.append(outputs(case.module(fused_bptt.RNN, dtype), *case.inputs(dtype)))
    for result in results[1:]:
        assert_exact(result, results[0])


@each_type
@each_primitive
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_primitives_on_any_number_of_threads(
    problem: Problem, primitive: Primitive, dtype: torch.dtype
) -> None:
    p = problem.to(dtype)
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(primitive(p))
    for result in results[1:]:
        assert_exact(result, results[0])


@each_type
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_two_runs_are_one(case: Case, dtype: torch.dtype) -> None:
    assert_exact(*(run_case(case, fused_bptt.RNN, dtype) for _ in range(2)))


def rows_of(p: Problem, begin: int, end: int) -> Problem:
    part = p.to(p.dtype)
    part.B = end - begin
    part.v, part.factor = p.v[:, begin:end], p.factor[:, begin:end]
    part.s0 = p.s0[:, begin:end]
    return part


@each_type
@each_primitive
@pytest.mark.parametrize("H", [5, 33, 64])
def test_rows_alone_are_rows_of_the_batch(H: int, primitive: Primitive, dtype: torch.dtype) -> None:
    B = 29
    p = Problem(T=9, B=B, G=2, H=H, reverse_groups=1, dtype=dtype)
    whole = primitive(p)
    for size in (1, 2, 3, 7, 14, 15, 28):
        parts = [primitive(rows_of(p, b, min(b + size, B))) for b in range(0, B, size)]
        assert_exact({name: torch.cat([part[name] for part in parts], 1) for name in whole}, whole)


@each_type
@each_primitive
def test_a_packed_row_is_a_padded_row(primitive: Primitive, dtype: torch.dtype) -> None:
    """Equal lengths: packed or not is a matter of layout alone."""
    padded = Problem(T=9, B=5, G=2, H=33, reverse_groups=1, dtype=dtype)
    packed = padded.to(dtype)
    packed.batch_sizes = torch.full((9,), 5)
    packed.v, packed.factor = packed.v.flatten(0, 1), packed.factor.flatten(0, 1)
    expected = primitive(padded)
    first = next(iter(expected))
    assert_exact(primitive(packed), expected | {first: expected[first].flatten(0, 1)})
