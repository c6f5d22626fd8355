"""NaN and infinities come out where nn.RNN's do, forward and in every gradient."""

from __future__ import annotations

import pytest
import torch
from cases import Case, ids, variants
from helpers import data_of, everything
from tolerance import Named, assert_same_nonfinite
from torch import nn

import fused_bptt

VALUES = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}
PLACES = ("x", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")

CASES = (
    *variants(
        Case("dense", T=4, B=3, I=4),
        nonlinearity=("tanh", "relu"),
        H=(5, 17),
    ),
    *variants(
        Case("packed", T=5, B=4, I=4, H=9, lengths=(1, 5, 3, 1)),
        nonlinearity=("tanh", "relu"),
        bidirectional=(False, True),
    ),
    *variants(Case("stacked", num_layers=2, bidirectional=True), nonlinearity=("tanh", "relu")),
    *variants(Case("one-step", T=1, hx=False), nonlinearity=("tanh", "relu")),
    *variants(Case("no-hx", hx=False), nonlinearity=("tanh", "relu")),
)


def spoiled(case: Case, kind: type[nn.RNNBase], place: str, value: float) -> Named:
    module = case.module(kind)
    x, hx = case.inputs()
    target = {"x": data_of(x), "hx": hx}.get(place)
    if target is None:
        target = getattr(module, place)
    with torch.no_grad():
        # Neither the first nor the last of anything that has a middle.
        target[tuple((size - 1) // 2 for size in target.shape)] = value
    return everything(module, x, hx)


@pytest.mark.isa
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_come_out_where_torchs_do(case: Case, value: str, place: str) -> None:
    if place == "hx" and not case.hx:
        place = "x"
    ours, theirs = (spoiled(case, kind, place, VALUES[value]) for kind in (fused_bptt.RNN, nn.RNN))
    assert_same_nonfinite(ours, theirs)


def test_one_bad_row_spoils_no_other() -> None:
    case = Case("rows", T=6, B=15, I=4, H=33)
    module = case.module(fused_bptt.RNN)
    x, hx = case.inputs()
    clean, _ = module(x, hx)
    with torch.no_grad():
        x[0, 7] = torch.nan
    dirty, _ = module(x, hx)
    others = [row for row in range(case.B) if row != 7]
    assert torch.equal(dirty[:, others], clean[:, others])
    assert dirty[:, 7].isnan().all()
