"""A layer with a leak as one operator, against a loop over time in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from primitives import Problem
from taped import taped_leaky
from test_leaky import PHIS, PROBLEMS, named, random
from tolerance import Named, assert_close, assert_exact
from torch import Tensor

from fused_bptt import _leaky_layer, _ops

INPUTS = 4
NAMES = (
    "x",
    "weight_ih",
    "weight_hh",
    "bias",
    "keep",
    "gain",
    "initial",
    "noise",
    "noise_scale",
    "reset_state",
)

each_form = pytest.mark.parametrize("voltage", [False, True], ids=["rate", "voltage"])
each_cut = pytest.mark.parametrize("cut", ["", "reset", "window", "both"])


def operands(p: Problem, voltage: bool, cut: str, dtype: torch.dtype) -> dict[str, Tensor | None]:
    rows, units = p.v.shape[:-2], p.G * p.H
    found: dict[str, Tensor | None] = {
        "x": random(*rows, INPUTS, seed=1),
        "weight_ih": random(units, INPUTS, seed=2),
        "weight_hh": random(*p.weight.shape, seed=3, scale=0.6 * p.H**-0.5),
        "bias": random(units, seed=4),
        "keep": 0.5 + 0.2 * random(units, seed=5),
        "gain": None if voltage else 0.5 + 0.3 * random(units, seed=6),
        "initial": random(*p.s0.shape, seed=7),
        "noise": random(*rows, units, seed=8),
        "noise_scale": 1 + 0.3 * random(units, seed=9),
        "reset_state": random(*p.s0.shape, seed=10) if cut in ("reset", "both") else None,
    }
    return {name: None if x is None else x.to(dtype) for name, x in found.items()}


class Case:
    def __init__(self, p: Problem, phi: int, voltage: bool, cut: str = "") -> None:
        self.problem, self.operands = p, operands(p, voltage, cut, torch.float64)
        generator = torch.Generator().manual_seed(7)
        mask = torch.rand(p.v.shape[:-2], generator=generator) < 0.3
        self.cuts = (
            mask if cut in ("reset", "both") else None,
            2 if cut in ("window", "both") else 0,
        )
        self.walk = (p.batch_sizes, p.reverse_groups, phi)

    def fused(self, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        *first, reset_state = (x[name] for name in NAMES)
        return _leaky_layer.leaky_layer(*first, *self.walk, self.cuts[0], reset_state, self.cuts[1])

    def loop(self, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        p = self.problem
        u = x["x"] @ x["weight_ih"].mT
        if x["bias"] is not None:
            u = u + x["bias"]
        if x["noise"] is not None:
            scale = 1 if x["noise_scale"] is None else x["noise_scale"]
            u = u + scale * x["noise"]
        flat, shape = u.shape, p.v.shape
        sequences = [
            None if s is None else s.expand(flat).reshape(shape) for s in (u, x["keep"], x["gain"])
        ]
        cuts = (self.cuts[0], x["reset_state"], self.cuts[1])
        state, rate = taped_leaky(*sequences, x["weight_hh"], x["initial"], *self.walk, *cuts)
        return state.reshape(flat), rate.reshape(flat), self.last(state)

    def last(self, state: Tensor) -> Tensor:
        """Each row's state after the last step of its walk, found one by one."""
        p = self.problem
        sizes = [p.B] * p.T if p.batch_sizes is None else p.batch_sizes.tolist()
        rows = state.reshape(sum(sizes), p.G, p.H)
        groups = []
        for g in range(p.G):
            ends = []
            for b in range(p.B):
                steps = [t for t in range(p.T) if sizes[t] > b]
                t = steps[0] if g >= p.G - p.reverse_groups else steps[-1]
                ends.append(rows[sum(sizes[:t]) + b, g])
            groups.append(torch.stack(ends))
        return torch.stack(groups)

    def everything(self, solve: Callable[[Any], Any], of: tuple[int, ...], order: int = 1) -> Named:
        """Results, and gradients of a loss of those in ``of``, with their own up to an order."""
        x = {n: None if v is None else v.clone().requires_grad_() for n, v in self.operands.items()}
        leaves = [v for v in x.values() if v is not None]
        results = solve(x)
        found = list(results)
        value = sum((results[i].sin() * results[i]).sum() for i in of)
        for step in range(order):
            bars = torch.autograd.grad(
                value, leaves, create_graph=step + 1 < order, materialize_grads=True
            )
            found += bars
            value = sum((bar * random(*bar.shape, seed=step)).sum() for bar in bars)
        return named(found)

    def assert_same(self, of: tuple[int, ...] = (0, 1, 2), order: int = 1) -> None:
        assert_close(self.everything(self.fused, of, order), self.everything(self.loop, of, order))


