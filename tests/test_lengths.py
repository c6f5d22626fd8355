"""Padded rows of different lengths: each row is what it is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerance import Named, assert_close, assert_exact
from torch import Tensor

import fused_bptt

T, B, INPUTS, H = 7, 5, 3, 6
LENGTHS = (4, 7, 0, 1, 4)


def solved(rnn: Any, x: Tensor, hx: Tensor, output: Tensor, h_n: Tensor) -> Named:
    """Outputs, and the gradients of a loss that weighs every number of them differently."""
    weigh = torch.linspace(0.5, 2, output.numel(), dtype=output.dtype).view(output.shape)
    loss = (output * weigh).sum() + (h_n.square() * 3).sum()
    wanted = {"x": x, "hx": hx, **dict(rnn.named_parameters())}
    return {"output": output, "h_n": h_n} | dict(
        zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True)
    )


def inputs(rnn: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    x = torch.randn(T, B, INPUTS, dtype=torch.float64, generator=generator)
    hx = torch.randn(states, B, H, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), hx.requires_grad_()


def alone(rnn: torch.nn.RNN, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, by nn.RNN."""
    outputs, states = [], []
    for b, length in enumerate(LENGTHS):
        width = H * (2 if rnn.bidirectional else 1)
        output, h_n = x.new_zeros(0, width), hx[:, b]
        if length > 0:
            output, h_n = rnn(x[:length, b], hx[:, b].contiguous())
        outputs.append(torch.cat([output, x.new_zeros(T - length, width)]))
        states.append(h_n)
    return torch.stack(outputs, 1), torch.stack(states, 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_each_row_is_what_it_is_alone(
    num_layers: int, bidirectional: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.RNN(INPUTS, H, num_layers, bidirectional=bidirectional, dtype=torch.float64)
    ours = fused_bptt.RNN.from_torch(theirs)
    x, hx = inputs(ours)
    found = solved(ours, x, hx, *ours(x, hx, lengths=torch.tensor(LENGTHS, dtype=dtype)))
    assert_close(found, solved(theirs, x, hx, *alone(theirs, x, hx)))


def test_what_is_past_the_end_is_not_read() -> None:
    rnn = fused_bptt.RNN(INPUTS, H, bidirectional=True, dtype=torch.float64)
    x, hx = inputs(rnn)
    lengths = torch.tensor(LENGTHS)
    past = torch.arange(T).unsqueeze(1) >= lengths
    spoilt = x.detach().masked_fill(past.unsqueeze(2), float("nan")).requires_grad_()
    found = solved(rnn, spoilt, hx, *rnn(spoilt, hx, lengths=lengths))
    assert_exact(found, solved(rnn, x, hx, *rnn(x, hx, lengths=lengths)))
    assert (found["output"][past] == 0).all()
    assert (found["x"][past] == 0).all()


def test_batch_first_all_layers_and_resets() -> None:
    rnn = fused_bptt.RNN(INPUTS, H, 2, dtype=torch.float64)
    x, hx = inputs(rnn)
    lengths, reset = torch.tensor(LENGTHS), torch.rand(T, B) < 0.3
    outputs, h_n = rnn(x, hx, lengths=lengths, reset=reset, reset_state=hx, return_all_layers=True)
    turned = fused_bptt.rnn(
        x.transpose(0, 1),
        hx.transpose(0, 1),
        list(rnn.parameters()),
        num_layers=2,
        batch_first=True,
        lengths=lengths,
        reset=reset.t(),
        reset_state=hx.transpose(0, 1),
        state_batch_first=True,
    )
    named = {"output": turned[0].transpose(0, 1), "h_n": turned[1].transpose(0, 1)}
    assert_exact(named, {"output": outputs[-1], "h_n": h_n})
    row, length = 1, LENGTHS[1]
    given = (x[:length, row : row + 1], hx[:, row : row + 1].contiguous())
    options = {"reset": reset[:length, row : row + 1], "reset_state": given[1]}
    expected, _ = rnn(*given, **options)
    assert_exact({"row": outputs[-1][:length, row : row + 1]}, {"row": expected})


def test_no_row_has_a_step() -> None:
    rnn = fused_bptt.RNN(INPUTS, H)
    hx = torch.randn(1, 2, H)
    output, h_n = rnn(torch.randn(3, 2, INPUTS), hx, lengths=torch.zeros(2, dtype=torch.int64))
    assert (output == 0).all()
    assert output.shape == (3, 2, H)
    assert torch.equal(h_n, hx)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (torch.tensor([1.0, 2.0]), "lengths: expected integers, got torch.float32"),
        (torch.tensor([1, 2, 3]), r"lengths: expected shape \[2\], one a row, got \[3\]"),
        (torch.tensor([1, 4]), r"lengths: expected numbers from 0 to 3 steps, got \[1, 4\]"),
        (torch.tensor([-1, 2]), r"lengths: expected numbers from 0 to 3 steps, got \[-1, 2\]"),
    ],
)
def test_lengths_that_do_not_fit(lengths: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fused_bptt.RNN(INPUTS, H)(torch.randn(3, 2, INPUTS), lengths=lengths)


def test_what_lengths_do_not_go_with() -> None:
    rnn = fused_bptt.RNN(INPUTS, H)
    x, lengths = torch.randn(3, 2, INPUTS), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="lengths: expected with a padded batch, 3-D, got"):
        rnn(x[:, 0], lengths=lengths[:1])
    with pytest.raises(ValueError, match="checkpoint_every: expected no lengths"):
        rnn(x, lengths=lengths, checkpoint_every=2)
    with pytest.raises(RuntimeError, match=r"hx: expected shape \[1, 2, 6\], got \[1, 3, 6\]"):
        rnn(x, torch.zeros(1, 3, H), lengths=lengths)
