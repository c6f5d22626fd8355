"""One step at a time, every layer's output, and states in batch-first order."""

from __future__ import annotations

import pytest
import torch
from cases import Case, variants
from helpers import everything, raised
from tolerance import assert_close, assert_exact, assert_no_worse
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from fused_bptt import RNN

STEPPED = (
    *variants(
        Case("step", T=6, B=3, I=4, H=17),
        num_layers=(1, 3),
        nonlinearity=("tanh", "relu"),
        bias=(True, False),
        batched=(True, False),
        hx=(True, False),
    ),
    Case("step-wide", T=4, B=19, I=40, H=131),
)


class Stepped(RNN):
    """The sequence call as a loop over steps."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = []
        for x in input:
            output, hx = self.step(x, hx)
            outputs.append(output)
        return torch.stack(outputs), hx


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", STEPPED, ids=lambda case: case.name)
def test_steps_have_the_bits_of_the_sequence(case, dtype):
    x, hx = case.inputs(dtype)
    with torch.no_grad():
        by_steps = dict(zip("oh", case.module(Stepped, dtype)(x, hx), strict=True))
        at_once = dict(zip("oh", case.module(RNN, dtype)(x, hx), strict=True))
    assert_exact(by_steps, at_once)


@pytest.mark.parametrize("case", STEPPED, ids=lambda case: case.name)
def test_gradients_go_through_steps(case):
    assert_close(
        everything(case.module(Stepped), *case.inputs()),
        everything(case.module(RNN), *case.inputs()),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_steps_in_other_dtypes(dtype):
    """The state is rounded after each step, as nn.RNN's is."""
    case = Case("step-low", T=6, B=3, I=4, H=17, gap=0.5)
    x, hx = case.inputs(dtype)
    with torch.no_grad():
        wide = case.module(RNN, dtype).double()(x.double(), hx.double())
        results = [case.module(kind, dtype)(x, hx) for kind in (Stepped, nn.RNN)]
    assert_no_worse(*(dict(zip("oh", r, strict=True)) for r in (*results, wide)))


def test_dropout_between_the_layers_of_a_step():
    module = RNN(3, 40, num_layers=2, dropout=0.5)
    x = torch.randn(8, 3)
    torch.manual_seed(3)
    by_step = dict(zip("oh", module.step(x), strict=True))
    torch.manual_seed(3)
    output, h_n = module(x.unsqueeze(0))
    assert_exact(by_step, {"o": output[0], "h": h_n})
    module.eval()
    assert (module.step(x)[0] != by_step["o"]).any()


def test_step_refuses():
    x = torch.zeros(2, 3)
    for call, words in (
        (lambda: RNN(3, 4, bidirectional=True).step(x), "step: expected a module in one direction"),
        (lambda: RNN(3, 4).step(x.unsqueeze(0)), "step: expected input [B, I] or [I], got 3-D [1"),
        (lambda: RNN(3, 4).step(x, torch.zeros(1, 3, 4)), "Expected hidden size (1, 2, 4), got [1"),
        (lambda: RNN(3, 4).step(x[:, :2]), "input.size(-1) must be equal to input_size. Expected"),
    ):
        kind, message = raised(call)
        assert kind is RuntimeError
        assert message.startswith(words)


# -------------------------------------------------------------------------------- every layer


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_of_all_layers_are_those_of_a_stack_of_modules(batch_first, bidirectional):
    case = Case("all", num_layers=3, batch_first=batch_first, bidirectional=bidirectional)
    module, (x, hx) = case.module(RNN), case.inputs()
    outputs, h_n = module(x, hx, return_all_layers=True)
    assert isinstance(outputs, tuple)
    states = hx.split(case.directions)
    expected, last = [], []
    for depth, state in enumerate(states):
        kind = {"batch_first": batch_first, "bidirectional": bidirectional}
        one = RNN(x.size(-1), case.H, **kind, dtype=torch.float64)
        own = {n: p for n, p in module.named_parameters() if f"_l{depth}" in n}
        one.load_state_dict({n.replace(f"_l{depth}", "_l0"): p for n, p in own.items()})
        x, h = one(x, state)
        expected.append(x)
        last.append(h)
    assert_exact(
        {f"{i}": y for i, y in enumerate([*outputs, h_n])},
        {f"{i}": y for i, y in enumerate([*expected, torch.cat(last)])},
    )


def test_outputs_of_all_layers_before_their_dropout():
    module = RNN(3, 50, num_layers=2, dropout=0.5)
    outputs, _ = module(torch.randn(5, 2, 3), return_all_layers=True)
    assert (outputs[0] != 0).all()


def test_outputs_of_all_layers_packed_and_unbatched():
    module = RNN(3, 5, num_layers=2)
    sequences = [torch.randn(n, 3) for n in (2, 4, 3)]
    packed, _ = module(pack_sequence(sequences, enforce_sorted=False), return_all_layers=True)
    padded = [pad_packed_sequence(layer)[0] for layer in packed]
    for row, sequence in enumerate(sequences):
        alone, _ = module(sequence, return_all_layers=True)
        found = {f"{i}": y[: len(sequence), row] for i, y in enumerate(padded)}
        assert_exact(found, {f"{i}": y for i, y in enumerate(alone)})


# ------------------------------------------------------------------------------ order of states


@pytest.mark.parametrize("batch_first", [False, True])
def test_states_in_batch_first_order(batch_first):
    case = Case("order", num_layers=2, bidirectional=True, batch_first=batch_first)
    module, (x, hx) = case.module(RNN), case.inputs()
    output, h_n = module(x, hx)
    found = module(x, hx.transpose(0, 1), state_batch_first=True)
    assert_exact(dict(zip("oh", found, strict=True)), {"o": output, "h": h_n.transpose(0, 1)})
    assert module(x, state_batch_first=True)[1].shape == (case.B, 4, case.H)


def test_states_in_batch_first_order_packed():
    module = RNN(3, 5, num_layers=2)
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 4, 3)], enforce_sorted=False)
    hx = torch.randn(2, 3, 5)
    output, h_n = module(packed, hx)
    found, last = module(packed, hx.transpose(0, 1), state_batch_first=True)
    assert_exact({"o": found.data, "h": last}, {"o": output.data, "h": h_n.transpose(0, 1)})


def test_states_in_batch_first_order_of_a_step_and_unbatched():
    module = RNN(3, 5, num_layers=2)
    x, state = torch.randn(4, 3), torch.randn(2, 4, 5)
    output, after = module.step(x, state)
    found = module.step(x, state.transpose(0, 1), state_batch_first=True)
    assert_exact(dict(zip("oh", found, strict=True)), {"o": output, "h": after.transpose(0, 1)})
    # Without a batch there is no order of it.
    one = module(x, state[:, 0], state_batch_first=True)
    expected = module(x, state[:, 0])
    assert_exact(dict(zip("oh", one, strict=True)), dict(zip("oh", expected, strict=True)))
