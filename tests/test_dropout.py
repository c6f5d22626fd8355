"""Dropout between layers: with one seed, the masks are nn.RNN's own."""

from __future__ import annotations

import pytest
import torch
from cases import LENGTHS, Case, ids
from helpers import outputs, run_case
from tolerance import Named, assert_close, assert_exact
from torch import nn

import fused_bptt

CASES = (
    Case("two-layers", num_layers=2, dropout=0.5),
    Case("three-layers", num_layers=3, dropout=0.3, T=9, B=7, H=33),
    Case("relu", num_layers=2, dropout=0.5, nonlinearity="relu"),
    Case("bidirectional", num_layers=3, dropout=0.5, bidirectional=True),
    Case("batch-first", num_layers=2, dropout=0.5, batch_first=True),
    Case("unbatched", num_layers=2, dropout=0.5, batched=False),
    Case("packed", T=6, B=5, num_layers=3, dropout=0.5, lengths=LENGTHS["unsorted"]),
    Case(
        "packed-bidirectional",
        T=6,
        B=5,
        num_layers=2,
        dropout=0.5,
        lengths=LENGTHS["unsorted"],
        bidirectional=True,
    ),
    Case("all", num_layers=2, dropout=1.0),
)


def run_seeded(case: Case, kind: type[nn.RNNBase], seed: int = 3) -> Named:
    module, inputs = case.module(kind), case.inputs()
    torch.manual_seed(seed)
    return outputs(module, *inputs)


def gradients_seeded(case: Case, kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> Named:
    """Everything about a case whose masks are drawn from one seed."""
    forward = kind.forward

    def seeded(self: nn.RNNBase, *args: object) -> object:
        torch.manual_seed(3)
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", seeded)
        return run_case(case, kind)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_training_drops_what_torch_drops(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gradients_seeded(case, fused_bptt.RNN, monkeypatch)
    assert_close(ours, gradients_seeded(case, nn.RNN, monkeypatch))


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_leaves_the_generator_where_torch_leaves_it(case: Case) -> None:
    states = []
    for kind in (fused_bptt.RNN, nn.RNN):
        run_seeded(case, kind)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_another_seed_drops_others() -> None:
    case = CASES[0]
    one, other = (run_seeded(case, fused_bptt.RNN, seed)["output"] for seed in (3, 4))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_evaluation_drops_nothing(case: Case) -> None:
    ours, theirs = (case.module(kind).eval() for kind in (fused_bptt.RNN, nn.RNN))
    results = [outputs(module, *case.inputs()) for module in (ours, theirs)]
    assert_close(*results)
    ours.dropout = 0.0
    assert_exact(outputs(ours, *case.inputs()), results[0])


def test_backward_in_evaluation_mode() -> None:
    case = CASES[0]

    def evaluating(**options: object) -> nn.RNNBase:
        return fused_bptt.RNN(**options).eval()

    assert_close(run_case(case, evaluating), run_case(case, lambda **o: nn.RNN(**o).eval()))


@pytest.mark.parametrize("training", [True, False])
def test_functional_form(training: bool) -> None:
    case = CASES[0]
    module = case.module(nn.RNN).train(training)
    x, hx = case.inputs()
    torch.manual_seed(3)
    expected = module(x, hx)
    torch.manual_seed(3)
    output, h_n = fused_bptt.rnn(
        x, hx, tuple(module.parameters()), num_layers=2, dropout=0.5, training=training
    )
    assert_close({"output": output, "h_n": h_n}, {"output": expected[0], "h_n": expected[1]})
