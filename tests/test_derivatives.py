"""Gradients by finite differences, of second order, and only those that are asked for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import Case, ids
from helpers import cotangent, data_of
from primitives import Problem, problems
from tolerance import Named, assert_close
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import fused_bptt
from fused_bptt import _algebra, _autograd

CASES = (
    Case("tanh", T=3, B=2, I=2, H=3),
    Case("relu", T=3, B=2, I=2, H=3, nonlinearity="relu"),
    Case("stacked", T=3, B=2, I=2, H=2, num_layers=2, bidirectional=True),
    Case("no-bias", T=3, B=2, I=2, H=3, bias=False, batch_first=True),
    Case("packed", T=3, B=3, I=2, H=2, bidirectional=True, lengths=(1, 3, 2)),
    Case("packed-relu", T=3, B=3, I=2, H=2, nonlinearity="relu", lengths=(1, 3, 2)),
    Case("one-step", T=1, B=2, I=2, H=3, bidirectional=True),
)


def as_function(case: Case) -> tuple[Any, tuple[Tensor, ...]]:
    """fused_bptt.rnn as a function of tensors alone, and a point to differentiate it at."""
    x, hx = case.inputs()
    options = {k: v for k, v in case.options.items() if k not in ("input_size", "hidden_size")}

    def function(data: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        input = x._replace(data=data) if isinstance(x, PackedSequence) else data
        output, h_n = fused_bptt.rnn(input, hx, weights, **options)
        return data_of(output), h_n

    return function, (data_of(x), hx, *case.module().parameters())


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_gradcheck(case: Case) -> None:
    function, point = as_function(case)
    assert gradcheck(function, point)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_gradgradcheck(case: Case) -> None:
    function, point = as_function(case)
    assert gradgradcheck(function, point)


PROBLEMS = [p for p in problems((torch.float64,)) if p.v.numel() <= 80]
PROBLEMS += [
    Problem(T=3, B=3, G=2, H=2, reverse_groups=r, lengths=lengths)
    for r in (0, 1)
    for lengths in ((3, 2, 2), (3, 1, 1))
]


@pytest.mark.parametrize("derivative", [0, 1, 2])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradcheck_of_the_linear_recurrence(
    problem: Problem, adjoint: bool, derivative: int
) -> None:
    p = problem
    point = [t.clone().requires_grad_() for t in (p.factor, p.v, p.weight, p.s0)]

    def function(factor: Tensor, v: Tensor, weight: Tensor, s0: Tensor | None = None) -> Tensor:
        return _autograd.linear_recurrence(
            factor, v, weight, s0, p.batch_sizes, p.reverse_groups, derivative, adjoint
        )

    for arguments in (point, point[:3]):  # with s_0 and without
        assert gradcheck(function, arguments)
    if p.H < 5:
        assert gradgradcheck(function, point)


def gradient_penalty(case: Case, kind: type[nn.RNNBase]) -> Named:
    """Gradients of the squared norm of a gradient, by backward through backward."""
    module = case.module(kind)
    x, hx = case.inputs()
    output, h_n = module(x, hx)
    loss = (cotangent(data_of(output), 0) * data_of(output)).sum() + h_n.square().sum()
    first = torch.autograd.grad(loss, [data_of(x), hx, *module.parameters()], create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first)
    leaves = {"x": data_of(x), "hx": hx, **dict(module.named_parameters())}
    second = torch.autograd.grad(penalty, list(leaves.values()))
    return dict(zip(leaves, second, strict=True))


LARGER = (
    Case("tanh", T=9, B=5, I=3, H=17),
    Case("relu", T=9, B=5, I=3, H=17, nonlinearity="relu"),
    Case("stacked", T=5, B=3, I=3, H=9, num_layers=2, bidirectional=True),
    Case("packed", T=6, B=5, I=3, H=9, bidirectional=True, lengths=(2, 6, 1, 4, 4)),
)


@pytest.mark.parametrize("case", LARGER, ids=ids(LARGER))
def test_second_order_equals_torch(case: Case) -> None:
    assert_close(gradient_penalty(case, fused_bptt.RNN), gradient_penalty(case, nn.RNN))


T, B, I, H = 10, 8, 16, 32  # noqa: E741
LEAVES = ("x", "weight_ih", "weight_hh", "bias", "hx")
PRODUCTS = {
    "x": 2 * T * B * I * H,
    "weight_ih": 2 * T * B * I * H,
    "weight_hh": 2 * T * B * H * H,
    "bias": 0,
    "hx": 0,  # W_hhᵀ q_1 is where the walk ends
}


@register_flop_formula(torch.ops.fused_bptt.layer_backward)
def _(*shapes: Any, out_shape: Any) -> int:
    """Of the products of a whole layer's backward, those whose results it returns."""
    x_bar, _, weight_ih_bar, weight_hh_bar, *_ = out_shape
    returned = {"x": x_bar, "weight_ih": weight_ih_bar, "weight_hh": weight_hh_bar}
    return sum(PRODUCTS[name] for name, shape in returned.items() if shape is not None)


