"""float32, bfloat16 and float16: never further from float64 than nn.RNN is in that type."""

from __future__ import annotations

import pytest
import torch
from cases import LENGTHS, Case, ids
from helpers import LOW_PRECISION, run_case, truth
from tolerance import assert_exact, assert_no_worse
from torch import nn

import fused_bptt

CASES = (
    Case("small", T=7, B=3, I=4, H=9),
    Case("vector-and-one", T=20, B=9, I=8, H=33),
    Case("wide", T=30, B=15, I=16, H=129),
    Case("one-row", T=50, B=1, I=8, H=65),
    Case("relu", T=20, B=6, I=8, H=48, nonlinearity="relu", gap=3),
    Case("relu-one-row", T=20, B=1, I=8, H=31, nonlinearity="relu", gap=3),
    Case("stacked", T=12, B=5, I=8, H=31, num_layers=2, bidirectional=True),
    Case("no-bias", T=12, B=14, I=8, H=64, bias=False, hx=False),
    Case("packed", T=7, B=16, I=8, H=17, bidirectional=True, lengths=LENGTHS["tiles"]),
)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_error_is_at_most_torchs(case: Case, dtype: torch.dtype) -> None:
    ours, theirs = (run_case(case, kind, dtype) for kind in (fused_bptt.RNN, nn.RNN))
    exact = truth(case, dtype)
    if case.nonlinearity == "relu":
        for found in (ours, theirs):
            assert torch.equal(found["output"] > 0, exact["output"] > 0), "the case is well scaled"
    assert_no_worse(ours, theirs, exact)


@pytest.mark.isa
@pytest.mark.parametrize("H", [1, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_state_is_carried_in_float32(dtype: torch.dtype, H: int) -> None:
    """A sum of steps too small for the stored type would stand still if the carry were rounded."""
    T, step = 4000, 2.0**-13
    module = fused_bptt.RNN(H, H, nonlinearity="relu", bias=False, dtype=dtype)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.eye(H))
    output, h_n = module(torch.full((T, 1, H), step, dtype=dtype), torch.ones(1, 1, H, dtype=dtype))
    exact = 1 + step * torch.arange(1, T + 1, dtype=torch.float64)
    expected = exact.to(dtype)[:, None, None].expand(T, 1, H)
    assert_exact({"output": output, "h_n": h_n}, {"output": expected, "h_n": expected[-1:]})
