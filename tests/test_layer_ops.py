"""The operators of a whole layer: registered as PyTorch asks, and equal to the plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import OPTIONS, PACKED, SIZES, UNBATCHED, WIDE, Case, ids
from helpers import run_case
from layers import (
    BARS,
    OPERANDS,
    RELU,
    TANH,
    Layer,
    arguments,
    backward,
    backward_arguments,
    composed,
    composed_backward,
    forward,
    only,
    solved,
    taped,
)
from tolerance import (
    Named,
    assert_close,
    assert_exact,
    assert_no_worse,
    assert_same_nonfinite,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_bptt
from fused_bptt import _ops

DTYPES = (torch.float64, torch.float32)

SMALL = (
    Layer(1, 1, 1, 1),
    Layer(5, 3, 4, 6),
    Layer(5, 3, 4, 9, G=2, reverse_groups=1),
    Layer(4, 7, 17, 5, G=3, reverse_groups=2),
    Layer(6, 6, 3, 17, G=2, reverse_groups=1, lengths=(6, 5, 5, 2, 1, 1)),
    Layer(4, 2, 9, 8, reverse_groups=1, lengths=(4, 2)),
)
# Rows enough for several chunks, and for several blocks of a sum.
LONG = (
    Layer(90, 11, 9, 17),
    Layer(61, 15, 33, 31, G=2, reverse_groups=1),
    Layer(61, 15, 16, 33, G=2, reverse_groups=2),
    Layer(700, 1, 5, 40, reverse_groups=1),
    Layer(3, 600, 7, 9),
    Layer(2, 1100, 3, 5, G=2, reverse_groups=1),
    Layer(90, 30, 5, 19, lengths=tuple(90 - 3 * row for row in range(30))),
    Layer(40, 40, 8, 16, 2, 1, lengths=tuple(40 - row for row in range(40))),
)
# Enough work for more than one thread, shared by rows, by columns and by groups.
WORTH_THREADS = (
    Layer(40, 67, 50, 61),
    Layer(60, 3, 20, 331),
    Layer(20, 21, 130, 97, G=2, reverse_groups=1),
    Layer(100, 1, 300, 200),
    Layer(60, 70, 40, 61, lengths=tuple(60 - row // 2 for row in range(70))),
)
each_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_phi = pytest.mark.parametrize("phi", [TANH, RELU], ids=["tanh", "relu"])
every_problem = pytest.mark.parametrize("problem", SMALL + LONG, ids=str)


@pytest.mark.isa
@each_type
@each_phi
@every_problem
def test_equals_the_plain_loop(problem: Layer, phi: int, dtype: torch.dtype) -> None:
    problem = problem.away_from_the_kink() if phi == RELU else problem
    p = problem.to(dtype)
    truth = taped(p.to(torch.float64), phi)
    if dtype == torch.float64:
        assert_close(solved(p, phi), truth)
        return
    found, rival = solved(p, phi), taped(p, phi)
    if phi == RELU:
        for result in (found, rival):
            assert torch.equal(result["h"] > 0, truth["h"] > 0), "the case is well scaled"
    assert_no_worse(found, rival, truth)


@pytest.mark.parametrize("without", ["biases", "g", "g_last"])
@each_phi
@every_problem
def test_without_an_operand(problem: Layer, phi: int, without: str) -> None:
    p = problem.without_biases() if without == "biases" else problem.but(**{without: None})
    expected = taped(p, phi)
    assert_close(only(solved(p, phi), expected), expected)


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_without_any_cotangent(problem: Layer) -> None:
    p = problem.but(g=None, g_last=None)
    found = backward(p, forward(p, TANH)["h"], TANH)
    assert_exact(found, {name: torch.zeros_like(value) for name, value in found.items()})


@pytest.mark.parametrize("problem", [SMALL[2], SMALL[4], LONG[1], LONG[7]], ids=str)
def test_what_is_needed_does_not_depend_on_what_else_is(problem: Layer) -> None:
    h = forward(problem, TANH)["h"]
    every = backward(problem, h, TANH)
    for need in itertools.product((False, True), repeat=4):
        *bars, _ = _ops.layer_backward(*backward_arguments(problem, h, TANH), *need)
        wanted = (need[0], True, *need[1:])
        assert [bar is not None for bar in bars] == list(wanted)
        found = {n: bar for n, bar in zip(BARS, bars, strict=True) if bar is not None}
        assert_exact(found, only(every, found))


def of_member(p: Layer, h: Tensor, n: int, member: int) -> tuple[Layer, Tensor]:
    """One member's rows of what n members have side by side."""

    def rows(value: Tensor, dim: int) -> Tensor:
        return value.unflatten(dim, (-1, n)).select(dim + 1, member)

    dim = 0 if p.batch_sizes is not None else 1
    alone = p.but(x=rows(p.x, dim), g=rows(p.g, dim), h0=rows(p.h0, 1), g_last=rows(p.g_last, 1))
    alone.batch_sizes = None if p.batch_sizes is None else p.batch_sizes // n
    return alone, rows(h, dim)


