"""Resets of the state inside a sequence, and gradients that go back a window of steps only."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from against_loop import resets, setting, with_gradients
from cases import Case, ids, variants
from helpers import FLOAT_TYPES, cotangent, data_of
from layers import Layer
from primitives import Operators, Problem
from taped import taped_rnn
from tolerance import Named, assert_close, assert_exact
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap
from torch.nn.utils.rnn import PackedSequence

import fused_bptt
from fused_bptt import _autograd, _ops

CASES = tuple(
    variants(
        Case("reset", T=9, B=5, I=3, H=17),
        nonlinearity=("tanh", "relu"),
        num_layers=(1, 2),
        bidirectional=(False, True),
        lengths=(None, (2, 9, 1, 4, 4)),
    )
)
SMALL = tuple(
    variants(
        Case("small", T=4, B=3, I=2, H=2), bidirectional=(False, True), lengths=(None, (4, 2, 4))
    )
)


def solve(case: Case, ours: bool, second: bool, learned: bool = True, **options: Any) -> Named:
    """Outputs, gradients, and those of the gradients' squares."""
    both = setting(case)
    options["reset"] = resets(case, data_of(both.x))
    options["reset_state"] = both.state if learned else both.state.detach()
    found = both.ours(**options) if ours else both.loop(**options)
    return with_gradients(found, both.leaves(learned=learned), second=second)


@pytest.mark.isa
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_equals_the_loop(case: Case, window: int) -> None:
    for second in (False, True):  # one operator, or the primitives with products around them
        found = solve(case, True, second, bptt_window=window)
        assert_close(found, solve(case, False, second, bptt_window=window))


@pytest.mark.parametrize("case", SMALL, ids=ids(SMALL))
def test_gradcheck(case: Case) -> None:
    x, hx, weights, state, _ = setting(case)
    mask = resets(case, data_of(x))

    def function(data: Tensor, hx: Tensor, state: Tensor, *weights: Tensor) -> Any:
        given = PackedSequence(data, x.batch_sizes) if isinstance(x, PackedSequence) else data
        options = {"reset": mask, "reset_state": state, "bidirectional": case.bidirectional}
        output, h_n = fused_bptt.rnn(given, hx, weights, **options)
        return data_of(output), h_n

    point = (data_of(x), hx, state, *weights)
    assert gradcheck(function, point, check_forward_ad=True)
    assert gradgradcheck(function, point)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("lengths", [None, (4, 3, 1)])
def test_gradcheck_of_the_linear_recurrence(
    lengths: tuple[int, ...] | None, adjoint: bool, window: int
) -> None:
    p = Problem(T=4, B=3, G=2, H=2, reverse_groups=1, lengths=lengths)
    mask = torch.rand(p.v.shape[:-1]) < 0.4  # of each group its own
    state = None if adjoint else cotangent(p.s0, 1).requires_grad_()
    point = [t.clone().requires_grad_() for t in (p.factor, p.v, p.weight, p.s0)]

    def function(*args: Tensor) -> Any:
        factor, v, weight, s0, *states = args
        cuts = (mask, states[0] if states else None, window)
        walk = (p.batch_sizes, p.reverse_groups, 0, adjoint)
        return _autograd.linear_recurrence(factor, v, weight, s0, *walk, *cuts)

    arguments = [*point] if state is None else [*point, state]
    assert gradcheck(function, arguments, check_forward_ad=True)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_segments_are_sequences_of_their_own(bidirectional: bool, dtype: torch.dtype) -> None:
    """The same bits as each segment run alone, from the state that it begins with."""
    case = Case("segments", T=12, B=1, I=3, H=19, bidirectional=bidirectional)
    module = case.module(fused_bptt.RNN, dtype)
    x, hx = (value.detach() for value in case.inputs(dtype))
    state = cotangent(hx, 3)
    starts = [0, 1, 5, 6, 12]
    mask = torch.zeros(12, 1, dtype=torch.bool)
    mask[starts[1:-1]] = True
    found, h_n = module(x, hx, reset=mask, reset_state=state)
    outputs = []
    for begin, end in itertools.pairwise(starts):
        initial = state.clone()
        if begin == 0:
            initial[0] = hx[0]
        if bidirectional and end == 12:
            initial[1] = hx[1]
        output, last = module(x[begin:end], initial)
        outputs.append(output)
        if end == 12:
            assert_exact({"h_n": h_n[0]}, {"h_n": last[0]})
        if begin == 0 and bidirectional:
            assert_exact({"h_n": h_n[1]}, {"h_n": last[1]})
    assert_exact({"output": found}, {"output": torch.cat(outputs)})


