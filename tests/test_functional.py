"""fused_bptt.rnn: the stateless form, with the weights as arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import LENGTHS, Case, ids, variants
from helpers import cotangent, data_of, everything, run_case
from tolerance import Named, assert_close, assert_exact
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_bptt

CASES = (
    Case("defaults"),
    Case("relu", nonlinearity="relu", num_layers=2, bidirectional=True),
    Case("unbatched", batched=False, num_layers=2, hx=False),
    Case("no-bias", bias=False, bidirectional=True, batch_first=True),
    Case("packed", T=6, B=5, lengths=LENGTHS["unsorted"], bidirectional=True),
    Case("packed-no-hx", T=6, B=4, lengths=LENGTHS["sorted"], hx=False, num_layers=2),
)


class Functional(nn.Module):
    """Calls fused_bptt.rnn with the weights of a module, in nn.RNN's order."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor | PackedSequence, hx: Tensor | None) -> tuple[Any, Tensor]:
        m = self.module
        return fused_bptt.rnn(
            x,
            hx,
            tuple(m.parameters()),
            nonlinearity=m.nonlinearity,
            bias=m.bias,
            num_layers=m.num_layers,
            dropout=m.dropout,
            training=m.training,
            bidirectional=m.bidirectional,
            batch_first=m.batch_first,
        )


def run_functional(case: Case) -> Named:
    found = everything(Functional(case.module()), *case.inputs())
    return {name.replace("grad module.", "grad "): value for name, value in found.items()}


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_equals_torch(case: Case) -> None:
    assert_close(run_functional(case), run_case(case, nn.RNN))


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_is_what_the_module_computes(case: Case) -> None:
    assert_exact(run_functional(case), run_case(case, fused_bptt.RNN))


def test_defaults_are_those_of_the_module() -> None:
    case = Case("defaults")
    module = case.module()
    x, hx = case.inputs()
    output, h_n = fused_bptt.rnn(x, hx, list(module.parameters()))
    expected = module(x, hx)
    assert_close({"output": output, "h_n": h_n}, {"output": expected[0], "h_n": expected[1]})


def test_weights_may_be_results_of_other_operations() -> None:
    """Gradients go through the weights to whatever they were made from."""
    case = Case("made-weights")
    grads = []
    for kind in ("ours", "theirs"):
        module = case.module()
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        weights = [scale * w for w in module.parameters()]
        x, hx = case.inputs()
        if kind == "ours":
            output, _ = fused_bptt.rnn(x, hx, weights)
        else:
            output, _ = torch.rnn_tanh(x, hx, weights, True, 1, 0.0, False, False, False)
        output.backward(cotangent(output, 0))
        grads.append({"scale": scale.grad, "x": x.grad})
    assert_close(*grads)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (case.options, change)
        for case in variants(Case("wrong"), num_layers=(1, 2), bidirectional=(False, True))
        for change in ("missing", "superfluous")
    ],
)
def test_a_wrong_number_of_weights_is_refused(options: dict[str, Any], wrong: str) -> None:
    module = nn.RNN(**options)
    weights = list(module.parameters())
    given = weights[:-1] if wrong == "missing" else [*weights, weights[-1]]
    with pytest.raises((RuntimeError, ValueError), match=f"{len(weights)}.*{len(given)}"):
        fused_bptt.rnn(
            torch.zeros(5, 3, options["input_size"]),
            None,
            given,
            num_layers=module.num_layers,
            bidirectional=module.bidirectional,
        )


@pytest.mark.parametrize(
    "shapes",
    [
        {0: (6, 5)},  # weight_ih of another input size
        {0: (7, 4)},  # weight_ih of another hidden size
        {1: (6, 7)},  # weight_hh not square
        {1: (7, 7)},
        {2: (7,)},
        {3: (1,)},
        {3: (6, 1)},
    ],
    ids=str,
)
def test_wrong_shapes_of_weights_are_refused(shapes: dict[int, tuple[int, ...]]) -> None:
    weights: list[Tensor] = list(nn.RNN(4, 6).parameters())
    for index, shape in shapes.items():
        weights[index] = torch.zeros(shape)
    with pytest.raises((RuntimeError, ValueError)):
        fused_bptt.rnn(torch.zeros(5, 3, 4), None, weights)


def test_an_unknown_nonlinearity_is_refused() -> None:
    weights = tuple(nn.RNN(4, 6).parameters())
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sine'"):
        fused_bptt.rnn(torch.zeros(5, 3, 4), None, weights, nonlinearity="sine")


def test_arguments_are_left_as_they_are() -> None:
    case = Case("untouched", bidirectional=True, num_layers=2)
    x, hx = case.inputs()
    module = case.module(fused_bptt.RNN)
    before = {n: t.detach().clone() for n, t in module.named_parameters()}
    before |= {"x": data_of(x).detach().clone(), "hx": hx.detach().clone()}
    everything(module, x, hx)
    after = {n: t.detach() for n, t in module.named_parameters()}
    after |= {"x": data_of(x).detach(), "hx": hx.detach()}
    assert_exact(after, before)
