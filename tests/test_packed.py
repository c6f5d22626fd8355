"""PackedSequence in, PackedSequence out, in the caller's order, walked as it lies."""

from __future__ import annotations

import pytest
import torch
from cases import LENGTHS, PACKED, Case, ids
from helpers import outputs, run_case
from tolerance import assert_close, assert_exact
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import fused_bptt


@pytest.mark.isa
@pytest.mark.parametrize("case", PACKED, ids=ids(PACKED))
def test_equals_torch(case: Case) -> None:
    assert_close(run_case(case, fused_bptt.RNN), run_case(case, nn.RNN))


def packed_case(name: str = "unsorted", **options: object) -> Case:
    lengths = LENGTHS[name]
    return Case(
        f"packed-{name}", T=max(lengths), B=len(lengths), I=3, H=17, lengths=lengths, **options
    )


@pytest.mark.parametrize("name", ["sorted", "unsorted"])
def test_output_is_packed_as_the_input(name: str) -> None:
    case = packed_case(name)
    x, hx = case.inputs()
    output, _ = case.module(fused_bptt.RNN)(x, hx)
    expected, _ = case.module(nn.RNN)(x, hx)
    assert isinstance(output, PackedSequence)
    for ours, theirs in zip(output[1:], expected[1:], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_sorted_without_permutation() -> None:
    case = packed_case("sorted")
    x, hx = case.inputs()
    x = PackedSequence(x.data, x.batch_sizes)
    output, _ = case.module(fused_bptt.RNN)(x, hx)
    assert output.sorted_indices is None
    assert output.unsorted_indices is None
    assert_close(outputs(case.module(fused_bptt.RNN), x, hx), outputs(case.module(nn.RNN), x, hx))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_sequence_equals_itself_alone(bidirectional: bool) -> None:
    case = packed_case("unsorted", bidirectional=bidirectional, num_layers=2)
    module = case.module(fused_bptt.RNN)
    generator = case.generator()
    sequences = [
        torch.randn(length, case.I, generator=generator, dtype=torch.float64)
        for length in case.lengths or ()
    ]
    output, h_n = module(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(output)
    for row, sequence in enumerate(sequences):
        alone, alone_h_n = module(sequence)
        assert_close(
            {"output": padded[: lengths[row], row], "h_n": h_n[:, row]},
            {"output": alone, "h_n": alone_h_n},
        )


def test_padding_is_never_read() -> None:
    case = packed_case("unsorted")
    module = case.module(fused_bptt.RNN)
    generator = case.generator()
    x = torch.randn(case.T, case.B, case.I, generator=generator, dtype=torch.float64)
    lengths = torch.tensor(case.lengths)
    spoiled = x.clone()
    for row, length in enumerate(lengths):
        spoiled[length:, row] = torch.nan
    assert_exact(
        *(
            outputs(module, pack_padded_sequence(values, lengths, enforce_sorted=False))
            for values in (spoiled, x)
        )
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_steps_at_all(bidirectional: bool) -> None:
    """nn.RNN fails here; there is nothing to compute, and that is the right answer."""
    module = fused_bptt.RNN(3, 5, num_layers=2, bidirectional=bidirectional)
    empty = PackedSequence(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    output, h_n = module(empty)
    directions = 2 if bidirectional else 1
    assert output.data.shape == (0, 5 * directions)
    assert output.batch_sizes.shape == (0,)
    assert h_n.shape == (2 * directions, 0, 5)


def test_hx_of_another_batch_is_refused_in_torchs_words() -> None:
    case = packed_case("sorted")
    x, _ = case.inputs()
    x = PackedSequence(x.data, x.batch_sizes)
    for kind in (nn.RNN, fused_bptt.RNN):
        with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 4, 17\), got"):
            case.module(kind)(x, torch.zeros(1, 3, 17, dtype=torch.float64))
