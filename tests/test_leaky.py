"""The recurrences with a leak: every derivative of both against a loop over time in plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import LOW_PRECISION
from primitives import Problem
from taped import taped_leaky
from tolerance import Named, assert_close, assert_exact, assert_no_worse
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import fused_bptt  # noqa: F401  loads the library
from fused_bptt import _leaky, _ops

PHIS = {
    "tanh": _ops.TANH,
    "relu": _ops.RELU,
    "sigmoid": _ops.SIGMOID,
    "softplus": _ops.SOFTPLUS,
    "identity": _ops.IDENTITY,
}
NAMES = ("u", "keep", "gain", "weight", "initial", "reset_state")
Solve = Callable[..., tuple[Tensor, Tensor]]

each_phi = pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
each_form = pytest.mark.parametrize("voltage", [False, True], ids=["rate", "voltage"])
each_cut = pytest.mark.parametrize("cut", ["", "reset", "window"])


def random(*shape: int, seed: int, scale: float = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


class Leaky:
    """The operands of a leaky recurrence, and how it walks."""

    def __init__(
        self, p: Problem, phi: int, voltage: bool, cut: str = "", lead: tuple[int, ...] = ()
    ) -> None:
        shape, state = p.v.shape, p.s0.shape
        keep = 0.5 + 0.2 * random(*lead, *shape, seed=1)
        gain = 0.5 + 0.3 * random(*lead, *shape, seed=2)
        self.operands = {
            "u": random(*lead, *shape, seed=3),
            "keep": keep,
            "gain": None if voltage else gain,
            "weight": random(*lead, *p.weight.shape, seed=4, scale=0.6 * p.H**-0.5),
            "initial": random(*lead, *state, seed=5),
            "reset_state": random(*lead, *state, seed=6) if cut == "reset" else None,
        }
        self.leaves = {name: x for name, x in self.operands.items() if x is not None}
        generator = torch.Generator().manual_seed(7)
        mask = torch.rand(shape[:-2], generator=generator) < 0.3
        self.walk = (p.batch_sizes, p.reverse_groups, phi)
        self.mask = mask if cut else None
        self.window = 2 if cut == "window" else 0

    def function(self, solve: Solve) -> Callable[..., tuple[Tensor, Tensor]]:
        """Of the leaves alone."""

        def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
            x = dict.fromkeys(NAMES) | dict(zip(self.leaves, leaves, strict=True))
            operands = (x["u"], x["keep"], x["gain"], x["weight"], x["initial"])
            return solve(*operands, *self.walk, self.mask, x["reset_state"], self.window)

        return run

    def values(self) -> tuple[Tensor, ...]:
        return tuple(self.leaves.values())


PROBLEMS = (
    Problem(T=5, B=3, G=1, H=5),
    Problem(T=7, B=15, G=2, H=17, reverse_groups=1),
    Problem(T=6, B=6, G=2, H=9, reverse_groups=1, lengths=(6, 5, 5, 2, 1, 1)),
    Problem(T=4, B=2, G=1, H=33, reverse_groups=1, lengths=(4, 2)),
)
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def named(values: Any) -> Named:
    leaves, _ = torch.utils._pytree.tree_flatten(values)
    return {str(index): leaf.detach() for index, leaf in enumerate(leaves)}


def assert_same(case: Leaky, transformed: Callable[[Any], Any]) -> None:
    ours, loop = case.function(_leaky.leaky_recurrence), case.function(taped_leaky)
    assert_close(named(transformed(ours)), named(transformed(loop)))


def weighted(f: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def loss(*args: Tensor) -> Tensor:
        x, r = f(*args)
        return (x.sin() * x).sum() + (r * r.cos()).sum()

    return loss


@pytest.mark.isa
@each_cut
@each_form
@each_phi
@every_problem
def test_derivatives_up_to_third_order(problem: Problem, phi: int, voltage: bool, cut: str) -> None:
    case = Leaky(problem, phi, voltage, cut)
    directions = [random(*x.shape, seed=9 + i) for i, x in enumerate(case.values())]

    def all_of(f: Any) -> Any:
        leaves = [x.clone().requires_grad_() for x in case.values()]
        found = list(f(*leaves))
        value = weighted(f)(*leaves)
        for order in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=order < 2)
            found += gradients
            value = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        return found

    assert_same(case, all_of)


@each_cut
@each_form
@pytest.mark.parametrize("only", ["x", "rate"])
def test_gradients_of_one_result(only: str, voltage: bool, cut: str) -> None:
    case = Leaky(PROBLEMS[2], _ops.TANH, voltage, cut)

    def gradients(f: Any) -> Any:
        leaves = [x.clone().requires_grad_() for x in case.values()]
        x, rate = f(*leaves)
        value = x if only == "x" else rate
        return torch.autograd.grad(value.square().sum(), leaves)

    assert_same(case, gradients)


TINY = (
    Problem(T=3, B=2, G=2, H=2, reverse_groups=1),
    Problem(T=3, B=3, G=2, H=2, reverse_groups=1, lengths=(3, 2, 1)),
)


@each_cut
@each_form
@pytest.mark.parametrize("phi", ["tanh", "softplus"])
@pytest.mark.parametrize("problem", TINY, ids=str)
def test_gradcheck(problem: Problem, phi: str, voltage: bool, cut: str) -> None:
    case = Leaky(problem, PHIS[phi], voltage, "reset" if cut == "window" else cut)
    point = [x.clone().requires_grad_() for x in case.values()]
    function = case.function(_leaky.leaky_recurrence)
    assert gradcheck(function, point, check_forward_ad=True)
    assert gradgradcheck(function, point)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("problem", TINY, ids=str)
def test_gradcheck_of_the_linear_walks(
    problem: Problem, inner: bool, adjoint: bool, window: int
) -> None:
    p = problem
    mask = torch.rand(p.v.shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.4
    walk = (p.batch_sizes, p.reverse_groups, inner, adjoint, mask, window)
    point = [random(*p.v.shape, seed=i).requires_grad_() for i in range(3)]
    point.append(p.weight.clone().requires_grad_())

    def function(*args: Tensor) -> Tensor:
        return _leaky.leaky_linear(*args, *walk)

    assert gradcheck(function, point, check_forward_ad=True)
    assert gradgradcheck(function, point)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_adjoint_is_the_transposed_map(problem: Problem, inner: bool) -> None:
    """⟨c, A⁻¹ w⟩ = ⟨A⁻ᵀ c, w⟩, with cuts of both kinds."""
    p = problem
    w, keep, factor, c = (random(*p.v.shape, seed=i, scale=0.7) for i in range(4))
    mask = torch.rand(p.v.shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.3
    walk = (keep, factor, p.weight, p.batch_sizes, p.reverse_groups, inner)
    m = _ops.leaky_linear(w, *walk, False, mask, 3)
    y = _ops.leaky_linear(c, *walk, True, mask, 3)
    assert_close({"product": (c * m).sum()}, {"product": (y * w).sum()})


@each_cut
@each_form
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[2]], ids=str)
def test_forward_mode(problem: Problem, voltage: bool, cut: str) -> None:
    case = Leaky(problem, _ops.TANH, voltage, cut)
    values = case.values()
    tangents = tuple(random(*x.shape, seed=9 + i) for i, x in enumerate(values))
    others = tuple(random(*x.shape, seed=19 + i) for i, x in enumerate(values))
    numbers = tuple(range(len(values)))

    def all_of(f: Any) -> Any:
        gradient = grad(weighted(f), argnums=numbers)
        twice = jvp(lambda *args: jvp(f, args, tangents), values, others)
        return twice, jvp(gradient, values, tangents)

    assert_same(case, all_of)
    for index in numbers:  # of one operand alone

        def of_one(f: Any, index: int = index) -> Any:
            def one(x: Tensor) -> Any:
                return f(*values[:index], x, *values[index + 1 :])

            return jvp(one, (values[index],), (tangents[index],))

        assert_same(case, of_one)


@each_form
@pytest.mark.parametrize("problem", TINY, ids=str)
def test_jacobians_and_hessians(problem: Problem, voltage: bool) -> None:
    case = Leaky(problem, _ops.SIGMOID, voltage, "reset")
    values = case.values()

    def all_of(f: Any) -> Any:
        return [
            kind(weighted(f), argnums=index)(*values)
            for kind, index in itertools.product((jacfwd, jacrev, hessian), range(len(values)))
        ]

    assert_same(case, all_of)


@pytest.mark.parametrize("which", ["inputs", "weights", "everything"])
@each_form
@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[2]], ids=str)
def test_vmap(problem: Problem, voltage: bool, which: str) -> None:
    alone = Leaky(problem, _ops.TANH, voltage, "reset")
    many = Leaky(problem, _ops.TANH, voltage, "reset", lead=(3,))
    batched = [
        which == "everything" or (name == "weight") == (which == "weights") for name in alone.leaves
    ]
    values = [
        m if chosen else a
        for a, m, chosen in zip(alone.values(), many.values(), batched, strict=True)
    ]
    dims = tuple(0 if chosen else None for chosen in batched)
    numbers = tuple(range(len(values)))

    def all_of(f: Any) -> Any:
        gradients = vmap(grad(weighted(f), argnums=numbers), in_dims=dims)(*values)
        return vmap(f, in_dims=dims)(*values), gradients

    assert_same(alone, all_of)


@pytest.mark.isa
@each_form
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_low_precision(dtype: torch.dtype, voltage: bool) -> None:
    """No further from float64 than the loop in the same type."""
    case = Leaky(Problem(T=7, B=5, G=2, H=21, reverse_groups=1), _ops.TANH, voltage)
    low = [x.to(dtype) for x in case.values()]

    def run(solve: Solve, leaves: list[Tensor]) -> Named:
        leaves = [x.clone().requires_grad_() for x in leaves]
        found = case.function(solve)(*leaves)
        cotangents = [random(*x.shape, seed=i).to(dtype).to(x.dtype) for i, x in enumerate(found)]
        bars = torch.autograd.grad(found, leaves, cotangents)
        return named([*found, *bars])

    truth = run(taped_leaky, [x.double() for x in low])
    assert_no_worse(run(_leaky.leaky_recurrence, low), run(taped_leaky, low), truth)


def test_strides_of_zero() -> None:
    """A number, one for each unit and one for each step are no tensors of the sequence's size."""
    case = Leaky(PROBLEMS[1], _ops.TANH, voltage=False)
    shape = case.operands["u"].shape
    for keep, gain in (
        (torch.full((17,), 0.3).double().expand(shape), random(17, seed=1).expand(shape)),
        (
            random(7, 1, 1, 1, seed=2).expand(7, 1, 1, 17).contiguous().expand(shape),
            random(7, 1, 1, 17, seed=3).expand(shape),
        ),
    ):
        case.leaves |= {"keep": keep, "gain": gain}
        assert_same(case, lambda f: (f(*case.values()), grad(weighted(f), (1, 2))(*case.values())))


