"""Under torch.autocast: the types that nn.RNN gives, and values no worse than its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import LENGTHS, Case, ids
from helpers import FLOAT_TYPES, everything, truth
from tolerance import Named, assert_no_worse
from torch import nn

import fused_bptt

CASES = (
    Case("one-layer", T=9, B=5, I=6, H=17),
    Case("stacked", T=6, B=5, I=6, H=17, num_layers=2, bidirectional=True),
    Case("relu", T=6, B=5, I=6, H=9, nonlinearity="relu", gap=3, hx=False),
    Case("packed", T=6, B=5, I=6, H=17, lengths=LENGTHS["unsorted"]),
)


class Autocast(nn.Module):
    """Runs the forward of a module under autocast, and its backward outside, as one does."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, *args: object) -> object:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.module(*args)


def run_autocast(case: Case, kind: type[nn.RNNBase], dtype: torch.dtype) -> Named:
    found = everything(
        Autocast(case.module(kind, torch.float32), dtype), *case.inputs(torch.float32)
    )
    return {name.replace("grad module.", "grad "): value for name, value in found.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_types_and_values(case: Case, dtype: torch.dtype) -> None:
    ours, theirs = (run_autocast(case, kind, dtype) for kind in (fused_bptt.RNN, nn.RNN))
    # Of float32, but as far from the truth as the type of the computation makes it.
    assert_no_worse(ours, theirs, truth(case, torch.float32), computed_in=dtype)


@pytest.mark.parametrize(
    ("weights", "data", "state"),
    list(itertools.product(FLOAT_TYPES, FLOAT_TYPES, (None, *FLOAT_TYPES))),
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_every_mixture_of_types(
    weights: torch.dtype, data: torch.dtype, state: torch.dtype | None
) -> None:
    """What nn.RNN computes, we compute in its type; what it refuses, so do we."""
    found = []
    for kind in (nn.RNN, fused_bptt.RNN):
        module = kind(4, 6, dtype=weights)
        hx = None if state is None else torch.zeros(1, 3, 6, dtype=state)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                output, h_n = module(torch.zeros(5, 3, 4, dtype=data), hx)
            except (RuntimeError, ValueError) as error:
                found.append(type(error))
            else:
                found.append((output.dtype, h_n.dtype))
    assert found[1] == found[0]


@pytest.mark.parametrize("enabled", [False, True])
def test_shapes_alone(enabled: bool) -> None:
    """On the meta device, as nn.RNN."""
    for m in (fused_bptt.RNN(3, 4), fused_bptt.LeakyRNN(3, 4, leak=0.3)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = m.to("meta")(torch.empty(5, 2, 3, device="meta"))[0]
        assert output.is_meta
        assert output.shape == (5, 2, 4)
        assert output.dtype == torch.float32


def test_disabled_inside() -> None:
    module = fused_bptt.RNN(4, 6)
    x = torch.zeros(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            inner, _ = module(x)
        outer, _ = module(x)
    assert inner.dtype == torch.float32
    assert outer.dtype == torch.bfloat16


def test_input_from_an_autocast_layer() -> None:
    """A linear layer before it gives bfloat16, as in a model that is trained so."""
    found = []
    for kind in (nn.RNN, fused_bptt.RNN):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), kind(5, 6))
        x = torch.randn(7, 3, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, h_n = model(x)
            loss = output.float().square().mean() + h_n.float().mean()
        loss.backward()
        found.append([output.dtype, h_n.dtype, *(p.grad.dtype for p in model.parameters())])
    assert found[1] == found[0]