ASKED = [names for n in (1, 2, 4, 5) for names in itertools.combinations(LEAVES, n)]


@pytest.mark.parametrize("asked", ASKED, ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["layer", "recurrence"])
def test_only_what_is_asked_for_is_computed(asked: tuple[str, ...], dtype: torch.dtype) -> None:
    """The dense products of backward are those of the gradients that are asked for."""
    case = Case("asked", T=T, B=B, I=I, H=H)
    module = case.module(fused_bptt.RNN, dtype)
    x, hx = case.inputs(dtype)
    leaves = {
        "x": [x],
        "hx": [hx],
        "weight_ih": [module.weight_ih_l0],
        "weight_hh": [module.weight_hh_l0],
        "bias": [module.bias_ih_l0, module.bias_hh_l0],
    }
    for name, tensors in leaves.items():
        for tensor in tensors:
            tensor.requires_grad_(name in asked)
    output, _ = module(x, hx)
    with FlopCounterMode(display=False) as counter:
        output.backward(cotangent(output, 0))
    for name, tensors in leaves.items():
        assert all((tensor.grad is not None) == (name in asked) for tensor in tensors), name
    assert counter.get_total_flops() == sum(PRODUCTS[name] for name in asked)


def test_nothing_is_recorded_when_nothing_is_asked_for() -> None:
    module = Case("frozen").module(fused_bptt.RNN).requires_grad_(False)
    x, hx = (value.detach() for value in Case("frozen").inputs())
    output, h_n = module(x, hx)
    assert not output.requires_grad
    assert not h_n.requires_grad


def test_nothing_is_saved_but_h() -> None:
    """Beside the arguments, backward keeps one tensor of the output's size: h itself."""
    case = Case("saved", T=50, B=4, I=3, H=16)
    module = case.module(fused_bptt.RNN)
    x, hx = case.inputs()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output, _ = module(x, hx)
    arguments = {value.untyped_storage().data_ptr() for value in (x, hx, *module.parameters())}
    beyond = sum(size for pointer, size in kept.items() if pointer not in arguments)
    assert beyond <= output.untyped_storage().nbytes()


def test_backward_twice() -> None:
    case = Case("twice")
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        x, hx = case.inputs()
        output, _ = case.module(kind)(x, hx)
        output.sum().backward(retain_graph=True)
        output.square().sum().backward()
        results.append({"x": x.grad, "hx": hx.grad})
    assert_close(*results)


def test_truncated_backpropagation() -> None:
    """The state goes on without its history: gradients end where detach says."""
    case = Case("truncated", T=12)
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = case.module(kind)
        x, state = case.inputs()
        for piece in x.split(4):
            output, state = module(piece, state.detach())
            output.sum().backward()
        results.append({"x": x.grad, **{n: p.grad for n, p in module.named_parameters()}})
    assert_close(*results)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_are_not_one_memory(bidirectional: bool) -> None:
    """A change of one gradient, as clipping makes, is not seen in another."""
    module = Case("own", bidirectional=bidirectional).module(fused_bptt.RNN)
    output, _ = module(*Case("own", bidirectional=bidirectional).inputs())
    output.sum().backward()
    before = {name: p.grad.clone() for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.grad.fill_(7)
        before[name].fill_(7)
        for other, value in module.named_parameters():
            assert torch.equal(value.grad, before[other]), f"{name} and {other}"


def test_second_order_does_not_copy_weights_for_each_row() -> None:
    """Each row is multiplied by its group's matrix; the matrices of all rows would be 64 MiB."""
    rows, weight = torch.randn(16, 8, 2, 256), torch.randn(2, 256, 256)
    with torch.profiler.profile(profile_memory=True) as profile:
        found = _algebra.multiply(rows, weight)
    expected = torch.einsum("tbgh,ghk->tbgk", rows, weight)
    assert torch.allclose(found, expected, atol=1e-3)
    most = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert most <= 4 * rows.nbytes
