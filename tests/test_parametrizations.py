"""Dale's law, sparse and low-rank weights, a learned initial state."""

from __future__ import annotations

import copy

import pytest
import torch
from taped import taped_rnn
from tolerance import assert_close
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fused_bptt import RNN
from fused_bptt.parametrizations import Dale, InitialState, LowRank, Sparse, dale_signs

H = 10


def parametrized(*kinds: nn.Module) -> RNN:
    rnn = RNN(3, H, dtype=torch.float64)
    for kind in kinds:
        parametrize.register_parametrization(rnn, "weight_hh_l0", kind)
    return rnn


def checkerboard() -> Tensor:
    return torch.arange(H * H).reshape(H, H) % 3 > 0


KINDS = {
    "dale": lambda: (Dale(dale_signs(H, 0.7)),),
    "sparse": lambda: (Sparse(checkerboard()),),
    "low-rank": lambda: (LowRank(2),),
    "both": lambda: (Dale(dale_signs(H)), Sparse(checkerboard())),
}


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_what_is_learned(name):
    """Those of the taped loop with the same weights."""
    rnn = parametrized(*KINDS[name]())
    x, hx = torch.randn(6, 4, 3, dtype=torch.float64), torch.randn(1, 4, H, dtype=torch.float64)
    originals = dict(rnn.named_parameters())

    def gradients(output: Tensor) -> dict[str, Tensor]:
        bars = torch.autograd.grad(output.square().sum(), list(originals.values()))
        return dict(zip(originals, bars, strict=True))

    weights = rnn._weights()
    assert_close(gradients(rnn(x, hx)[0]), gradients(taped_rnn(x, hx, weights)[0]))
    stepped, state = [], hx
    for t in range(6):
        output, state = rnn.step(x[t], state)
        stepped.append(output)
    assert_close(gradients(torch.stack(stepped)), gradients(rnn(x, hx)[0]))
    assert_close(gradients(rnn(x, hx, checkpoint_every=2)[0]), gradients(rnn(x, hx)[0]))


def trained(rnn: RNN, *others: nn.Module) -> Tensor:
    """W_hh after some steps of training."""
    optimizer = torch.optim.Adam([p for m in (rnn, *others) for p in m.parameters()], lr=0.05)
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    for _ in range(20):
        optimizer.zero_grad()
        (rnn(x)[0] - 0.5).square().mean().backward()
        optimizer.step()
    return rnn.weight_hh_l0.detach()


def test_dale_keeps_each_senders_sign():
    rnn = parametrized(Dale(dale_signs(H, 0.7)))
    before = rnn.weight_hh_l0.detach().clone()
    after = trained(rnn)
    assert (after[:, :7] >= 0).all()
    assert (after[:, 7:] <= 0).all()
    assert (after != before).all()


def test_dale_keeps_the_magnitudes_that_were_there():
    rnn = RNN(3, H)
    before = rnn.weight_hh_l0.detach().clone()
    parametrize.register_parametrization(rnn, "weight_hh_l0", Dale(dale_signs(H)))
    assert torch.equal(rnn.weight_hh_l0.abs(), before.abs())
    rnn.weight_hh_l0 = before.abs() * dale_signs(H)
    assert torch.equal(rnn.weight_hh_l0, before.abs() * dale_signs(H))


def test_sparse_has_zeros_where_the_mask_has():
    rnn = parametrized(Sparse(checkerboard()))
    after = trained(rnn)
    assert torch.equal(after != 0, checkerboard())


def test_low_rank_has_the_rank_and_begins_at_the_nearest_matrix():
    rnn = RNN(3, H, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(rnn.weight_hh_l0.detach())
    nearest = (u[:, :3] * s[:3]) @ vh[:3]
    parametrize.register_parametrization(rnn, "weight_hh_l0", LowRank(3))
    assert_close({"W": rnn.weight_hh_l0.detach()}, {"W": nearest})
    m, n = (getattr(rnn.parametrizations.weight_hh_l0, f"original{i}") for i in (0, 1))
    assert m.shape == n.shape == (H, 3)
    assert torch.linalg.matrix_rank(trained(rnn)) == 3


def test_state_dict_and_copies_and_other_dtypes():
    rnn = parametrized(*KINDS["both"]())
    other = parametrized(*KINDS["both"]())
    other.load_state_dict(rnn.state_dict())
    assert torch.equal(other.weight_hh_l0, rnn.weight_hh_l0)
    assert torch.equal(copy.deepcopy(rnn).float().weight_hh_l0, rnn.weight_hh_l0.float())


def test_initial_state_is_learned():
    rnn, initial = RNN(3, H, num_layers=2, dtype=torch.float64), InitialState(2, H).double()
    state = torch.randn(2, H, dtype=torch.float64)
    with torch.no_grad():
        initial.state.copy_(state)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    rnn(x, initial(4))[0].square().sum().backward()
    rows = state.unsqueeze(1).repeat(1, 4, 1).requires_grad_()
    rnn(x, rows)[0].square().sum().backward()
    assert_close({"state": initial.state.grad}, {"state": rows.grad.sum(1)})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Dale(torch.tensor([1.0, 0.0])), r"signs: expected a vector \[H\] of \+1 and -1"),
        (lambda: Dale(torch.ones(2, 2)), r"signs: expected a vector \[H\] of \+1 and -1"),
        (lambda: LowRank(0), "rank: expected at least 1, got 0"),
        (lambda: dale_signs(5, 1.5), r"excitatory: expected a share in \[0, 1\], got 1.5"),
    ],
)
def test_arguments_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