OF_MEMBERS = (
    Layer(5, 6, 4, 6),
    Layer(5, 6, 4, 9, G=2, reverse_groups=1),
    Layer(700, 6, 5, 40, reverse_groups=1),  # several chunks of one member's rows
    Layer(90, 12, 33, 31, G=3, reverse_groups=2),
    Layer(4, 6, 3, 17, G=2, reverse_groups=1, lengths=(4, 4, 4, 2, 2, 2)),
    Layer(0, 6, 3, 5),
    Layer(40, 66, 50, 61),
)


@pytest.mark.isa
@each_type
@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("problem", OF_MEMBERS, ids=str)
def test_gradients_of_each_member_are_its_own(problem: Layer, n: int, dtype: torch.dtype) -> None:
    """To the bit, on any number of threads."""
    if problem.batch_sizes is not None and n in (2, 6):
        return
    p = problem.to(dtype)
    h = forward(p, TANH)["h"]
    alone = [backward(*of_member(p, h, n, member), TANH) for member in range(n)]
    expected = {name: torch.stack([bars[name] for bars in alone]) for name in BARS}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        *bars, _ = _ops.layer_backward(*backward_arguments(p, h, TANH), *[True] * 4, members=n)
        found = dict(zip(BARS, bars, strict=True))
        for name, dim in (("x_bar", 0 if p.batch_sizes is not None else 1), ("h0_bar", 1)):
            found[name] = found[name].unflatten(dim, (-1, n)).movedim(dim + 1, 0)
        assert_exact(found, expected)


@pytest.mark.parametrize("members", [-1, 4])
def test_members_that_do_not_share_the_rows(members: int) -> None:
    p = SMALL[1]
    h = forward(p, TANH)["h"]
    with pytest.raises(RuntimeError, match=f"members: expected .*, got {members}"):
        _ops.layer_backward(*backward_arguments(p, h, TANH), *[True] * 4, members=members)


# ------------------------------------------------------------------------------------ sizes of zero