@pytest.fixture
def only_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("composed where the operator is meant")

    monkeypatch.setattr(_leaky_layer, "_composed", refuse)


@each_cut
@each_form
@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradients(
    problem: Problem, phi: int, voltage: bool, cut: str, only_the_operator: None
) -> None:
    case = Case(problem, phi, voltage, cut)
    case.operands["noise"] = case.operands["noise_scale"] = None
    case.assert_same()


class WithNoise(Case):
    """The noise is no leaf."""

    constants: tuple[str, ...] = ("noise",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.given = {name: self.operands.pop(name) for name in self.constants}

    def fused(self, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        return super().fused({**x, **self.given})

    def loop(self, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        return super().loop({**x, **self.given})


#: How numbers of each step, [T, B, G * H] or [N, G * H], may lie in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "one step's": lambda x: x[:1].expand_as(x),
    "one unit's": lambda x: x[..., :1].expand_as(x),
    "turned": lambda x: x.mT.contiguous().mT,
    "a part": lambda x: torch.cat([x, x], -1)[..., 1 : x.size(-1) + 1],
    "reversed": lambda x: x.flip(0),
}


class OfSteps(WithNoise):
    """k and a are numbers of each step; they and the noise are no leaves."""

    constants = ("noise", "noise_scale", "keep", "gain")

    def __init__(
        self, p: Problem, phi: int, voltage: bool, cut: str = "", layout: str = "contiguous"
    ) -> None:
        super().__init__(p, phi, voltage, cut)
        shape = (*p.v.shape[:-2], p.G * p.H)
        self.given["keep"] = LAYOUTS[layout](0.5 + 0.2 * random(*shape, seed=11))
        if not voltage:
            self.given["gain"] = LAYOUTS[layout](0.5 + 0.3 * random(*shape, seed=12))

    def composed(self, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        given = {**x, **self.given}
        tensors = tuple(given[name] for name in NAMES)
        return _leaky_layer._composed(tensors, *self.walk, *self.cuts, None)


@pytest.mark.isa
@each_form
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_noise_and_its_scale(problem: Problem, voltage: bool, only_the_operator: None) -> None:
    WithNoise(problem, _ops.TANH, voltage, "both").assert_same()


@pytest.mark.isa
@each_cut
@each_form
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_leak_of_each_step(
    problem: Problem, voltage: bool, cut: str, only_the_operator: None
) -> None:
    OfSteps(problem, _ops.TANH, voltage, cut).assert_same()


@each_form
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[2]], ids=str)
def test_leak_of_each_step_in_any_memory(problem: Problem, layout: str, voltage: bool) -> None:
    case = OfSteps(problem, _ops.SIGMOID, voltage, "both", layout)
    case.assert_same()
    every = (0, 1, 2)
    assert_close(case.everything(case.fused, every), case.everything(case.composed, every))


@pytest.mark.parametrize("name", ["keep", "gain"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_one_of_each_step_and_one_of_each_unit(
    problem: Problem, name: str, only_the_operator: None
) -> None:
    case = OfSteps(problem, _ops.TANH, False, "reset")
    case.given[name] = operands(problem, False, "reset", torch.float64)[name]
    case.assert_same()


@pytest.mark.parametrize("names", [("keep",), ("gain",), ("keep", "gain")], ids=str)
@each_form
def test_the_leak_of_each_step_has_a_gradient(voltage: bool, names: tuple[str, ...]) -> None:
    """And so have the gradients."""
    case = OfSteps(PROBLEMS[2], _ops.TANH, voltage, "both")
    for name in names:
        case.operands[name] = case.given.pop(name)
    case.assert_same(order=2)


def test_the_noise_has_a_scale_beside_a_leak_of_each_step() -> None:
    case = OfSteps(PROBLEMS[2], _ops.TANH, False, "reset")
    case.operands["noise_scale"] = case.given.pop("noise_scale")
    case.assert_same()


@pytest.mark.parametrize("scaled", [False, True])
@each_form
def test_the_noise_has_a_gradient(voltage: bool, scaled: bool) -> None:
    case = Case(PROBLEMS[2], _ops.TANH, voltage, "reset")
    if not scaled:
        case.operands["noise_scale"] = None
    case.assert_same()


@pytest.mark.parametrize("of", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
@each_form
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradients_of_some_results(problem: Problem, of: tuple[int, ...], voltage: bool) -> None:
    WithNoise(problem, _ops.SOFTPLUS, voltage, "both").assert_same(of)


@each_cut
@each_form
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[2]], ids=str)
def test_gradients_of_gradients(problem: Problem, voltage: bool, cut: str) -> None:
    Case(problem, _ops.SIGMOID, voltage, cut).assert_same(order=3)


@each_form
def test_operands_that_are_made_of_one_another(voltage: bool) -> None:
    """A second part that begins where the first ended, and a leak that is both k and a."""
    case = Case(PROBLEMS[0], _ops.TANH, voltage)

    def both(solve: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(x: dict[str, Any]) -> tuple[Tensor, ...]:
            x = x if voltage else {**x, "keep": 1 - x["gain"]}
            first = solve(x)
            return solve({**x, "initial": first[2], "noise": x["noise"] + first[1]})

        return run

    found = (case.everything(both(solve), (0, 1, 2), 2) for solve in (case.fused, case.loop))
    assert_close(*found)


@each_form
def test_many_cotangents_at_once(voltage: bool) -> None:
    case = WithNoise(PROBLEMS[2], _ops.TANH, voltage, "both")
    x = {n: None if v is None else v.requires_grad_() for n, v in case.operands.items()}
    leaves = [v for v in x.values() if v is not None]
    state, _, _ = case.fused(x)
    cotangents = random(4, *state.shape, seed=0)
    together = torch.autograd.grad(
        state, leaves, cotangents, is_grads_batched=True, retain_graph=True
    )
    alone = [torch.autograd.grad(state, leaves, c, retain_graph=True) for c in cotangents]
    assert_close(named(together), named([torch.stack(bars) for bars in zip(*alone, strict=True)]))


LONG = (
    Problem(T=150, B=9, G=1, H=40),
    Problem(T=1100, B=1, G=2, H=6, reverse_groups=1),
    Problem(T=90, B=30, G=2, H=7, reverse_groups=1, lengths=tuple(range(90, 0, -3))),
)


@pytest.mark.isa
@each_form
@pytest.mark.parametrize("problem", LONG, ids=str)
def test_more_steps_than_a_chunk(problem: Problem, voltage: bool, only_the_operator: None) -> None:
    for kind in (WithNoise, OfSteps):
        kind(problem, _ops.TANH, voltage, "reset").assert_same()


@pytest.mark.parametrize("kind", [WithNoise, OfSteps])
@each_form
@pytest.mark.parametrize("problem", LONG, ids=str)
def test_threads_do_not_change_the_bits(problem: Problem, voltage: bool, kind: Any) -> None:
    case = kind(problem, _ops.TANH, voltage, "both")
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(case.everything(case.fused, (0, 1, 2)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_exact(found[0], other)


@pytest.mark.parametrize("kind", [Case, OfSteps])
@each_form
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0)])
def test_nothing_to_do(T: int, B: int, voltage: bool, kind: Any) -> None:
    case = kind(Problem(T=T, B=B, G=2, H=5, reverse_groups=1), _ops.TANH, voltage, "reset")
    if kind is Case:
        case.operands["noise"] = case.operands["noise_scale"] = None
    x = {n: None if v is None else v.requires_grad_() for n, v in case.operands.items()}
    state, rate, last = case.fused(x)
    assert state.shape == rate.shape == (T, B, 10)
    if T == 0:
        assert torch.equal(last, case.operands["initial"])
    (state.sum() + rate.sum() + last.sum()).backward()
    bars = {name: leaf.grad for name, leaf in x.items() if leaf is not None}
    expected = torch.ones_like(bars["initial"]) if T == 0 else torch.zeros_like(bars["initial"])
    assert torch.equal(bars.pop("initial"), expected)
    assert all(torch.equal(bar, torch.zeros_like(bar)) for bar in bars.values())


@each_form
def test_no_units(voltage: bool) -> None:
    x, none = torch.ones(4, 3, 2, requires_grad=True), torch.ones(0)
    gain = None if voltage else none
    operands = (x, torch.ones(0, 2), torch.ones(0, 0), None, none, gain, torch.ones(1, 3, 0))
    found = _leaky_layer.leaky_layer(*operands, None, None, None, 0, _ops.TANH)
    assert [result.shape for result in found] == [(4, 3, 0), (4, 3, 0), (1, 3, 0)]
    sum(result.sum() for result in found).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_flags_are_the_numbers_that_they_stand_for(problem: Problem, dtype: torch.dtype) -> None:
    """A bool keep, of a layout of its own, is k = 1 or 0 and a = 1 - k, to the bit."""
    case = Case(problem, _ops.TANH, False, "reset")
    x = {name: None if v is None else v.to(dtype) for name, v in case.operands.items()}
    flags = torch.rand(*x["noise"].shape[:-1], 2 * x["noise"].size(-1))[..., ::2] < 0.4
    cuts = (case.cuts[0], x["reset_state"])
    results = []
    for leak in ((flags, None), (flags.to(dtype), 1 - flags.to(dtype))):
        operands = (x["x"], x["weight_ih"], x["weight_hh"])
        rest = (*leak, x["initial"])
        found = _ops.leaky_layer(*operands, x["bias"], *rest, None, None, *case.walk, *cuts)
        state, rate, last = found
        given = (state.cos(), rate, last, state, rate, *operands, *rest, x["initial"], None)
        needed = (True, True, True, True, False)
        bars = _ops.leaky_layer_backward(
            *given, *case.walk, *needed, *cuts, x["reset_state"], window=3
        )
        every = (*found, *bars)
        results.append({str(i): v for i, v in enumerate(every) if v is not None})
    assert_exact(*results)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("keep", {"keep": torch.ones(5, dtype=torch.bool)}),
        ("gain", {"gain": torch.ones(5).double()}),
        ("clip", {"clip": (1, 1.0)}),
    ],
)
def test_what_does_not_go_with_flags(name: str, changed: dict[str, Any]) -> None:
    case = Case(PROBLEMS[0], _ops.TANH, False)
    x = {**case.operands, "noise": None, "noise_scale": None, "gain": None}
    x |= {"keep": torch.ones(case.operands["noise"].shape, dtype=torch.bool), **changed}
    *first, _ = (x[n] for n in NAMES)

    def attempt() -> None:
        found = _ops.leaky_layer(*first, *case.walk)
        given = [x[n] for n in ("x", "weight_ih", "weight_hh", "keep", "gain", "initial")]
        needed = (True, True, True, True, False)
        operands = (*found, *found[:2], *given, x["initial"], None)
        _ops.leaky_layer_backward(*operands, *case.walk, *needed, clip=changed.get("clip"))

    with pytest.raises(RuntimeError, match=rf"^{name}: expected .*got"):
        attempt()


