"""The plain-torch reference agrees with autograd and nn.RNN, so that others may be held to it."""

from __future__ import annotations

import pytest
import torch
from cases import LENGTHS, Case
from helpers import cotangent, data_of, run_case
from primitives import Problem, problems
from tolerance import assert_close
from torch import nn

from fused_bptt import _reference as reference

PROBLEMS = problems(dtypes=(torch.float64,))


@pytest.mark.parametrize("nonlinearity", [reference.TANH, reference.RELU])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_adjoint_is_bptt(problem: Problem, nonlinearity: int) -> None:
    """From autograd's own cotangents, q is the gradient of u and r_0 that of h_0."""
    u, weight, h0 = (t.clone().requires_grad_() for t in (problem.v, problem.weight, problem.s0))
    walk = (problem.batch_sizes, problem.reverse_groups)
    h, last = reference.recurrence(u, weight, h0, *walk, nonlinearity)
    g, g_last = cotangent(h, 0), cotangent(last, 1)
    torch.autograd.backward([h, last], [g, g_last])
    with torch.no_grad():
        q, r0 = reference.linear_recurrence(h, g, weight, g_last, *walk, nonlinearity, True)
    assert_close({"q": q, "r0": r0}, {"q": u.grad, "r0": h0.grad})


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_adjointness(problem: Problem) -> None:
    """<c, s> + <c_T, s_T> = <q, v> + <r_0, s_0>: the two ways are each other's transpose."""
    p = problem
    walk = (p.batch_sizes, p.reverse_groups, reference.GIVEN)
    c, c_last = cotangent(p.v, 1), cotangent(p.s0, 2)
    s, s_last = reference.linear_recurrence(p.factor, p.v, p.weight, p.s0, *walk, False)
    q, r0 = reference.linear_recurrence(p.factor, c, p.weight, c_last, *walk, True)
    assert_close(
        {"": (c * s).sum() + (c_last * s_last).sum()}, {"": (q * p.v).sum() + (r0 * p.s0).sum()}
    )


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_nothing_is_zero(problem: Problem, adjoint: bool) -> None:
    """No v and no s_0 stand for zeros."""
    p = problem
    walk = (p.batch_sizes, p.reverse_groups, reference.GIVEN, adjoint)
    zeros_v, zeros_s0 = torch.zeros_like(p.v), torch.zeros_like(p.s0)
    for some, none in (((zeros_v, p.s0), (None, p.s0)), ((p.v, zeros_s0), (p.v, None))):
        a, b = (
            reference.linear_recurrence(p.factor, v, p.weight, s0, *walk) for v, s0 in (some, none)
        )
        assert_close({"s": b[0], "last": b[1]}, {"s": a[0], "last": a[1]})


@pytest.mark.parametrize("derivative", [reference.TANH, reference.RELU])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_factor_is_the_slope(problem: Problem, derivative: int) -> None:
    """d made from h is the derivative that autograd finds for the nonlinearity."""
    phi = {reference.TANH: torch.tanh, reference.RELU: torch.relu}[derivative]
    z = problem.factor.clone().requires_grad_()
    h = phi(z)
    (d,) = torch.autograd.grad(h.sum(), z)
    rest = (problem.v, problem.weight, problem.s0, problem.batch_sizes, problem.reverse_groups)
    found, _ = reference.linear_recurrence(h.detach(), *rest, derivative, False)
    expected, _ = reference.linear_recurrence(d, *rest, reference.GIVEN, False)
    assert_close({"s": found}, {"s": expected})


@pytest.mark.parametrize("lengths", [None, *LENGTHS.values()], ids=["dense", *LENGTHS])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_both_directions_are_torchs(nonlinearity: str, lengths: tuple[int, ...] | None) -> None:
    case = Case(
        "reference",
        T=max(lengths or (5,)),
        B=len(lengths or (1, 2, 3)),
        bidirectional=True,
        nonlinearity=nonlinearity,
        lengths=lengths,
    )
    module = case.module(nn.RNN)
    x, hx = case.inputs()
    data, batch_sizes, order, _ = x if lengths else (x, None, None, None)
    u = torch.stack(
        [
            data @ getattr(module, f"weight_ih_l0{suffix}").T
            + getattr(module, f"bias_ih_l0{suffix}")
            + getattr(module, f"bias_hh_l0{suffix}")
            for suffix in ("", "_reverse")
        ],
        -2,
    )
    weight = torch.stack([module.weight_hh_l0, module.weight_hh_l0_reverse])
    h0 = hx if order is None else hx[:, order]
    code = {"tanh": reference.TANH, "relu": reference.RELU}[nonlinearity]
    h, last = reference.recurrence(u, weight, h0, batch_sizes, 1, code)
    output, h_n = module(x, hx)
    h_n = h_n if order is None else h_n[:, order]
    assert_close(
        {"output": h.flatten(-2).detach(), "h_n": last.detach()},
        {"output": data_of(output).detach(), "h_n": h_n.detach()},
    )


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_bptt_by_hand(nonlinearity: str) -> None:
    case = Case("by-hand", T=11, B=4, I=3, H=7, nonlinearity=nonlinearity)
    expected = run_case(case, nn.RNN)
    W_ih, W_hh, b_ih, b_hh = (p.detach() for p in case.module(nn.RNN).parameters())
    x, hx = (value.detach() for value in case.inputs())
    g = cotangent(expected["output"], 0)
    g[-1] += cotangent(expected["h_n"], 1)[0]
    found = reference.bptt_by_hand(x, W_ih, W_hh, b_ih + b_hh, hx[0], g, nonlinearity)
    assert_close(
        {
            "output": found.h,
            "h_n": found.h[-1:],
            "grad x": found.dx,
            "grad weight_ih_l0": found.dW_ih,
            "grad weight_hh_l0": found.dW_hh,
            "grad bias_ih_l0": found.db,
            "grad bias_hh_l0": found.db,
            "grad hx": found.dh0[None],
        },
        expected,
    )
    assert torch.equal(found.du, found.q)
    slope = 1 - found.h**2 if nonlinearity == "tanh" else (found.h > 0).double()
    assert_close({"q": found.q}, {"q": slope * found.dh})
