"""torch.library.opcheck on every operator, in every dtype that it takes, padded and packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import FLOAT_TYPES
from layers import TANH, Layer, arguments, backward_arguments, forward
from primitives import Problem
from torch import Tensor

from fused_bptt import _ops

# The formula of the derivatives is an autograd.Function in Python, which no test of the operator's
# own registration can see; test_derivatives.py checks it.
TEST_UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
LAYER_TYPES = (torch.float32, torch.float64)
#: Those of a monitor, which hold no arithmetic: test_monitor.py.
ELSEWHERE = {"observe", "observe_more", "read", "watch"}

CLIP = {"clip": 1, "clip_limit": 0.5}

#: Arguments, and those by name.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def transposed(value: Any) -> Any:
    """The same values with dimensions in reversed order in memory."""
    if not isinstance(value, torch.Tensor) or value.dtype == torch.int64:
        return value
    order = tuple(reversed(range(value.dim())))
    return value.permute(order).contiguous().permute(order)


def primitives(dtype: torch.dtype) -> Iterator[tuple[Problem, dict[str, Any]]]:
    for G, lengths in ((2, None), (1, None), (2, (4, 2, 2))):
        p = Problem(4, 3, G, 5, 1, lengths, dtype)
        yield p, {}
        yield p, {"reset": torch.rand(p.v.shape[:-2]) < 0.5, "reset_state": p.s0.cos()}


def recurrence(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in primitives(dtype):
        yield (p.v.clone(), p.weight, p.s0, p.batch_sizes, 1, TANH), cuts


def linear_recurrence(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in primitives(dtype):
        walk = (p.batch_sizes, 1, TANH)
        yield (p.factor, p.v, p.weight, p.s0, *walk, False), cuts
        adjoint = {"reset": cuts.get("reset"), "window": 2} | CLIP
        yield (p.factor, None, p.weight, p.s0, *walk, True), adjoint


def leaky_recurrence(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in primitives(dtype):
        for gain in (p.factor.sin(), None):
            walk = (p.batch_sizes, 1, TANH)
            yield (p.v, p.factor.cos(), gain, p.weight, p.s0, *walk), cuts


def leaky_linear(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in primitives(dtype):
        for inner, adjoint in ((False, True), (True, False)):
            operands = (p.v, p.factor.cos(), p.factor, p.weight)
            cut = {"reset": cuts.get("reset"), "window": 2}
            yield (*operands, p.batch_sizes, 1, inner, adjoint), cut


def layers(dtype: torch.dtype) -> Iterator[tuple[Layer, dict[str, Any]]]:
    for G, lengths in ((2, None), (1, None), (2, (4, 4, 2, 2))):
        p = Layer(4, 4, 3, 5, G, 1, lengths, dtype)
        yield p, {}
        yield p, {"reset": torch.rand(p.x.shape[:-1]) < 0.5, "reset_state": p.h0.cos()}


def layer(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in layers(dtype):
        yield arguments(p, TANH), cuts
        yield arguments(p.without_biases(), TANH), cuts


def layer_backward(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in layers(dtype):
        operands = backward_arguments(p, forward(p, TANH)["h"], TANH)
        yield (*operands, True, True, True, True), {**cuts, "need_reset_state": bool(cuts)}
        yield (*operands, False, True, False, True), {**cuts, "members": 2}
        yield (*operands, True, False, True, False), {**cuts, "window": 2} | CLIP


def layer_backward_(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in layers(dtype):
        bars = [p.x.cos(), p.weight_ih.cos(), p.weight_hh.cos(), p.weight_ih[:, 0].cos()]
        operands = backward_arguments(p, forward(p, TANH)["h"], TANH)
        reset = {"reset": cuts.get("reset")}
        yield (*operands, *bars), reset
        reset["replaced"] = p.h0.double()
        yield (*operands, None, None, bars[2], None), reset | CLIP


def leaky_operands(p: Layer, with_gain: bool) -> tuple[Any, ...]:
    units = p.weight_ih[:, 0].cos()
    return (p.weight_ih, p.weight_hh, p.bias_ih, units, units.sin() if with_gain else None, p.h0)


def of_steps(p: Layer) -> tuple[Tensor, Tensor]:
    """keep and gain of each step, of which one has one step's memory."""
    return p.g.cos(), p.g[:1].sin().expand_as(p.g)