def wrong(name: str, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], x.size(-1) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_and_types_are_named(name: str) -> None:
    case = Case(PROBLEMS[1], _ops.TANH, False, "reset")
    right = case.operands
    *first, reset_state = (right[n] for n in NAMES)
    _ops.leaky_layer(*first, *case.walk, case.cuts[0], reset_state)
    for value in (wrong(name, right[name]), right[name].float()):
        if name == "x" and value.dtype == torch.float64:
            continue  # it is the weights' width that is then wrong
        *first, reset_state = ({**right, name: value}[n] for n in NAMES)
        expected = "weight_hh" if name == "x" else name
        with pytest.raises(RuntimeError, match=rf"^{expected}: expected .*got"):
            _ops.leaky_layer(*first, *case.walk, case.cuts[0], reset_state)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("name", ["keep", "gain"])
def test_a_wrong_leak_of_each_step_is_named(name: str, problem: Problem) -> None:
    case = OfSteps(problem, _ops.TANH, False)
    right = {**case.operands, **case.given}
    expected = r"\[N, G \* H\]" if problem.lengths else r"\[T, B, G \* H\]"
    for value in (wrong(name, right[name]), right[name][:-1], right[name][None]):
        *first, _ = ({**right, name: value}[n] for n in NAMES)
        with pytest.raises(RuntimeError, match=rf"^{name}: expected shape .* or {expected}.*got"):
            _ops.leaky_layer(*first, *case.walk)
    *first, _ = ({**right, name: right[name].float()}[n] for n in NAMES)
    with pytest.raises(RuntimeError, match=rf"^{name}: expected dtype .*got"):
        _ops.leaky_layer(*first, *case.walk)


