"""Cases whose every sum is exact: 10,000 steps, any order of summation, the same bits."""

from __future__ import annotations

import pytest
import torch
from primitives import Operators
from tolerance import Named, assert_exact
from torch import Tensor

import fused_bptt

T = 10_000
RELU = 2


def integers(*shape: int, low: int, high: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int64)


def permutation(H: int, seed: int) -> Tensor:
    return torch.randperm(H, generator=torch.Generator().manual_seed(seed))


def matrix_of(order: Tensor) -> Tensor:
    """P with (P h)_i = h_{order[i]}."""
    return torch.eye(len(order), dtype=torch.int64)[order]


def permuted_sums(v: Tensor, order: Tensor, first: Tensor) -> Tensor:
    """s_t = v_t + P s_{t-1} in integers, with `first` for P s_0: [T, B, H]."""
    sums, carried = [], first
    for step in v:
        sums.append(step + carried)
        carried = sums[-1][:, order]
    return torch.stack(sums)


def linear(
    v: Tensor, matrix: Tensor, s0: Tensor | None, dtype: torch.dtype, adjoint: bool = False
) -> Named:
    """The linear recurrence of one group with d = 1."""
    s, last = Operators.linear_recurrence(
        torch.ones_like(v[:, :, None], dtype=dtype),
        v[:, :, None].to(dtype),
        matrix[None].to(dtype),
        None if s0 is None else s0[None].to(dtype),
        None,
        0,
        0,
        adjoint,
    )
    return {"s": s[:, :, 0], "last": last[0]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("H", [1, 7, 16, 17, 33])
def test_relu_with_a_permutation(H: int, dtype: torch.dtype) -> None:
    order, B = permutation(H, seed=H), 3
    u = integers(T, B, H, low=0, high=3, seed=1)
    h0 = integers(B, H, low=0, high=9, seed=2)
    h, last = Operators.recurrence(
        u[:, :, None].to(dtype), matrix_of(order)[None].to(dtype), h0[None].to(dtype), None, 0, RELU
    )
    expected = permuted_sums(u, order, h0[:, order]).to(dtype)
    assert_exact({"h": h[:, :, 0], "last": last[0]}, {"h": expected, "last": expected[-1]})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("H", [1, 7, 16, 17, 33])
def test_linear_recurrence_with_a_permutation(H: int, dtype: torch.dtype) -> None:
    order, B = permutation(H, seed=H), 3
    v = integers(T, B, H, low=-9, high=10, seed=3)
    s0 = integers(B, H, low=-9, high=10, seed=4)
    expected = permuted_sums(v, order, s0[:, order]).to(dtype)
    assert_exact(linear(v, matrix_of(order), s0, dtype), {"s": expected, "last": expected[-1]})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("H", [1, 7, 16, 17, 33])
def test_adjoint_with_a_permutation(H: int, dtype: torch.dtype) -> None:
    """The other way in time, with the inverse permutation; r_T is added as it is."""
    order, B = permutation(H, seed=H), 3
    v = integers(T, B, H, low=-9, high=10, seed=3)
    r = integers(B, H, low=-9, high=10, seed=4)
    q = permuted_sums(v.flip(0), order.argsort(), r).flip(0)
    assert_exact(
        linear(v, matrix_of(order), r, dtype, adjoint=True),
        {"s": q.to(dtype), "last": q[0][:, order.argsort()].to(dtype)},
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_sums_that_stay_small(dtype: torch.dtype) -> None:
    """Signs alternate, so that no sum leaves the integers that the type holds."""
    H, B = 19, 5
    signs = 1 - 2 * (torch.arange(T) % 2)
    v = integers(1, B, H, low=-99, high=100, seed=5) * signs[:, None, None]
    s = v.cumsum(0).to(dtype)
    assert_exact(linear(v, torch.eye(H), None, dtype), {"s": s, "last": s[-1]})


def test_a_matrix_of_integers() -> None:
    """A nilpotent matrix: what happened more than H steps ago is forgotten, sums stay exact."""
    H, B = 6, 4
    matrix = integers(H, H, low=-3, high=4, seed=6).triu(1)
    v = integers(T, B, H, low=-9, high=10, seed=7)
    sums, state = [], torch.zeros(B, H, dtype=torch.int64)
    for step in v:
        state = step + state @ matrix.T
        sums.append(state)
    s = torch.stack(sums).double()
    assert_exact(linear(v, matrix, None, torch.float64), {"s": s, "last": s[-1]})


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_module_with_identity_weights(dtype: torch.dtype, bidirectional: bool) -> None:
    """h_t counts the inputs so far, and the gradients count steps."""
    H, B = 5, 2
    directions = 2 if bidirectional else 1
    module = fused_bptt.RNN(
        H, H, nonlinearity="relu", bias=False, bidirectional=bidirectional, dtype=dtype
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.eye(H))
    x = torch.ones(T, B, H, dtype=dtype, requires_grad=True)
    output, h_n = module(x)
    output.sum().backward()

    forwards = torch.arange(1, T + 1, dtype=torch.int64)
    counts = [forwards, forwards.flip(0)][:directions]
    expected = torch.cat([count[:, None, None].expand(T, B, H) for count in counts], -1)
    assert_exact(
        {"output": output, "h_n": h_n, "x": x.grad},
        {
            "output": expected.to(dtype),
            "h_n": torch.full((directions, B, H), T, dtype=dtype),
            # Step t of a direction has a part in each of the T - t + 1 states from it on.
            "x": sum(count.flip(0) for count in counts)[:, None, None].expand(T, B, H).to(dtype),
        },
    )
    if dtype == torch.float64:
        # Σ_t (T - t + 1) (t - 1) per row of the batch, and Σ_t (T - t + 1) for the constant input.
        dW_hh = B * int((forwards.flip(0) * (forwards - 1)).sum())
        dW_ih = B * int(forwards.sum())
        for name, weight in module.named_parameters():
            total = dW_hh if "hh" in name else dW_ih
            assert_exact({name: weight.grad}, {name: torch.full((H, H), total, dtype=dtype)})
