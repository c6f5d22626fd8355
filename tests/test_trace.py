"""fused_bptt.trace: every factor is what autograd and the equations say it is."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_runs, raised
from tolerance import assert_close, assert_no_worse
from torch import Tensor, nn

import fused_bptt
from fused_bptt import _ops
from fused_bptt._reference import bptt_by_hand

T, B, INPUTS, H = 6, 3, 4, 5


def module(**options: object) -> nn.RNN:
    torch.manual_seed(0)
    return nn.RNN(INPUTS, H, dtype=torch.float64, **options)  # type: ignore[arg-type]


def inputs(rnn: nn.RNN) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    shape = (B, T, INPUTS) if rnn.batch_first else (T, B, INPUTS)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    return (
        torch.randn(shape, dtype=torch.float64),
        torch.randn(states, B, H, dtype=torch.float64),
    )


def every_output(output: Tensor, h_n: Tensor) -> Tensor:
    """Asks something else of every state."""
    weights = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).cos()
    return (output * weights).square().sum() + (h_n * h_n).sum()


@pytest.mark.parametrize("kind", [nn.RNN, fused_bptt.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nonlinearity": "relu"},
        {"bias": False},
        {"batch_first": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_shares_sum_to_the_gradients_of_torch(kind: type[nn.RNNBase], options: dict) -> None:
    rnn = module(**options)
    x, hx = inputs(rnn)
    traced = rnn if kind is nn.RNN else fused_bptt.RNN.from_torch(rnn)
    leaf, leaf_hx = x.clone().requires_grad_(), hx.clone().requires_grad_()
    every_output(*rnn(leaf, leaf_hx)).backward()
    for layer in range(rnn.num_layers):
        for direction in range(2 if rnn.bidirectional else 1):
            found = fused_bptt.trace(
                traced, x, hx, every_output, layer=layer, reverse=bool(direction)
            )
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            theirs = {
                name: getattr(rnn, f"weight_{name[2:]}{suffix}").grad for name in ("W_ih", "W_hh")
            }
            ours = {name: found.shares(name).sum(0) for name in theirs}
            if rnn.bias:
                ours["b"] = found.shares("b").sum(0)
                theirs["b"] = getattr(rnn, f"bias_hh{suffix}").grad
            states = layer * (2 if rnn.bidirectional else 1) + direction
            ours["h0"], theirs["h0"] = found.dh0, leaf_hx.grad[states]
            assert_close(ours, theirs)
            assert_close(
                {name: found.gradient(name) for name in ("W_ih", "W_hh")},
                {name: theirs[name] for name in ("W_ih", "W_hh")},
            )
    if not rnn.bidirectional:
        dx = found.shares("x")
        assert_close({"x": dx.transpose(0, 1) if rnn.batch_first else dx}, {"x": leaf.grad})


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_factor_is_that_of_the_equations(nonlinearity: str) -> None:
    rnn = module(nonlinearity=nonlinearity)
    x, hx = inputs(rnn)
    found = fused_bptt.trace(rnn, x, hx, every_output)
    b = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
    by_hand = bptt_by_hand(
        x, rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach(), b, hx[0], found.g, nonlinearity
    )
    assert_close(
        {"h": found.h, "delta": found.delta, "q": found.q, "x": found.shares("x")},
        {"h": by_hand.h, "delta": by_hand.dh, "q": by_hand.q, "x": by_hand.dx},
    )
    z = found.z.clone().requires_grad_()
    phi = getattr(torch, nonlinearity)
    phi(z).sum().backward()
    assert_close({"h": found.h, "slope": found.slope}, {"h": phi(z).detach(), "slope": z.grad})


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_jacobians_are_autograds(nonlinearity: str) -> None:
    rnn = module(nonlinearity=nonlinearity)
    x, hx = inputs(rnn)
    found = fused_bptt.trace(rnn, x, hx)

    def last(t: int, row: int, state: Tensor) -> Tensor:
        """h_T from h_t."""
        if t == T:
            return state
        return rnn(x[t:, row], state[None])[1][0]

    for row in range(B):
        for t in range(T + 1):
            state = hx[0, row] if t == 0 else found.h[t - 1, row]
            expected = torch.autograd.functional.jacobian(lambda s: last(t, row, s), state)  # noqa: B023
            assert_close({"to_last": found.to_last(t)[row]}, {"to_last": expected})
            norm = found.log10_norms_to_last()[t, row]
            assert norm.item() == pytest.approx(expected.norm().log10().item(), abs=1e-12)
    assert torch.equal(found.jacobians()[2], found.jacobian(3))
    assert torch.equal(found.jacobian(T), found.to_last(T - 1))
    radii = torch.linalg.eigvals(found.jacobians()).abs().amax(-1)
    assert_close({"radii": found.spectral_radii()}, {"radii": radii})


@pytest.mark.parametrize("rows", [1, B])
def test_norms_of_shares_are_those_of_the_shares(rows: int) -> None:
    rnn = module()
    x, hx = inputs(rnn)
    found = fused_bptt.trace(rnn, x[:, :rows], hx[:, :rows], every_output)
    for name in ("W_ih", "W_hh", "b", "x"):
        expected = found.shares(name).flatten(1).norm(dim=1)
        assert_close({name: found.share_norms(name)}, {name: expected})


def test_a_reverse_walk_is_that_of_the_reversed_input() -> None:
    rnn = module(bidirectional=True)
    x, hx = inputs(rnn)
    there = fused_bptt.trace(rnn, x, hx, lambda output, h_n: h_n[1].sum(), reverse=True)
    alone = nn.RNN(INPUTS, H, dtype=torch.float64)
    for name, parameter in alone.named_parameters():
        parameter.data = getattr(rnn, name + "_reverse").data
    here = fused_bptt.trace(alone, x.flip(0), hx[1:])
    assert_close({"h": there.h, "q": there.q}, {"h": here.h, "q": here.q})


def test_unbatched_is_a_batch_of_one() -> None:
    rnn = module()
    x, hx = inputs(rnn)
    one = fused_bptt.trace(rnn, x[:, 0], hx[:, 0])
    assert_close({"q": one.q}, {"q": fused_bptt.trace(rnn, x[:, :1], hx[:, :1]).q})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_no_worse_than_torch(dtype: torch.dtype) -> None:
    rnn = module()
    x, hx = inputs(rnn)
    low = nn.RNN(INPUTS, H, dtype=dtype)
    low.load_state_dict(rnn.state_dict())
    wide = nn.RNN(INPUTS, H, dtype=torch.float64)
    wide.load_state_dict(low.state_dict())
    x, hx = x.to(dtype), hx.to(dtype)
    low(x, hx)[1].sum().backward()
    truth = fused_bptt.trace(wide, x.double(), hx.double())
    found = fused_bptt.trace(low, x, hx)
    assert_no_worse(
        {"W_hh": found.gradient("W_hh")},
        {"W_hh": low.weight_hh_l0.grad},
        {"W_hh": truth.gradient("W_hh")},
    )


def test_nothing_of_the_module_is_changed() -> None:
    rnn = module()
    rnn.weight_hh_l0.requires_grad_(False)
    x, hx = inputs(rnn)
    with torch.no_grad():
        found = fused_bptt.trace(rnn, x, hx)
    assert all(parameter.grad is None for parameter in rnn.parameters())
    assert not rnn.weight_hh_l0.requires_grad
    assert not x.requires_grad
    assert not any(getattr(found, name).requires_grad for name in ("h", "q", "W_hh", "z"))


@pytest.mark.parametrize(("factor", "says"), [(0.5, "vanishes: below"), (1.7, "explodes: above")])
def test_flow_names_the_step(factor: float, says: str) -> None:
    rnn = nn.RNN(1, 3, bias=False, nonlinearity="relu", dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(factor * torch.eye(3))
        rnn.weight_ih_l0.fill_(1)
    found = fused_bptt.trace(rnn, torch.ones(30, 1, dtype=torch.float64))
    steps = 10 if factor == 0.5 else 14  # the first power past 1/1000 and past 1000
    assert f"{says} {'0.001' if factor < 1 else '1000'} at t = {30 - steps} " in found.flow()
    assert f"on average {factor} times a step" in found.flow()


def test_flow_of_what_stays() -> None:
    rnn = nn.RNN(1, 3, bias=False, nonlinearity="relu", dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.eye(3))
        rnn.weight_ih_l0.fill_(1)
    found = fused_bptt.trace(rnn, torch.ones(30, 1, dtype=torch.float64))
    assert "neither vanishes nor explodes (on average 1 times a step)" in found.flow()


def test_the_check_sees_a_wrong_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = module()
    right = _ops.linear_recurrence
    calls = []

    def wrong(*args: object) -> tuple[Tensor, Tensor]:
        q, last = right(*args)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 1:
            q[2, 0, 0] += 1e-3
        return q, last

    monkeypatch.setattr(_ops, "linear_recurrence", wrong)
    with pytest.raises(AssertionError, match="q_t"):
        fused_bptt.trace(rnn, *inputs(rnn))


@pytest.mark.parametrize("share", ["W_hh", "x"])
def test_the_check_sees_a_wrong_sum(monkeypatch: pytest.MonkeyPatch, share: str) -> None:
    right = fused_bptt.Trace.gradient

    def wrong(self: fused_bptt.Trace, name: str) -> Tensor:
        return right(self, name) * (1.001 if name == share else 1)

    monkeypatch.setattr(fused_bptt.Trace, "gradient", wrong)
    rnn = module()
    with pytest.raises(AssertionError, match=f"sum of the shares of {share}"):
        fused_bptt.trace(rnn, *inputs(rnn))


def test_long_and_wide_takes_no_memory_for_the_jacobians() -> None:
    """T · H · H float32 numbers would be 10.5 GB, and 1.3 GB of the second."""
    said = assert_runs(
        """
