"""Outputs, h_n and every gradient equal nn.RNN's, in float64, over the product of options."""

from __future__ import annotations

import pytest
from cases import OPTIONS, SIZES, UNBATCHED, WIDE, Case, ids
from helpers import run_case
from tolerance import assert_close
from torch import nn

import fused_bptt


@pytest.mark.parametrize("case", OPTIONS, ids=ids(OPTIONS))
def test_every_combination_of_options(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))


@pytest.mark.parametrize("case", UNBATCHED, ids=ids(UNBATCHED))
def test_unbatched(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))


@pytest.mark.isa
@pytest.mark.parametrize("case", SIZES, ids=ids(SIZES))
def test_every_tile_and_its_neighbours(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))


@pytest.mark.isa
@pytest.mark.parametrize("case", WIDE, ids=ids(WIDE))
def test_more_work_than_one_thread_takes(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))
