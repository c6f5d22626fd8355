"""Equality with nn.RNN for whatever Hypothesis draws (derandomized: always the same draws)."""

from __future__ import annotations

from cases import Case
from helpers import run_case
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close
from torch import nn

import fused_bptt


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    lengths = None
    batched = draw(st.booleans())
    if batched and draw(st.booleans()):
        lengths = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=20)))
    num_layers = draw(st.integers(1, 3))
    return Case(
        "drawn",
        T=max(lengths) if lengths else draw(st.integers(1, 12)),
        B=len(lengths) if lengths else draw(st.integers(1, 40)),
        I=draw(st.integers(1, 20)),
        H=draw(st.integers(1, 90)),
        num_layers=num_layers,
        nonlinearity=draw(st.sampled_from(["tanh", "relu"])),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        batched=batched,
        hx=draw(st.booleans()),
        lengths=lengths,
    )


@settings(max_examples=150)
@given(drawn_cases())
def test_drawn_cases_equal_torch(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))