import resource, torch, fused_bptt
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rnn = torch.nn.RNN(8, 512)
found = fused_bptt.trace(rnn, torch.randn(10_000, 1, 8))
assert found.share_norms("W_hh").shape == (10_000,)
rnn = torch.nn.RNN(8, 180)
found = fused_bptt.trace(rnn, torch.randn(10_000, 1, 8))
assert found.log10_norms_to_last().shape == (10_001, 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    )
    assert int(said) < 500_000, "kilobytes"


def refuse(*args: object, **options: object) -> str:
    return raised(lambda: fused_bptt.trace(*args, **options))[1]  # type: ignore[arg-type]


def test_refusals_say_name_expected_and_got() -> None:
    rnn = module(num_layers=2, dropout=0.5)
    x, _ = inputs(rnn)
    assert refuse(rnn, x) == "rnn: expected no dropout while tracing; call rnn.eval() first"
    rnn.eval()
    assert (
        refuse(nn.LSTM(INPUTS, H), x) == "rnn: expected a fused_bptt.RNN or torch.nn.RNN, got LSTM"
    )
    packed = nn.utils.rnn.pack_sequence([x[:, 0]])
    assert "x: expected a Tensor, got PackedSequence" in refuse(rnn, packed)
    assert refuse(rnn, x.numpy()) == "x: expected a Tensor, got ndarray"
    assert refuse(rnn, x, [0.0]) == "hx: expected a Tensor, got list"
    assert refuse(nn.Linear(2, 3), x).endswith("got Linear")
    other = fused_bptt.RNN(INPUTS, H, nonlinearity="softplus")
    assert refuse(other, x) == "nonlinearity: expected 'tanh' or 'relu', got 'softplus'"
    assert refuse(rnn, x, layer=2) == "layer: expected 0 to 1, got 2"
    assert "not bidirectional" in refuse(rnn, x, reverse=True)
    assert "at least one step" in refuse(rnn, x[:0])
    assert refuse(rnn, x, loss=lambda output, h_n: output) == (
        f"loss: expected a scalar tensor, got {[T, B, H]}"
    )
    assert "got float" in refuse(rnn, x, loss=lambda output, h_n: 1.0)
    assert "uses neither" in refuse(rnn, x, loss=lambda output, h_n: torch.ones(()))
    assert "input.size(-1) must be equal to input_size" in refuse(rnn, x[..., 1:])
    found = fused_bptt.trace(rnn, x)
    assert raised(lambda: found.share("W_hh", 0))[1] == f"t: expected a step from 1 to {T}, got 0"
    assert (
        raised(lambda: found.to_last(T + 1))[1] == f"t: expected a step from 0 to {T}, got {T + 1}"
    )
    assert "expected one of W_ih, W_hh, b, x, got 'W'" in raised(lambda: found.share("W", 1))[1]


def test_repr_names_the_arrays_and_their_shapes() -> None:
    rnn = module()
    said = repr(fused_bptt.trace(rnn, *inputs(rnn)))
    assert "Trace of tanh, 6 steps, torch.float64" in said
    assert f"q     {[T, B, H]}" in said