def test_nothing_crosses() -> None:
    """Neither a gradient nor a value, not even NaN."""
    case = Case("crossing", T=6, B=2, I=3, H=5)
    module, (x, hx) = case.module(fused_bptt.RNN), case.inputs()
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[3, 0] = True
    output, _ = module(x, hx, reset=mask)
    output[3:, 0].sum().backward()
    assert torch.equal(x.grad[:3, 0], torch.zeros(3, 3, dtype=x.dtype))
    assert torch.equal(hx.grad[:, 0], torch.zeros(1, 5, dtype=x.dtype))
    with torch.no_grad():
        x[1, 0] = torch.nan
        output, _ = module(x, hx, reset=mask)
    assert output[1:3, 0].isnan().all()
    assert output[3:, 0].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        found: Named = {}
        for B, H in ((67, 61), (2, 331)):
            case = Case("threads", T=40, B=B, I=5, H=H)
            solved = solve(case, True, second=False, bptt_window=7)
            found |= {f"{H} {name}": value for name, value in solved.items()}
        results.append(found)
    assert_exact(*results)


def test_a_long_sum_of_a_learned_state() -> None:
    """Of as many steps as there are, its gradient in float32 has the error of one number."""
    T, B, H = 40_000, 1, 3
    p = Layer(T, B, 1, H)
    p = p.but(x=p.x.abs(), g=p.g.abs(), weight_hh=p.weight_hh.abs())

    def gradient(dtype: torch.dtype) -> Tensor:
        weights = [p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh]
        state = p.h0.detach().to(dtype).requires_grad_()
        options = {"reset": torch.ones(T, B, dtype=torch.bool), "reset_state": state}
        output, _ = fused_bptt.rnn(p.x.to(dtype), None, [w.to(dtype) for w in weights], **options)
        output.backward(p.g.to(dtype))
        return state.grad.double()

    expected = gradient(torch.float64)
    assert ((gradient(torch.float32) - expected).abs() < 3e-7 * expected.abs()).all()


@pytest.mark.parametrize("in_weights", [False, True])
@pytest.mark.parametrize("lengths", [None, (4, 3, 1)])
def test_vmap_over_masks(lengths: tuple[int, ...] | None, in_weights: bool) -> None:
    """Members with masks and states of their own."""
    members = [Problem(T=4, B=3, G=2, H=5, reverse_groups=1, lengths=lengths) for _ in range(3)]
    p = members[0]
    masks = torch.rand(3, *p.v.shape[:-2]) < 0.4
    states, weights = torch.randn(3, *p.s0.shape).double(), torch.randn(3, 2, 5, 5).double() / 4

    def walk(mask: Tensor, state: Tensor, weight: Tensor) -> Any:
        walk = (p.batch_sizes, p.reverse_groups, _ops.TANH)
        return _autograd.recurrence(p.v, weight, p.s0, *walk, mask, state)

    weight_of = [weights[i if in_weights else 0] for i in range(3)]
    alone = [walk(masks[i], states[i], weight_of[i]) for i in range(3)]
    expected = [torch.stack(values) for values in zip(*alone, strict=True)]
    given = weights if in_weights else weights[0]
    found = vmap(walk, in_dims=(0, 0, 0 if in_weights else None))(masks, states, given)
    assert_close(dict(zip("hl", found, strict=True)), dict(zip("hl", expected, strict=True)))


