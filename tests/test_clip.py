"""The gradient of the state clipped at every step: against the loop that clips with hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from against_loop import cotangents_of, resets, setting, with_gradients
from cases import WIDE, Case, ids, variants
from helpers import FLOAT_TYPES, assert_runs, data_of, raised
from primitives import Problem, problems
from tolerance import Named, assert_close, assert_exact, assert_no_worse, assert_same_nonfinite
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

import fused_bptt
from fused_bptt import _ops

#: What clips most rows and numbers of the cases, and leaves some as they are.
LIMITS = {"norm": 1.5, "value": 0.6}
CODES = {"value": 1, "norm": 2}
CASES = (
    *variants(
        Case("clip", T=7, B=5, I=3, H=17),
        nonlinearity=("tanh", "relu", "sigmoid", "softplus", "identity"),
        bidirectional=(False, True),
        lengths=(None, (2, 7, 1, 4, 4)),
    ),
    *variants(Case("layers", T=6, B=3, num_layers=3, H=9), bidirectional=(False, True)),
    Case("one-unit", T=6, B=2, H=1),
    Case("wide", T=5, B=15, H=131),
)
every_case = pytest.mark.parametrize("case", CASES, ids=ids(CASES))
both_kinds = pytest.mark.parametrize("kind", LIMITS)
each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)


def clip_of(kind: str, limit: float) -> Callable[[Tensor], Tensor]:
    """What torch's clip functions do, of each row."""
    if kind == "value":
        return lambda a: a.clamp(-limit, limit)
    return lambda a: a * (limit / a.norm(dim=-1, keepdim=True)).clamp(max=1)


def of_loop(clip: tuple[str, float] | None) -> dict[str, Any]:
    return {} if clip is None else {"hook": clip_of(*clip)}


def of_ours(clip: tuple[str, float] | None) -> dict[str, Any]:
    return {"clip_state_grad": clip}