@each_form
@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int, voltage: bool) -> None:
    for B, H in ((67, 61), (2, 331)):
        p = Problem(T=40, B=B, G=1, H=H)
        case = Leaky(p, _ops.TANH, voltage, "reset")
        walk = (case.mask, case.operands["reset_state"])
        w, keep, factor = (random(*p.v.shape, seed=i, scale=0.5) for i in range(3))
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            operands = [case.operands[name] for name in NAMES[:5]]
            found = list(_ops.leaky_recurrence(*operands, *case.walk, *walk))
            for inner, adjoint in itertools.product((False, True), repeat=2):
                kinds = (None, 0, inner, adjoint, case.mask, 7)
                found.append(_ops.leaky_linear(w, keep, factor, p.weight, *kinds))
            results.append(named(found))
        assert_exact(*results)


@each_form
@pytest.mark.parametrize(("T", "B", "H"), [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_nothing_to_do(T: int, B: int, H: int, voltage: bool) -> None:
    u, weight, initial = torch.ones(T, B, 2, H), torch.ones(2, H, H), torch.ones(2, B, H)
    gain = None if voltage else u
    operands = [x if x is None else x.requires_grad_() for x in (u, u, gain, weight, initial)]
    x, r = _leaky.leaky_recurrence(*operands, None, 1, _ops.TANH)
    assert x.shape == r.shape == u.shape
    (x.sum() + r.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def dense(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("u", {"u": dense(4, 3, 5)}),
        ("u", {"u": dense(4, 3, 2, 5, dtype=torch.int64)}),
        ("keep", {"keep": dense(4, 3, 2, 4)}),
        ("keep", {"keep": dense(4, 3, 2, 5, dtype=torch.float64)}),
        ("gain", {"gain": dense(4, 2, 5)}),
        ("weight", {"weight": dense(2, 5, 4)}),
        ("initial", {"initial": dense(2, 4, 5)}),
        ("initial", {"initial": dense(2, 3, 5, dtype=torch.float64)}),
        ("nonlinearity", {"nonlinearity": 0}),
        ("nonlinearity", {"nonlinearity": 6}),
        ("reverse_groups", {"reverse_groups": 3}),
        ("reset", {"reset": dense(4, 3)}),
    ],
)
def test_wrong_operands_are_named(name: str, wrong: dict[str, Any]) -> None:
    sequences = dict.fromkeys(("u", "keep", "gain"), dense(4, 3, 2, 5))
    right = sequences | {"weight": dense(2, 5, 5), "initial": dense(2, 3, 5)}
    right |= {"batch_sizes": None, "reverse_groups": 1, "nonlinearity": _ops.TANH}
    _ops.leaky_recurrence(**right)
    with pytest.raises(RuntimeError, match=rf"^{name}: expected .*got"):
        _ops.leaky_recurrence(**(right | wrong))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("w", {"w": dense(4, 3, 5)}),
        ("keep", {"keep": dense(4, 3, 2, 4)}),
        ("factor", {"factor": dense(4, 3, 2, 4)}),
        ("window", {"window": -1}),
    ],
)
def test_wrong_operands_of_the_linear_walks(name: str, wrong: dict[str, Any]) -> None:
    right = dict.fromkeys(("w", "keep", "factor"), dense(4, 3, 2, 5))
    right |= {"weight": dense(2, 5, 5), "batch_sizes": None, "reverse_groups": 1}
    right |= {"inner": False, "adjoint": False, "window": 0}
    _ops.leaky_linear(**right)
    with pytest.raises(RuntimeError, match=rf"^{name}: expected .*got"):
        _ops.leaky_linear(**(right | wrong))