def test_compiled() -> None:
    case = Case("compiled", T=5, B=3, bidirectional=True)
    module, (x, hx) = case.module(fused_bptt.RNN), case.inputs()
    mask, state = resets(case, x), cotangent(hx, 1).requires_grad_()

    def run(call: Any) -> Named:
        output, h_n = call(x, hx, reset=mask, reset_state=state, bptt_window=2)
        bars = torch.autograd.grad(output.square().sum() + h_n.sum(), (x, hx, state))
        return {str(i): value for i, value in enumerate((output.detach(), *bars))}

    torch._dynamo.reset()
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(run(call), run(module))


def test_no_steps() -> None:
    p = Problem(T=0, B=3, G=1, H=5)
    mask = torch.zeros(0, 3, dtype=torch.bool)
    h, last = Operators.recurrence(p.v, p.weight, p.s0, None, 0, _ops.TANH, mask, p.s0)
    assert_exact({"h": h, "last": last}, {"h": p.v, "last": p.s0})


MASK = torch.zeros(5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reset", {"reset": MASK.float()}),
        ("reset", {"reset": MASK.t()}),
        ("reset_state", {"reset_state": torch.zeros(1, 3, 6, dtype=torch.float64)}),
        ("reset_state", {"reset": MASK, "reset_state": torch.zeros(1, 3, 6)}),
        ("reset_state", {"reset": MASK, "reset_state": torch.zeros(2, 3, 6).double()}),
        ("bptt_window", {"bptt_window": -1}),
    ],
)
def test_wrong_arguments_are_named(name: str, options: dict[str, Any]) -> None:
    module, (x, hx) = Case("wrong").module(fused_bptt.RNN), Case("wrong").inputs()
    with pytest.raises((ValueError, RuntimeError), match=rf"^{name}: expected .*got"):
        module(x, hx, **options)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("reset", {"reset": torch.zeros(4, 2, dtype=torch.bool)}),
        ("reset", {"reset": torch.zeros(4, 3)}),
        ("reset", {"reset": torch.zeros(4, 3, 3, dtype=torch.bool)}),
        ("reset_state", {"reset_state": torch.zeros(2, 3, 4)}),
        ("reset_state", {"reset": None}),
        ("window", {"window": -1}),
        ("reset_state", {"adjoint": True}),
    ],
)
def test_wrong_operands_are_named(name: str, wrong: dict[str, Any]) -> None:
    zeros = torch.zeros(4, 3, 2, 5)
    right = {
        **{"factor": zeros, "v": None, "weight": zeros.new_zeros(2, 5, 5), "s0": None},
        **{"batch_sizes": None, "reverse_groups": 1, "derivative": 0, "adjoint": False},
        "reset": torch.zeros(4, 3, dtype=torch.bool),
        "reset_state": zeros.new_zeros(2, 3, 5),
        "window": 0,
    }
    _ops.linear_recurrence(**right)
    with pytest.raises(RuntimeError, match=rf"^{name}: expected .*got"):
        _ops.linear_recurrence(**(right | wrong))


def test_forward_mode_is_cut_too() -> None:
    """As `detach` does: a tangent does not cross a multiple of the window."""
    case = Case("tangents", T=6)
    x, hx, weights, *_ = setting(case)

    def run(rnn: Any) -> Any:
        return jvp(
            lambda x, hx: rnn(x, hx, weights, bptt_window=4), (x, hx), (x.detach(), hx.detach())
        )

    (found, found_dot), (expected, expected_dot) = run(fused_bptt.rnn), run(taped_rnn)
    names = ("output", "h_n", "output_dot", "h_n_dot")
    assert_close(
        {n: v.detach() for n, v in zip(names, (*found, *found_dot), strict=True)},
        {n: v.detach() for n, v in zip(names, (*expected, *expected_dot), strict=True)},
    )