@pytest.mark.parametrize("name", ["keep", "gain"])
def test_the_operator_has_no_gradient_of_a_leak_of_each_step(name: str) -> None:
    case = OfSteps(PROBLEMS[1], _ops.TANH, False)
    units = operands(case.problem, False, "", torch.float64)
    right = {**case.operands, "keep": units["keep"], "gain": units["gain"], name: case.given[name]}
    right["noise"] = right["noise_scale"] = None
    *first, _ = (right[n] for n in NAMES)
    state, rate, last = _ops.leaky_layer(*first, *case.walk)
    given = [right[n] for n in ("x", "weight_ih", "weight_hh", "keep", "gain", "initial")]
    needed = (True, True, True, True, True)
    with pytest.raises(RuntimeError, match=r"^need_leak: expected false .* sequence, got true"):
        _ops.leaky_layer_backward(
            state, rate, last, state, rate, *given, right["initial"], None, *case.walk, *needed
        )


def test_a_scale_of_no_noise_is_refused() -> None:
    case = Case(PROBLEMS[1], _ops.TANH, False)
    case.operands["noise"] = None
    with pytest.raises(RuntimeError, match=r"^noise_scale: expected with noise, got it alone"):
        case.fused(case.operands)


def test_noise_and_a_seed_are_refused() -> None:
    case = Case(PROBLEMS[1], _ops.TANH, False)
    *first, _ = (case.operands[name] for name in NAMES)
    with pytest.raises(RuntimeError, match=r"^seed: expected without noise, got both"):
        _ops.leaky_layer(*first, *case.walk, seed=1)