@pytest.fixture
def new_memory_is_nan() -> Iterator[None]:
    """What is not written is then seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


SUMS = ("weight_ih_bar", "weight_hh_bar", "bias_bar")


def assert_zero(found: Named, names: tuple[str, ...]) -> None:
    assert_exact(only(found, names), {name: torch.zeros_like(found[name]) for name in names})


@pytest.mark.usefixtures("new_memory_is_nan")
@pytest.mark.parametrize("G", [1, 2])
@pytest.mark.parametrize("size", ["T", "B", "I", "H"])
def test_nothing_of_one_kind(size: str, G: int) -> None:
    sizes = {"T": 4, "B": 3, "I": 2, "H": 5} | {size: 0}
    p = Layer(**sizes, G=G, reverse_groups=G - 1)
    found = solved(p, TANH)
    if size == "I":
        assert_close(found, taped(p, TANH))
    elif size == "H":
        assert_zero(found, ("x_bar",))
    else:
        assert_zero(found, SUMS)
    if size == "T":
        assert_exact(only(found, ["last", "h0_bar"]), {"last": p.h0, "h0_bar": p.g_last})


@pytest.mark.usefixtures("new_memory_is_nan")
def test_no_group_at_all() -> None:
    """Of no group there is no output, and x has no effect."""
    p = Layer(4, 3, 2, 5, G=0)
    found = solved(p, TANH)
    assert found["h"].shape == (4, 3, 0)
    assert_zero(found, ("x_bar",))


@pytest.mark.usefixtures("new_memory_is_nan")
@pytest.mark.parametrize("sizes", [(), (0, 0), (3, 2, 0, 0)], ids=str)
def test_packed_with_steps_of_no_rows(sizes: tuple[int, ...]) -> None:
    for reverse in (0, 1, 2):
        lengths = tuple(sum(size > row for size in sizes) for row in range(max(sizes, default=0)))
        p = Layer(len(sizes), len(lengths), 4, 5, 2, reverse, lengths)
        assert p.batch_sizes is not None
        assert p.batch_sizes.tolist() == list(sizes)
        found = solved(p, TANH)
        if p.B:
            assert_close(found, taped(p, TANH))
        else:
            assert_zero(found, SUMS)


@pytest.mark.usefixtures("new_memory_is_nan")
def test_rows_that_no_packed_step_has() -> None:
    """Only h0 says how many rows an empty packed sequence has: they keep what they have."""
    p = Layer(0, 0, 4, 5, lengths=())
    p.h0, p.g_last = torch.randn(1, 3, 5).double(), torch.randn(1, 3, 5).double()
    found = solved(p, TANH)
    assert_exact(only(found, ["last", "h0_bar"]), {"last": p.h0, "h0_bar": p.g_last})


# --------------------------------------------------------------------------------------------- bits


def reversed_order(value: Tensor) -> Tensor:
    """The same values with dimensions in reversed order in memory."""
    order = tuple(reversed(range(value.dim())))
    return value.permute(order).contiguous().permute(order)


def every_second(value: Tensor) -> Tensor:
    """The same values in the even places of a tensor with twice the rows and columns."""
    wide = value.new_full([2 * size for size in value.shape], torch.nan)
    spaced = wide[(slice(None, None, 2),) * value.dim()]
    spaced.copy_(value)
    return spaced


@pytest.mark.parametrize("lay_out", [reversed_order, every_second])
@every_problem
def test_layouts_do_not_change_the_bits(
    problem: Layer, lay_out: Callable[[Tensor], Tensor]
) -> None:
    p = problem.mapped(lay_out)
    expected = solved(problem, TANH)
    found = forward(p, TANH)
    found |= backward(p, lay_out(found["h"]), TANH)
    assert_exact(found, expected)
    assert all(value.is_contiguous() for value in found.values())


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("problem", [SMALL[2], SMALL[4], LONG[1]], ids=str)
def test_expanded_operands(problem: Layer, name: str) -> None:
    """Stride 0 in each dimension, alone and all together, as in the cotangent of a sum."""
    value = getattr(problem, name)
    wheres = [{dim} for dim in range(value.dim())] + [set(range(value.dim()))]
    for where in wheres:
        part = value[tuple(slice(0, 1) if d in where else slice(None) for d in range(value.dim()))]
        expanded = part.expand(value.shape)
        found = solved(problem.but(**{name: expanded}), TANH)
        assert_exact(found, solved(problem.but(**{name: expanded.contiguous()}), TANH))


@each_type
@each_phi
@pytest.mark.parametrize("problem", WORTH_THREADS + LONG, ids=str)
def test_one_thread_or_two_and_twice(problem: Layer, phi: int, dtype: torch.dtype) -> None:
    """Forward and every gradient; from run to run as well."""
    p = problem.to(dtype)
    results = []
    for threads in (1, 2, 2, 1, 3):
        torch.set_num_threads(threads)
        results.append(solved(p, phi))
    for result in results[1:]:
        assert_exact(result, results[0])


@pytest.mark.isa
@each_type
@each_phi
@pytest.mark.parametrize("H", [5, 33, 64])
def test_a_row_alone_is_a_row_of_the_batch(H: int, phi: int, dtype: torch.dtype) -> None:
    p = Layer(7, 300, 9, H, G=2, reverse_groups=1, dtype=dtype)
    whole = forward(p, phi)
    for row in (0, 1, 131, 299):
        alone = forward(p.but(x=p.x[:, row : row + 1], h0=p.h0[:, row : row + 1]), phi)
        expected = {name: value[:, row : row + 1] for name, value in whole.items()}
        assert_exact(alone, expected)


@each_type
def test_a_packed_row_is_a_padded_row(dtype: torch.dtype) -> None:
    """Equal lengths: packed or not is a matter of layout alone."""
    padded = Layer(29, 21, 9, 33, G=2, reverse_groups=1, dtype=dtype)
    packed = padded.but(x=padded.x.flatten(0, 1), g=padded.g.flatten(0, 1))
    packed.batch_sizes = torch.full((29,), 21)
    expected = solved(padded, TANH)
    flat = {name: expected[name].flatten(0, 1) for name in ("h", "x_bar")}
    assert_exact(solved(packed, TANH), expected | flat)


def test_one_group_may_be_left_out() -> None:
    for p in (SMALL[1], SMALL[5], LONG[0]):
        expected = solved(p, TANH)
        found = solved(p.but(weight_hh=p.weight_hh[None]), TANH)
        assert_exact(found, expected | {"weight_hh_bar": expected["weight_hh_bar"][None]})


# --------------------------------------------------------------------------------------- exact sums

T_EXACT = 10_000


def integers(*shape: int, low: int, high: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int64)


@each_type
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("H", [1, 7, 16, 33])
def test_sums_of_integers_are_exact(H: int, backwards: bool, dtype: torch.dtype) -> None:
    """relu with a permutation for W_hh: inputs that are negative in the mean keep h and q small."""
    B, I = 3, 4  # noqa: E741
    order = torch.randperm(H, generator=torch.Generator().manual_seed(H))
    weight_ih = integers(H, I, low=-1, high=3, seed=1)
    x = integers(T_EXACT, B, I, low=0, high=3, seed=2)
    bias = -weight_ih.sum(1) - 1
    h0, g_last = (integers(B, H, low=0, high=9, seed=seed) for seed in (3, 4))
    g = integers(T_EXACT, B, H, low=-2, high=3, seed=5)

    u = (x @ weight_ih.T + bias).flip(0) if backwards else x @ weight_ih.T + bias
    states, h = [h0], h0
    for step in u:
        h = (step + h[:, order]).relu()
        states.append(h)
    q, carried, inverse = [], g_last, order.argsort()
    for g_t, h_t in zip((g.flip(0) if backwards else g).flip(0), states[:0:-1], strict=True):
        q.append((g_t + carried) * (h_t > 0))
        carried = q[-1][:, inverse]
    before, after, cotangents = torch.stack(states[:-1]), torch.stack(states[1:]), torch.stack(q)
    cotangents = cotangents.flip(0)
    if backwards:
        before, after, cotangents = before.flip(0), after.flip(0), cotangents.flip(0)
    y, z, inputs = cotangents.flatten(0, 1), before.flatten(0, 1), x.flatten(0, 1)
    assert (y.abs().T @ z.abs()).max() < 2**24, "every part of the sum is exact in float32"
    assert (after == 0).any()
    assert (after > 0).any()

    p = Layer(T_EXACT, B, I, H, reverse_groups=int(backwards), dtype=dtype)
    p = p.but(
        x=x.to(dtype),
        weight_ih=weight_ih.to(dtype),
        weight_hh=torch.eye(H, dtype=dtype)[order],
        bias_ih=bias.to(dtype),
        bias_hh=torch.zeros(H, dtype=dtype),
        h0=h0[None].to(dtype),
        g=g.to(dtype),
        g_last=g_last[None].to(dtype),
    )
    expected = {
        "h": after,
        "last": states[-1][None],
        "x_bar": cotangents @ weight_ih,
        "h0_bar": carried[None],
        "weight_ih_bar": y.T @ inputs,
        "weight_hh_bar": y.T @ z,
        "bias_bar": y.sum(0),
    }
    assert_exact(solved(p, RELU), {name: value.to(dtype) for name, value in expected.items()})


def test_identity_weights_count_steps() -> None:
    """h_t counts the inputs so far, q_t the steps that are left."""
    H, B, T = 5, 2, T_EXACT
    ones, eye = torch.ones(T, B, H, dtype=torch.float64), torch.eye(H, dtype=torch.float64)
    zero = torch.zeros(1, B, H, dtype=torch.float64)
    p = Layer(T, B, H, H).but(
        x=ones, weight_ih=eye, weight_hh=eye, bias_ih=None, bias_hh=None, h0=zero, g=ones
    )
    p.g_last = None
    t = torch.arange(1, T + 1, dtype=torch.int64)
    left = t.flip(0)
    full = torch.full((H, H), 1, dtype=torch.int64)
    expected = {
        "h": t[:, None, None].expand(T, B, H),
        "last": torch.full((1, B, H), T),
        "x_bar": left[:, None, None].expand(T, B, H),
        "h0_bar": torch.full((1, B, H), T),
        "weight_ih_bar": full * B * left.sum(),
        "weight_hh_bar": full * B * (left * (t - 1)).sum(),
        "bias_bar": full[0] * B * left.sum(),
    }
    assert_exact(solved(p, RELU), {name: value.double() for name, value in expected.items()})


# --------------------------------------------------------------------------------- NaN and infinity

NONFINITE = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


@pytest.mark.isa
@each_phi
@pytest.mark.parametrize("value", NONFINITE)
@pytest.mark.parametrize("place", [*OPERANDS, "h"])
def test_nan_and_infinity_are_where_the_composition_has_them(
    place: str, value: str, phi: int
) -> None:
    for problem in (
        Layer(4, 3, 4, 5),
        Layer(4, 3, 4, 17, G=2, reverse_groups=1),
        Layer(5, 4, 4, 9, G=2, reverse_groups=1, lengths=(5, 3, 1, 1)),
        Layer(50, 12, 3, 5),
    ):
        spoiled = (forward(problem, phi)["h"] if place == "h" else getattr(problem, place)).clone()
        # Neither the first nor the last of anything that has a middle.
        spoiled[tuple((size - 1) // 2 for size in spoiled.shape)] = NONFINITE[value]
        if place == "h":
            found = backward(problem, spoiled, phi)
            expected = composed_backward(problem, spoiled, phi)
        else:
            p = problem.but(**{place: spoiled})
            found, expected = solved(p, phi), composed(p, phi)
        assert_same_nonfinite(found, expected)


# ------------------------------------------------------------------------------------- registration


def kinds(p: Layer, h: Tensor, need: tuple[bool, ...]) -> list[Any]:
    """Shape, strides and type of what both operators give."""
    results = _ops.layer(*arguments(p, TANH))
    results += _ops.layer_backward(*backward_arguments(p, h, TANH), *need)
    return [None if r is None else (r.shape, r.stride(), r.dtype) for r in results]


@pytest.mark.parametrize(
    "need", [(True,) * 4, (False, True, False, True), (True, False, True, False)], ids=str
)
@pytest.mark.parametrize("lay_out", [Tensor.contiguous, reversed_order, every_second])
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_meta_and_fake_results(
    problem: Layer, lay_out: Callable[[Tensor], Tensor], need: tuple[bool, ...]
) -> None:
    """Shapes, strides and types are those of the real results, from any layout of the operands."""
    p, h = problem.mapped(lay_out), lay_out(forward(problem, TANH)["h"])
    real = kinds(p, h, need)
    assert [kind is not None for kind in real] == [True, True, need[0], True, *need[1:], False]
    assert kinds(p.mapped(lambda x: x.to("meta")), h.to("meta"), need) == real
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # batch_sizes has to be real
        assert kinds(p.mapped(mode.from_tensor), mode.from_tensor(h), need) == real


# ----------------------------------------------------------------------------------- wrong operands


def dense(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


RIGHT = {
    "x": dense(4, 3, 7),
    "weight_ih": dense(10, 7),
    "weight_hh": dense(2, 5, 5),
    "bias_ih": dense(10),
    "bias_hh": dense(10),
    "h0": dense(2, 3, 5),
    "batch_sizes": None,
    "reverse_groups": 1,
    "nonlinearity": TANH,
}
COTANGENTS = {"g": dense(4, 3, 10), "g_last": dense(2, 3, 5), "h": dense(4, 3, 10)}
NEEDED = dict.fromkeys(("need_x", "need_weight_ih", "need_weight_hh", "need_bias"), True)
DOUBLE = torch.float64

# The culprit's name, and what is wrong.
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "x-dimensions": ("x", {"x": dense(12, 7)}),
    "x-dimensions-packed": ("x", {"batch_sizes": torch.tensor([3, 3, 3, 3])}),
    "x-integers": ("x", {"x": dense(4, 3, 7, dtype=torch.int64)}),
    "x-bfloat16": ("x", {"x": dense(4, 3, 7, dtype=torch.bfloat16)}),
    "x-float16": ("x", {"x": dense(4, 3, 7, dtype=torch.float16)}),
    "x-rows": ("h0", {"x": dense(4, 2, 7)}),
    "weight_ih-inputs": ("weight_ih", {"weight_ih": dense(10, 6)}),
    "weight_ih-units": ("weight_ih", {"weight_ih": dense(5, 7)}),
    "weight_ih-dimensions": ("weight_ih", {"weight_ih": dense(2, 5, 7)}),
    "weight_ih-type": ("weight_ih", {"weight_ih": dense(10, 7, dtype=DOUBLE)}),
    "weight_hh-dimensions": ("weight_hh", {"weight_hh": dense(5)}),
    "weight_hh-square": ("weight_hh", {"weight_hh": dense(2, 4, 5)}),
    "weight_hh-square-one-group": ("weight_hh", {"weight_hh": dense(4, 5)}),
    "weight_hh-groups": ("weight_ih", {"weight_hh": dense(1, 5, 5), "reverse_groups": 0}),
    "weight_hh-type": ("weight_hh", {"weight_hh": dense(2, 5, 5, dtype=DOUBLE)}),
    "h0-rows": ("h0", {"h0": dense(2, 4, 5)}),
    "h0-dimensions": ("h0", {"h0": dense(3, 5)}),
    "h0-type": ("h0", {"h0": dense(2, 3, 5, dtype=DOUBLE)}),
    "reverse-groups": ("reverse_groups", {"reverse_groups": 3}),
    "reverse-groups-negative": ("reverse_groups", {"reverse_groups": -1}),
    "nonlinearity": ("nonlinearity", {"nonlinearity": 6}),
    "nonlinearity-given": ("nonlinearity", {"nonlinearity": 0}),
    "sizes-sum": ("batch_sizes", {"x": dense(9, 7), "batch_sizes": torch.tensor([3, 3, 2])}),
    "sizes-more": ("batch_sizes", {"x": dense(7, 7), "batch_sizes": torch.tensor([3, 3, 2])}),
    "sizes-grow": ("batch_sizes", {"x": dense(9, 7), "batch_sizes": torch.tensor([3, 2, 4])}),
    "sizes-negative": ("batch_sizes", {"x": dense(2, 7), "batch_sizes": torch.tensor([3, -1])}),
    "sizes-overflow": ("batch_sizes", {"x": dense(0, 7), "batch_sizes": torch.tensor([2**62] * 4)}),
    "sizes-type": (
        "batch_sizes",
        {"x": dense(6, 7), "batch_sizes": torch.tensor([3, 3], dtype=torch.int32)},
    ),
    "sizes-dimensions": ("batch_sizes", {"x": dense(6, 7), "batch_sizes": torch.tensor([[6]])}),
}
WRONG_BIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bias_ih-alone": ("bias_hh", {"bias_hh": None}),
    "bias_hh-alone": ("bias_hh", {"bias_ih": None}),
    "bias_ih-units": ("bias_ih", {"bias_ih": dense(5)}),
    "bias_hh-dimensions": ("bias_hh", {"bias_hh": dense(2, 5)}),
    "bias_ih-type": ("bias_ih", {"bias_ih": dense(10, dtype=DOUBLE)}),
    "bias_hh-type": ("bias_hh", {"bias_hh": dense(10, dtype=DOUBLE)}),
}
WRONG_COTANGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "h-units": ("h", {"h": dense(4, 3, 5)}),
    "h-steps": ("h", {"h": dense(3, 3, 10)}),
    "h-dimensions": ("h", {"h": dense(4, 3, 2, 5)}),
    "h-type": ("h", {"h": dense(4, 3, 10, dtype=DOUBLE)}),
    "g-units": ("g", {"g": dense(4, 3, 5)}),
    "g-dimensions": ("g", {"g": dense(12, 10)}),
    "g-type": ("g", {"g": dense(4, 3, 10, dtype=DOUBLE)}),
    "g_last-groups": ("g_last", {"g_last": dense(1, 3, 5)}),
    "g_last-dimensions": ("g_last", {"g_last": dense(3, 5)}),
    "g_last-type": ("g_last", {"g_last": dense(2, 3, 5, dtype=DOUBLE)}),
}


def assert_named(operator: Callable[..., Any], right: Any, wrong: tuple[str, Any]) -> None:
    """No kernel runs on operands that do not fit: the error says name, expected and got."""
    culprit, changes = wrong
    operator(**right)
    with pytest.raises(RuntimeError, match=rf"\b{culprit}: expected .*got"):
        operator(**(right | changes))


@pytest.mark.parametrize("name", WRONG | WRONG_BIASES)
def test_wrong_operands_are_named(name: str) -> None:
    assert_named(_ops.layer, RIGHT, (WRONG | WRONG_BIASES)[name])


@pytest.mark.parametrize("name", WRONG | WRONG_COTANGENTS)
def test_wrong_operands_of_backward_are_named(name: str) -> None:
    right = {name: value for name, value in RIGHT.items() if not name.startswith("bias")}
    right |= COTANGENTS | NEEDED
    assert_named(_ops.layer_backward, right, (WRONG | WRONG_COTANGENTS)[name])


def test_operands_on_two_devices_are_refused() -> None:
    wrong = RIGHT | {"weight_ih": RIGHT["weight_ih"].to("meta")}
    with pytest.raises(RuntimeError, match="one device, got cpu, meta"):
        _ops.layer(**wrong)


def test_operands_are_not_written() -> None:
    p = LONG[1]
    before = {name: getattr(p, name).clone() for name in OPERANDS}
    h = forward(p, TANH)["h"]
    kept = h.clone()
    backward(p, h, TANH)
    assert_exact({"h": h} | only(vars(p), OPERANDS), {"h": kept} | before)


# ------------------------------------------------------------------------------ the other way round

CASES = (*SIZES, *WIDE, *OPTIONS, *UNBATCHED, *PACKED)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_the_module_is_the_same_without_the_operators(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recurrence and its adjoint with torch's products around them give the same gradients."""
    found = run_case(case, fused_bptt.RNN)
    monkeypatch.setattr(_ops, "has_layer", lambda x: False)
    for name in ("layer", "layer_backward"):
        monkeypatch.delattr(_ops, name)
    assert_close(found, run_case(case, fused_bptt.RNN))