def solve(
    case: Case,
    clip: tuple[str, float] | None,
    ours: bool,
    cuts: str = "none",
    dtype: torch.dtype = torch.float64,
    spoiled: float | None = None,
) -> Named:
    """Outputs and gradients, ours or the loop's; `spoiled`: a number in the cotangent of h."""
    both = setting(case, dtype)
    options: dict[str, Any] = {}
    if cuts != "none":
        options = {"reset": resets(case, data_of(both.x)), "bptt_window": 3}
    if cuts == "learned":
        options["reset_state"] = both.state
    found = both.ours(**options, **of_ours(clip)) if ours else both.loop(**options, **of_loop(clip))
    cotangents = cotangents_of(found)
    if spoiled is not None:  # at the first step, after which nothing more spreads it
        cotangents[0][(0, *(size // 2 for size in cotangents[0].shape[1:]))] = spoiled
    return with_gradients(found, both.leaves(learned=cuts == "learned"), cotangents=cotangents)


@pytest.mark.isa
@both_kinds
@pytest.mark.parametrize("cuts", ["none", "given", "learned"])
@every_case
def test_equals_the_loop(case: Case, cuts: str, kind: str) -> None:
    clip = (kind, LIMITS[kind])
    found = solve(case, clip, True, cuts)
    assert_close(found, solve(case, clip, False, cuts))
    plain = solve(case, None, True, cuts)
    assert not torch.allclose(found["grad x"], plain["grad x"], rtol=1e-3), "nothing was clipped"


@both_kinds
@each_type
@every_case
def test_a_limit_that_nothing_reaches(case: Case, dtype: torch.dtype, kind: str) -> None:
    """The bits of the plain call."""
    found = solve(case, (kind, 1e30), True, dtype=dtype)
    assert_exact(found, solve(case, None, True, dtype=dtype))


@both_kinds
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("case", CASES[:4], ids=ids(CASES[:4]))
def test_nonfinite_numbers(case: Case, value: float, kind: str) -> None:
    """NaN spoils a row's norm; a norm without end makes of its row zeros, and NaN of infinity."""
    clip = (kind, LIMITS[kind])
    found, expected = (solve(case, clip, ours, spoiled=value) for ours in (True, False))
    assert_same_nonfinite(found, expected)


def swept(p: Problem, clip: tuple[str, float] | None = None) -> Named:
    """The adjoint of the operator, ours, with d given."""
    code = None if clip is None else (CODES[clip[0]], clip[1])
    walk = (p.batch_sizes, p.reverse_groups, _ops.GIVEN, True, None, None, 0)
    q, last = _ops.linear_recurrence(p.factor, p.v, p.weight, p.s0, *walk, code)
    return {"q": q, "last": last}


def swept_by_loop(p: Problem, kind: str, limit: float) -> Named:
    clip = clip_of(kind, limit)
    sizes = [p.B] * p.T if p.batch_sizes is None else p.batch_sizes.tolist()
    v, d = (x.reshape(sum(sizes), p.G, p.H) for x in (p.v, p.factor))
    q, last = torch.zeros_like(v), p.s0.clone()
    for g in range(p.G):
        steps = [*enumerate(torch.arange(sum(sizes)).split(sizes))]
        for _, rows in steps if g >= p.G - p.reverse_groups else steps[::-1]:
            a = clip(v[rows, g] + last[g, : len(rows)])
            q[rows, g] = d[rows, g] * a
            last[g, : len(rows)] = q[rows, g] @ p.weight[g]
    return {"q": q.view(p.v.shape), "last": last}


@pytest.mark.isa
@both_kinds
@pytest.mark.parametrize("problem", problems(FLOAT_TYPES), ids=str)
def test_the_operator_equals_its_loop(problem: Problem, kind: str) -> None:
    clip = (kind, LIMITS[kind])
    truth = swept_by_loop(problem.to(torch.float64), *clip)
    if problem.dtype == torch.float64:
        assert_close(swept(problem, clip), truth)
    else:
        assert_no_worse(swept(problem, clip), swept_by_loop(problem, *clip), truth)


def test_a_norm_past_the_largest_float() -> None:
    """1e30, whose square is no float32: it is clipped, not made zero."""
    p = Problem(T=1, B=1, G=1, H=20, dtype=torch.float32)
    p.v, p.factor, p.s0 = torch.full_like(p.v, 1e30), torch.ones_like(p.v), torch.zeros_like(p.s0)
    found = swept(p, ("norm", 1.0))["q"]
    torch.testing.assert_close(found, torch.full_like(found, 20**-0.5))


THREADS = (1, 2, 3, 7)
PROBLEMS = (
    Problem(T=40, B=67, G=1, H=61),
    Problem(T=60, B=3, G=1, H=331),
    Problem(T=20, B=21, G=3, H=97, reverse_groups=1),
    Problem(T=100, B=1, G=1, H=640),
)


@both_kinds
@each_type
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_any_number_of_threads(problem: Problem, dtype: torch.dtype, kind: str) -> None:
    p, clip, found = problem.to(dtype), (kind, LIMITS[kind]), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found.append(swept(p, clip))
    for other in found[1:]:
        assert_exact(other, found[0])


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=ids(WIDE))
def test_a_layer_on_any_number_of_threads(case: Case, dtype: torch.dtype, kind: str) -> None:
    clip, found = (kind, LIMITS[kind]), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found.append(solve(case, clip, True, dtype=dtype))
    for other in found[1:]:
        assert_exact(other, found[0])


def print_bits() -> None:
    """Of walks whose products are exact, W being a permutation: norms and limits alone round."""
    torch.set_num_threads(1)
    for dtype in FLOAT_TYPES:
        p = Problem(T=6, B=9, G=1, H=45, dtype=dtype)
        p.weight = torch.eye(45, dtype=dtype).roll(1, 0).unsqueeze(0)
        for kind, limit in LIMITS.items():
            for value in swept(p, (kind, limit)).values():
                print(value.double().numpy().tobytes().hex())


def test_the_same_bits_with_every_instruction_set() -> None:
    code = "import test_clip; test_clip.print_bits()"
    found = {isa: assert_runs(code, env={"FUSED_BPTT_CPU": isa}) for isa in _ops.cpu_isas()}
    assert len(set(found.values())) == 1
    assert len(found["baseline"].split()) == 16


@both_kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_layouts(batch_first: bool, kind: str) -> None:
    """Rows of different lengths and unbatched ones, in either order: each row is clipped alone."""
    clip = (kind, LIMITS[kind])
    m = fused_bptt.RNN(3, 9, 2, bidirectional=True, batch_first=batch_first).double()
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    lengths = torch.tensor([3, 7, 0, 5])

    def loss(x: Tensor, **options: Any) -> Tensor:
        output, h_n = m(x, clip_state_grad=clip, **options)
        return 3 * output.sin().sum() + h_n.square().sum()

    def bars(x: Tensor, **options: Any) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss(x, **options), x)[0]

    alone = torch.zeros_like(x)
    for row, length in enumerate(lengths.tolist()):
        alone[row, :length] = bars(x[row, :length])
    batch = x if batch_first else x.transpose(0, 1)
    for more in ({}, {"state_batch_first": True}):
        found = bars(batch, lengths=lengths, **more)
        assert_close({"x": found if batch_first else found.transpose(0, 1)}, {"x": alone})
    found = grad(loss)(batch, lengths=lengths)  # the padded batch, masked
    assert_close({"x": found if batch_first else found.transpose(0, 1)}, {"x": alone})


@both_kinds
def test_under_transforms(kind: str) -> None:
    """First derivatives are what they are without; forward mode knows no clip."""
    clip = (kind, LIMITS[kind])
    m = fused_bptt.RNN(3, 9, bidirectional=True).double()
    xs = torch.randn(4, 5, 2, 3, dtype=torch.float64)

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        output, h_n = fused_bptt.rnn(
            x, None, weights or list(m.parameters()), bidirectional=True, clip_state_grad=clip
        )
        return 5 * output.sin().sum() + h_n.sum()

    def plain(x: Tensor) -> Tensor:
        output, h_n = m(x)
        return 5 * output.sin().sum() + h_n.sum()

    def bar(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    expected = torch.stack([bar(x) for x in xs])
    assert_close({"x": vmap(grad(loss))(xs)}, {"x": expected})
    assert_close({"x": grad(loss)(xs[0])}, {"x": expected[0]})
    weights = [torch.stack([w, w]) for w in m.parameters()]
    of_members = vmap(grad(loss), (None, *[0] * len(weights)))(xs[0], *weights)
    assert_close({"x": of_members}, {"x": expected[:1].expand(2, *xs.shape[1:])})
    x = xs[0].requires_grad_()
    many = torch.autograd.grad(loss(x), x, torch.tensor([1.0, 1.0]).double(), is_grads_batched=True)
    assert_close({"x": many[0]}, {"x": expected[:1].expand(2, *xs.shape[1:])})
    tangent = torch.randn_like(xs[0])
    found = jvp(loss, (xs[0],), (tangent,))
    assert_exact({"jvp": found[1]}, {"jvp": jvp(plain, (xs[0],), (tangent,))[1]})


REFUSAL = (
    r"clip_state_grad: expected None where the gradients are differentiated again, got a limit"
)


@both_kinds
def test_there_is_no_second_derivative(kind: str) -> None:
    """Clipped gradients in a graph are values; to differentiate them is refused."""
    m = fused_bptt.RNN(3, 9).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return m(x, clip_state_grad=(kind, LIMITS[kind]))[0].sin().sum()

    (bar,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert_close({"x": bar}, {"x": torch.autograd.grad(loss(x), x)[0]})
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.autograd.grad(bar.square().sum(), x)
    for second in (hessian(loss), grad(lambda x: grad(loss)(x).square().sum())):
        with pytest.raises(RuntimeError, match=REFUSAL):
            second(x)


@both_kinds
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool, kind: str) -> None:
    torch.compiler.reset()
    m = fused_bptt.RNN(3, 9, 2, bidirectional=True).double()

    def call(x: Tensor, limit: float) -> Tensor:
        return 3 * m(x, clip_state_grad=(kind, limit))[0].sin().sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for limit, T in ((LIMITS[kind], 5), (LIMITS[kind] / 2, 5), (LIMITS[kind] / 2, 6), (1, 6)):
        x = torch.randn(T, 2, 3, dtype=torch.float64, requires_grad=True)
        found, expected = (torch.autograd.grad(f(x, limit), x)[0] for f in (compiled, call))
        assert_exact({"x": found}, {"x": expected})


@both_kinds
def test_autocast(kind: str) -> None:
    m, x = fused_bptt.RNN(3, 9), torch.randn(5, 2, 3, requires_grad=True)
    clip = (kind, LIMITS[kind])
    with torch.autocast("cpu", torch.bfloat16):
        loss = 9 * m(x, clip_state_grad=clip)[0].sum()
    (found,) = torch.autograd.grad(loss, x)
    loss = 9 * m.bfloat16()(x.bfloat16(), clip_state_grad=clip)[0].sum()
    assert_exact({"x": found}, {"x": torch.autograd.grad(loss, x)[0]})


# The derivatives are in Python, which no test of the operator's own registration can see.
TEST_UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@both_kinds
@pytest.mark.parametrize("problem", problems((torch.float64,))[3:12:2], ids=str)
def test_opcheck(problem: Problem, kind: str) -> None:
    p, clip = problem, (CODES[kind], LIMITS[kind])
    walk = (p.batch_sizes, p.reverse_groups, _ops.TANH, True, 0, None, None, 0)
    torch.library.opcheck(
        torch.ops.fused_bptt.linear_recurrence.default,
        (p.factor, p.v, p.weight, p.s0, *walk, *clip),
        test_utils=TEST_UTILS,
    )
    wide = (*p.v.shape[:-2], p.G * p.H)
    x, weight_ih = torch.randn(*wide[:-1], 3).double(), torch.randn(wide[-1], 3).double()
    h, g = p.factor.reshape(wide), p.v.reshape(wide)
    walk = (p.batch_sizes, p.reverse_groups, _ops.TANH, *[True] * 4, None, None, 0)
    torch.library.opcheck(
        torch.ops.fused_bptt.layer_backward.default,
        (g, p.s0, h, x, weight_ih, p.weight, p.s0, *walk, *clip),
        test_utils=TEST_UTILS,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        1.0,
        "norm",
        ("norm",),
        ("norm", 1.0, 2.0),
        ("Norm", 1.0),
        (["norm"], 1.0),
        (2, 1.0),
        ("norm", "1"),
        ("norm", None),
        ("value", True),
        ("norm", 0.0),
        ("value", -0.1),
        ("value", torch.nan),
        ("norm", torch.inf),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong: Any) -> None:
    m, x = fused_bptt.RNN(3, 9), torch.randn(5, 2, 3)
    kind, words = raised(lambda: m(x, clip_state_grad=wrong))
    assert kind is ValueError
    assert words.startswith("clip_state_grad: expected ")
    assert ", got " in words


@pytest.mark.parametrize(
    "options",
    [
        {"zoneout": 0.1},
        {"recurrent_dropout": 0.1, "training": True},
    ],
    ids=str,
)
def test_what_does_not_go_together(options: dict[str, Any]) -> None:
    weights, x = list(fused_bptt.RNN(3, 9).parameters()), torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match=r"^clip_state_grad: expected no .*, got one$"):
        fused_bptt.rnn(x, None, weights, clip_state_grad=("norm", 1.0), **options)


def test_a_monitor_is_refused() -> None:
    m, x, clip = fused_bptt.RNN(3, 9), torch.randn(5, 2, 3), ("norm", 1.0)
    with (
        fused_bptt.GradientMonitor(m),
        pytest.raises(
            RuntimeError, match="clip_state_grad: expected none while a GradientMonitor reads"
        ),
    ):
        m(x, clip_state_grad=clip)


@pytest.mark.parametrize(
    ("culprit", "changed"),
    [
        ("clip", {"clip": (3, 1.0)}),
        ("clip", {"clip": (-1, 1.0)}),
        ("clip", {"adjoint": False}),
        ("clip_limit", {"clip": (1, 0.0)}),
        ("clip_limit", {"clip": (2, torch.nan)}),
        ("clip_limit", {"clip": (2, torch.inf)}),
    ],
)
def test_the_operators_check_too(culprit: str, changed: dict[str, Any]) -> None:
    p = Problem(T=4, B=3, G=2, H=5)
    given = {"derivative": _ops.TANH, "adjoint": True, "clip": (1, 1.0)} | changed
    walk = (p.factor, p.v, p.weight, p.s0, None, 0)
    with pytest.raises(RuntimeError, match=rf"\b{culprit}: expected .*got"):
        _ops.linear_recurrence(*walk, **given)
    if given["adjoint"]:
        h, x = p.factor.flatten(-2), torch.randn(4, 3, 2).double()
        weights = (torch.randn(10, 2).double(), p.weight)
        walk = (h, p.s0, h, x, *weights, p.s0, None, 0, _ops.TANH, *[True] * 4)
        with pytest.raises(RuntimeError, match=rf"\b{culprit}: expected .*got"):
            _ops.layer_backward(*walk, clip=given["clip"])
        bars = (None, None, torch.zeros(2, 5, 5).double(), None)
        with pytest.raises(RuntimeError, match=rf"\b{culprit}: expected .*got"):
            _ops.layer_backward_(*walk[:10], *bars, clip=given["clip"])
        assert (bars[2] == 0).all()
