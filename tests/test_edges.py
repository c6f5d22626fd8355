"""Sizes at the ends: no steps, no rows, one of everything, more steps than 65,535."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import Case, ids, variants
from helpers import FLOAT_TYPES, cotangent, everything, run_case
from tolerance import assert_close, assert_exact
from torch import nn

import fused_bptt
from fused_bptt._reference import bptt_by_hand

ONES = tuple(
    variants(
        Case("ones"),
        T=(1, 2),
        B=(1, 2),
        I=(1, 2),
        H=(1, 2),
        bidirectional=(False, True),
        nonlinearity=("tanh", "relu"),
    )
)


@pytest.mark.parametrize("case", ONES, ids=ids(ONES))
def test_one_and_two_of_everything(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))


STACKS = tuple(
    variants(
        Case("empty", num_layers=2),
        bidirectional=(False, True),
        batch_first=(False, True),
        hx=(True, False),
    )
)


@pytest.mark.parametrize("case", STACKS, ids=ids(STACKS))
def test_no_rows(case: Case) -> None:
    case = replace(case, B=0)
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("case", STACKS, ids=ids(STACKS))
def test_no_steps(case: Case, dtype: torch.dtype) -> None:
    """nn.RNN refuses; the state is then simply what it was, and no weight had a part in it."""
    case = replace(case, T=0)
    module = case.module(fused_bptt.RNN, dtype)
    x, hx = case.inputs(dtype)
    found = everything(module, x, hx)
    assert found["output"].shape == (*x.shape[:-1], case.H * case.directions)
    start = torch.zeros(2 * case.directions, case.B, case.H, dtype=dtype) if hx is None else hx
    expected = {
        "output": found["output"],
        "h_n": start.detach(),
        "grad x": torch.zeros_like(x),
        **{f"grad {name}": torch.zeros_like(value) for name, value in module.named_parameters()},
    }
    if hx is not None:
        expected["grad hx"] = cotangent(found["h_n"], 1)
    assert_exact(found, expected)


def test_no_steps_unbatched() -> None:
    module = fused_bptt.RNN(4, 6, num_layers=2)
    output, h_n = module(torch.zeros(0, 4))
    assert output.shape == (0, 6)
    assert torch.equal(h_n, torch.zeros(2, 6))


def test_neither_steps_nor_rows() -> None:
    output, h_n = fused_bptt.RNN(4, 6)(torch.zeros(0, 0, 4))
    assert output.shape == (0, 0, 6)
    assert h_n.shape == (1, 0, 6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_more_steps_than_65535(bidirectional: bool) -> None:
    """Forward and backward of 70,000 steps; each direction as the equations say."""
    T, H = 70_000, 3
    case = Case("long", T=T, B=1, I=2, H=H, bidirectional=bidirectional)
    module = case.module(fused_bptt.RNN)
    x, hx = case.inputs()
    found = everything(module, x, hx)
    g, g_n = cotangent(found["output"], 0), cotangent(found["h_n"], 1)
    dx = torch.zeros_like(x)
    for direction in range(case.directions):
        suffix = "_reverse" if direction else ""
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        W_ih, W_hh, b_ih, b_hh = (getattr(module, f"{n}_l0{suffix}").detach() for n in names)
        units = slice(direction * H, (direction + 1) * H)
        flip = (lambda value: value.flip(0)) if direction else (lambda value: value)
        cotangents = flip(g[..., units]).clone()
        cotangents[-1] += g_n[direction]
        by_hand = bptt_by_hand(
            flip(x.detach()), W_ih, W_hh, b_ih + b_hh, hx[direction].detach(), cotangents
        )
        dx += flip(by_hand.dx)
        assert_close(
            {
                "output": found["output"][..., units],
                "h_n": found["h_n"][direction],
                "W_ih": found[f"grad weight_ih_l0{suffix}"],
                "W_hh": found[f"grad weight_hh_l0{suffix}"],
                "b_ih": found[f"grad bias_ih_l0{suffix}"],
                "b_hh": found[f"grad bias_hh_l0{suffix}"],
                "hx": found["grad hx"][direction],
            },
            {
                "output": flip(by_hand.h),
                "h_n": by_hand.h[-1],
                "W_ih": by_hand.dW_ih,
                "W_hh": by_hand.dW_hh,
                "b_ih": by_hand.db,
                "b_hh": by_hand.db,
                "hx": by_hand.dh0,
            },
        )
    assert_close({"x": found["grad x"]}, {"x": dx})