def leaky_layer(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in layers(dtype):
        walk, scale = (p.batch_sizes, 1, TANH), p.weight_ih[:, 0].sin()
        first = (p.x, p.weight_ih, p.weight_hh, p.bias_ih, *of_steps(p), p.h0)
        yield (*first, None, None, *walk), cuts
        yield (*first[:4], p.g > 0, None, p.h0, None, None, *walk), cuts
        yield (p.x, *leaky_operands(p, True), p.g, scale, *walk), cuts
        yield (p.x, *leaky_operands(p, False), None, None, *walk), {**cuts, "seed": 3}


def leaky_layer_backward(dtype: torch.dtype) -> Iterator[Call]:
    for p, cuts in layers(dtype):
        walk, scale = (p.batch_sizes, 1, TANH), p.weight_ih[:, 0].sin()
        first = (p.x, p.weight_ih, p.weight_hh)
        leak = (*of_steps(p), p.h0)
        found = _ops.leaky_layer(*first, None, *leak, None, None, *walk, *cuts.values())
        sent = {"sent_reset_state": cuts["reset_state"]} if cuts else {}
        operands = (*found, *found[:2], *first, *leak, p.h0, None, *walk)
        yield (*operands, True, True, True, True, False), cuts | sent
        for with_gain in (True, False):
            operands = leaky_operands(p, with_gain)
            found = _ops.leaky_layer(p.x, *operands, p.g, scale, *walk, *cuts.values())
            state, rate, last = found
            weight_ih, weight_hh, _, keep, gain, initial = operands
            given = (p.x, weight_ih, weight_hh, keep, gain, initial, initial, p.g)
            needed = (True, with_gain, True, with_gain, True)
            yield (state, None, last, state, rate, *given, *walk, *needed), cuts | sent | CLIP


def normal(dtype: torch.dtype) -> Iterator[Call]:
    yield (torch.empty(3, 8, dtype=dtype), 2, 3), {}


def flags(dtype: torch.dtype) -> Iterator[Call]:
    yield (torch.empty(3, 8, dtype=dtype), 2, 0.5, torch.tensor(3)), {}


OPERATORS: dict[str, tuple[Callable[[torch.dtype], Iterator[Call]], tuple[torch.dtype, ...]]] = {
    "recurrence_": (recurrence, FLOAT_TYPES),
    "linear_recurrence": (linear_recurrence, FLOAT_TYPES),
    "leaky_recurrence": (leaky_recurrence, FLOAT_TYPES),
    "leaky_linear": (leaky_linear, FLOAT_TYPES),
    "layer": (layer, LAYER_TYPES),
    "layer_backward": (layer_backward, LAYER_TYPES),
    "layer_backward_": (layer_backward_, LAYER_TYPES),
    "leaky_layer": (leaky_layer, LAYER_TYPES),
    "leaky_layer_backward": (leaky_layer_backward, LAYER_TYPES),
    "normal": (normal, LAYER_TYPES),
    "flags": (flags, (torch.bool,)),
}


def test_no_operator_is_left_out() -> None:
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fused_bptt::")]
    schemas = [torch._C._get_schema(name, "") for name in names]
    of_tensors = {
        schema.name.removeprefix("fused_bptt::")
        for schema in schemas
        if any("Tensor" in str(argument.type) for argument in schema.arguments)
    }
    assert of_tensors - ELSEWHERE == set(OPERATORS)


CASES = [(name, dtype) for name, (_, dtypes) in OPERATORS.items() for dtype in dtypes]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{n}-{d}" for n, d in CASES])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    """Of contiguous operands and of others: fake kernels promise the strides of the real ones."""
    torch.manual_seed(0)
    operator = getattr(torch.ops.fused_bptt, name).default
    for positional, named in OPERATORS[name][0](dtype):
        torch.library.opcheck(operator, positional, named, test_utils=TEST_UTILS)
        if not name.endswith("_"):  # what is written has a layout of its own
            turned = [transposed(value) for value in positional]
            torch.library.opcheck(operator, turned, named, test_utils=TEST_UTILS[:2])
