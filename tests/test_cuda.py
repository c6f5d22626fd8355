"""The CUDA engine on a GPU: the named cases, every kernel, streams, graphs, devices.

Without a GPU every test here is skipped, and the summary says so. With FUSED_BPTT_REQUIRE_CUDA=1 a
missing GPU, or a build without kernels for it, is a failure.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import LENGTHS, OPTIONS, PACKED, SIZES, UNBATCHED, WIDE, Case, ids
from helpers import FLOAT_TYPES, everything, run_case, truth
from primitives import Operators, Problem, problems
from taped import taped_leaky
from test_leaky import PHIS, PROBLEMS, Leaky, named, random, weighted
from tolerance import Named, assert_close, assert_exact, assert_no_worse
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_bptt
from fused_bptt import _leaky, _ops
from fused_bptt import _reference as reference
from fused_bptt._noise import StateNoise

GIVEN, TANH, RELU = _ops.GIVEN, _ops.TANH, _ops.RELU
SIGMOID, SOFTPLUS, IDENTITY = _ops.SIGMOID, _ops.SOFTPLUS, _ops.IDENTITY
REQUIRE = "FUSED_BPTT_REQUIRE_CUDA"


def why_not() -> str:
    """Why no test of this file can run here; "" if they can."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not _ops.cuda_archs():
        return "fused_bptt was built without CUDA kernels"
    return ""


REQUIRED = os.environ.get(REQUIRE) == "1"
if not REQUIRED and why_not():
    pytestmark = pytest.mark.skip(reason=f"no GPU to test on: {why_not()}")


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    assert not why_not(), f"{REQUIRE}=1: expected a CUDA device to test on, but {why_not()}"


@pytest.fixture(autouse=True)
def strict_float32() -> Iterator[None]:
    """TF32 is off where a test does not turn it on."""
    rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = rnn.fp32_precision, matmul.fp32_precision
    rnn.fp32_precision = matmul.fp32_precision = "ieee"
    yield
    rnn.fp32_precision, matmul.fp32_precision = before


# ------------------------------------------------------------------------------------ primitives


def on_gpu(problem: Problem) -> Problem:
    moved = problem.to(problem.dtype)
    for name in ("v", "factor", "weight", "s0"):
        setattr(moved, name, getattr(moved, name).cuda())
    return moved


def to_cpu(named: Named) -> Named:
    return {name: value.cpu() for name, value in named.items()}


def assert_equals_reference(p: Problem, solve: Callable[[Problem, Any], Named]) -> None:
    exact = solve(p.to(torch.float64), reference)
    found = to_cpu(solve(on_gpu(p), Operators))
    if p.dtype == torch.float64:
        assert_close(found, exact)
    else:  # the same sums by PyTorch's products, in whatever order they take on this device
        assert_no_worse(found, to_cpu(solve(on_gpu(p), reference)), exact)


def each_primitive() -> Iterator[tuple[str, Callable[[Problem, Any], Named]]]:
    for phi in (TANH, RELU):
        yield f"recurrence-{phi}", lambda p, source, phi=phi: p.recurrence(source, phi)
    for derivative, adjoint, without in itertools.product(
        (GIVEN, TANH, RELU), (False, True), ("", "v", "s0")
    ):

        def solve(p: Problem, source: Any, args: Any = (derivative, adjoint, without)) -> Named:
            return p.linear_recurrence(source, *args)

        yield f"linear-{derivative}-{'adjoint' if adjoint else 'forward'}-{without}", solve


PRIMITIVES = dict(each_primitive())


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("problem", problems(FLOAT_TYPES), ids=str)
def test_primitives(problem: Problem, primitive: str) -> None:
    assert_equals_reference(problem, PRIMITIVES[primitive])


@pytest.mark.parametrize("phi", [SIGMOID, SOFTPLUS, IDENTITY])
def test_nonlinearities(phi: int) -> None:
    """As on the CPU, where they are measured."""
    for p in problems((torch.float64,)):
        for solve in (
            lambda p: p.recurrence(Operators, phi),
            lambda p: p.linear_recurrence(Operators, phi, False),
            lambda p: p.linear_recurrence(Operators, phi, True),
        ):
            assert_close(to_cpu(solve(on_gpu(p))), solve(p))
    z = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 0, -1e-20, 89])
    for dtype in (torch.float64, torch.float32):
        one = Problem(1, 1, 1, len(z), dtype=dtype)
        one.v, one.s0 = z.to(dtype).view(1, 1, 1, -1), torch.zeros_like(one.s0)
        found, expected = (to_cpu(q.recurrence(Operators, phi))["h"] for q in (on_gpu(one), one))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-37, equal_nan=True)


PLANS = [
    ",".join(p)
    for p in itertools.product(("cta", "cluster", "grid"), ("registers", "shared", "global"))
]
PLANS.append("launches")
# W of the first has parts in registers and parts outside, and every exchange can share it; that of
# the last fits the registers of one CTA. Each plan has one of them in each type (test_plan.py).
OF_EVERY_PLAN = (
    (7, 5, 1, 200, 0, None),
    (4, 19, 3, 133, 1, None),
    (6, 6, 2, 150, 1, (6, 5, 5, 2, 1, 1)),
    (5, 3, 2, 40, 1, None),
)


def skip_where_refused(error: RuntimeError, plan: str) -> None:
    if "expected a plan for it" not in str(error):
        raise error
    pytest.skip(f"no plan of this size has {plan} here")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("size", OF_EVERY_PLAN, ids=str)
def test_every_plan(size: Any, dtype: torch.dtype, plan: str, monkeypatch: Any) -> None:
    """Every exchange with every residence of W, forward and adjoint."""
    monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", plan)
    p = Problem(*size, dtype)
    try:
        for name in (
            "recurrence-1",
            "linear-1-forward-",
            "linear-1-adjoint-",
            "linear-0-adjoint-s0",
        ):
            assert_equals_reference(p, PRIMITIVES[name])
    except RuntimeError as error:
        skip_where_refused(error, plan)


# Whatever cuts a walk: a mask for all groups or each its own, another state than zero, a window.
CUTS = {
    "reset": {"reset": True},
    "reset-of-each-group": {"reset": True, "each_group": True},
    "replaced": {"reset": True, "replaced": True},
    "window": {"window": 3},
    "all": {"reset": True, "each_group": True, "replaced": True, "window": 2},
}


def cuts_of(
    p: Problem,
    reset: bool = False,
    each_group: bool = False,
    replaced: bool = False,
    window: int = 0,
) -> tuple[Tensor | None, Tensor | None, int]:
    """reset, reset_state and window for the problem, on its device."""
    generator = torch.Generator().manual_seed(1)
    shape = p.v.shape[: p.v.dim() - (1 if each_group else 2)]
    mask = (torch.rand(shape, generator=generator) < 0.3).to(p.v.device) if reset else None
    state = torch.rand(p.G, p.B, p.H, generator=generator, dtype=torch.float64) - 0.5
    return mask, state.to(p.v) if replaced else None, window


def cut_walks(p: Problem, options: dict[str, Any]) -> Named:
    """The recurrence, the tangent's walk and the adjoint's, cut."""
    mask, state, window = cuts_of(p, **options)
    walk = (p.batch_sizes, p.reverse_groups)
    h, last = Operators.recurrence(p.v, p.weight, p.s0, *walk, TANH, mask, state)
    found: Named = {"h": h, "h last": last}
    for name, s0 in (("s", p.s0), ("s from zero", None)):
        s, last = _ops.linear_recurrence(
            p.factor, p.v, p.weight, s0, *walk, TANH, False, mask, state, window
        )
        found |= {name: s, f"{name} last": last}
    q, last = _ops.linear_recurrence(
        p.factor, p.v, p.weight, p.s0, *walk, TANH, True, mask, None, window
    )
    return found | {"q": q, "q last": last}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("options", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("size", OF_EVERY_PLAN, ids=str)
def test_cuts(size: Any, options: dict[str, Any], plan: str, monkeypatch: Any) -> None:
    """Walks that begin anew, in every exchange with every residence of W, as on the CPU."""
    monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", plan)
    p = Problem(*size, torch.float64)
    try:
        found = to_cpu(cut_walks(on_gpu(p), options))
    except RuntimeError as error:
        skip_where_refused(error, plan)
    assert_close(found, cut_walks(p, options))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_a_cut_is_a_walk_of_its_own(dtype: torch.dtype, plan: str, monkeypatch: Any) -> None:
    """What comes after a boundary that all rows begin anew at has the bits of a call from there."""
    monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", plan)
    p, k = on_gpu(Problem(9, 5, 2, 150, 0, None, dtype)), 4
    reset = torch.zeros(9, 5, dtype=torch.bool, device="cuda")
    reset[k] = True
    state = p.s0.flip(1).contiguous()
    zero = torch.zeros_like(p.s0)
    try:
        for replacement, begin in ((state, state), (None, zero)):
            walk = (p.weight, p.s0, None, 0, SIGMOID)
            h, _ = Operators.recurrence(p.v, *walk, reset=reset, reset_state=replacement)
            alone, _ = Operators.recurrence(p.v[k:], p.weight, begin, *walk[2:])
            assert_exact({"h": h[k:]}, {"h": alone})
        rest = (None, 0, GIVEN, False)
        s, _ = _ops.linear_recurrence(p.factor, p.v, p.weight, p.s0, *rest, window=k)
        alone, _ = _ops.linear_recurrence(p.factor[k:8], p.v[k:8], p.weight, zero, *rest)
        assert_exact({"s": s[k:8]}, {"s": alone})
    except RuntimeError as error:
        skip_where_refused(error, plan)


def test_cuts_of_the_module() -> None:
    """Gradients with reset, reset_state and bptt_window are those of the CPU."""
    torch.manual_seed(0)
    module = fused_bptt.RNN(5, 33, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, reset = torch.randn(9, 4, 5, dtype=torch.float64), torch.rand(9, 4) < 0.3
    state = torch.randn(4, 4, 33, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        module.to(device)
        output, _ = module(
            x.to(device), reset=reset.to(device), reset_state=state.to(device), bptt_window=4
        )
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        results.append(to_cpu(numbered([output, *gradients])))
    assert_close(results[1], results[0])


@pytest.mark.parametrize("products", [_ops.TF32, _ops.TF32X3], ids=["tf32", "tf32x3"])
@pytest.mark.parametrize("H", [5, 64, 200])
def test_float32_by_tensor_cores(products: int, H: int, monkeypatch: Any) -> None:
    """TF32 has float16's mantissa; 3xTF32 stands in for float32 only if it is as exact."""
    monkeypatch.setattr(_ops, "float32_products", lambda tensor: products)
    p = Problem(T=12, B=17, G=2, H=H, reverse_groups=1, dtype=torch.float32)
    for name in ("recurrence-1", "linear-1-adjoint-"):
        solve = PRIMITIVES[name]
        found, exact = to_cpu(solve(on_gpu(p), Operators)), solve(p.to(torch.float64), reference)
        in_type = torch.float16 if products == _ops.TF32 else torch.float32
        rival = to_cpu(solve(on_gpu(p), reference))
        assert_no_worse(found, rival, exact, computed_in=in_type)


def test_the_switch_of_torch(monkeypatch: Any) -> None:
    """torch.backends.cudnn.allow_tf32 changes the result, as it does for nn.RNN."""
    monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", "cta")
    p = on_gpu(Problem(T=5, B=64, G=1, H=256, dtype=torch.float32))
    strict = p.recurrence(Operators, TANH)
    torch.backends.cudnn.allow_tf32 = True
    assert not torch.equal(p.recurrence(Operators, TANH)["h"], strict["h"])
    torch.backends.cudnn.allow_tf32 = False
    assert_exact(p.recurrence(Operators, TANH), strict)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_exact_over_many_steps(dtype: torch.dtype) -> None:
    """70,000 steps of whole numbers: any order of summation gives the same bits."""
    T, B, H = 70_000, 3, 48
    order = torch.randperm(H)
    u = torch.zeros(T, B, 1, H, dtype=dtype)
    u[0] = torch.arange(H, dtype=dtype)
    weight = torch.eye(H, dtype=dtype)[order][None]
    h, last = Operators.recurrence(
        u.cuda(), weight.cuda(), torch.zeros(1, B, H, dtype=dtype).cuda(), None, 0, RELU
    )
    expected, steps = torch.arange(H), []
    for _ in range(T):
        steps.append(expected)
        expected = expected[order]
    expected_h = torch.stack(steps)[:, None, None].expand(T, B, 1, H).to(dtype)
    assert_exact(
        {"h": h.cpu(), "last": last.cpu()}, {"h": expected_h, "last": expected_h[-1:, :, 0]}
    )


@pytest.mark.parametrize(
    ("T", "B", "G", "H"), [(0, 3, 2, 5), (4, 0, 2, 5), (4, 3, 0, 5), (4, 3, 2, 0), (0, 0, 0, 0)]
)
def test_nothing_to_do(T: int, B: int, G: int, H: int) -> None:
    u, weight = torch.ones(T, B, G, H).cuda(), torch.ones(G, H, H).cuda()
    h0 = torch.ones(G, B, H).cuda()
    _, last = Operators.recurrence(u, weight, h0, None, 0, TANH)
    if T == 0:
        assert torch.equal(last, h0)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_not_finite(dtype: torch.dtype) -> None:
    """NaN reaches what depends on it and nothing else; infinity becomes ±1."""
    p = Problem(T=4, B=3, G=1, H=40, dtype=dtype)
    p.v[1, 1, 0, 7] = float("nan")
    p.v[0, 2, 0, 3] = float("inf")
    for phi in (TANH, RELU):
        found, expected = (
            to_cpu(on_gpu(p).recurrence(Operators, phi)),
            p.recurrence(reference, phi),
        )
        for name in expected:
            assert torch.equal(found[name].isnan(), expected[name].isnan()), name


def test_layouts() -> None:
    p = on_gpu(Problem(T=5, B=3, G=2, H=9))
    expected = p.linear_recurrence(Operators, TANH, True)
    for name in ("v", "factor", "weight", "s0"):
        value = getattr(p, name)
        order = tuple(reversed(range(value.dim())))
        setattr(p, name, value.permute(order).contiguous().permute(order))
    assert_exact(p.linear_recurrence(Operators, TANH, True), expected)
    p.v, p.factor = p.v[:1].expand(5, 3, 2, 9), p.factor[:, :1].expand(5, 3, 2, 9)
    found = p.linear_recurrence(Operators, TANH, True)
    p.v, p.factor = p.v.contiguous(), p.factor.contiguous()
    assert_exact(found, p.linear_recurrence(Operators, TANH, True))


def test_offsets_beyond_32_bits() -> None:
    T, B, H = 3, 2**20, 720  # 2.3e9 numbers, 4.2 GiB
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("the GPU has less than 6 GiB free")
    weight = Problem(1, 1, 1, H, dtype=torch.bfloat16).weight.cuda()
    h0 = torch.zeros(1, B, H, dtype=torch.bfloat16, device="cuda")
    u = torch.zeros(T, B, 1, H, dtype=torch.bfloat16, device="cuda")
    u[:, -2:] = 0.5
    few = u[:, -2:].clone()
    last = _ops.recurrence_(u, weight, h0, None, 0, TANH)
    few_last = _ops.recurrence_(few, weight, h0[:, -2:].clone(), None, 0, TANH)
    torch.testing.assert_close(u[:, -2:], few, rtol=0, atol=2**-7)
    torch.testing.assert_close(last[:, -2:], few_last, rtol=0, atol=2**-7)
    assert not u[:, :1].any()


# ---------------------------------------------------------------------------------- the module


def run_on_gpu(case: Case, dtype: torch.dtype, kind: type[nn.RNNBase] = fused_bptt.RNN) -> Named:
    module = case.module(kind, dtype).cuda()
    x, hx = case.inputs(dtype)

    def leaf(value: Tensor) -> Tensor:
        return value.detach().cuda().requires_grad_()

    x = x._replace(data=leaf(x.data)) if isinstance(x, PackedSequence) else leaf(x)
    if isinstance(x, PackedSequence) and x.sorted_indices is not None:
        x = x._replace(
            sorted_indices=x.sorted_indices.cuda(), unsorted_indices=x.unsorted_indices.cuda()
        )
    return to_cpu(everything(module, x, None if hx is None else leaf(hx)))


CASES = (*OPTIONS, *UNBATCHED, *PACKED, *SIZES, *WIDE)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_equal_to_torch(case: Case) -> None:
    assert_close(run_on_gpu(case, torch.float64), run_case(case, nn.RNN))


PRECISION = (
    Case("wide", T=30, B=15, I=16, H=129),
    Case("one-row", T=50, B=1, I=8, H=65),
    Case("relu", T=20, B=6, I=8, H=48, nonlinearity="relu", gap=3),
    Case("stacked", T=12, B=5, I=8, H=31, num_layers=2, bidirectional=True),
    Case("packed", T=7, B=16, I=8, H=17, bidirectional=True, lengths=LENGTHS["tiles"]),
    Case("large", T=20, B=40, I=8, H=512),
)


@pytest.mark.parametrize("dtype", FLOAT_TYPES[1:], ids=str)
@pytest.mark.parametrize("case", PRECISION, ids=ids(PRECISION))
def test_error_is_at_most_torchs(case: Case, dtype: torch.dtype) -> None:
    """nn.RNN on cuDNN, that is."""
    ours, theirs = (run_on_gpu(case, dtype, kind) for kind in (fused_bptt.RNN, nn.RNN))
    assert_no_worse(ours, theirs, truth(case, dtype))


def test_autocast() -> None:
    module, x = fused_bptt.RNN(8, 32).cuda(), torch.randn(6, 4, 8, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output, _ = module(x)
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("primitive", ["recurrence-1", "linear-1-adjoint-"])
def test_same_bits_from_run_to_run(primitive: str) -> None:
    for H in (64, 500):
        p = on_gpu(Problem(T=50, B=33, G=2, H=H, reverse_groups=1, dtype=torch.float32))
        first = PRIMITIVES[primitive](p, Operators)
        for _ in range(5):
            assert_exact(PRIMITIVES[primitive](p, Operators), first)


# ------------------------------------------------------------------- streams, graphs, devices


def walks(p: Problem) -> Named:
    return {
        **p.recurrence(Operators, TANH),
        **{f"q {k}": v for k, v in p.linear_recurrence(Operators, TANH, True).items()},
    }


GRAPHED = (
    Problem(T=20, B=9, G=1, H=64, dtype=torch.bfloat16),
    Problem(T=20, B=9, G=2, H=700, reverse_groups=1, dtype=torch.float32),
    Problem(6, 6, 2, 33, 1, (6, 5, 5, 2, 1, 1), torch.float32),
)


@pytest.mark.parametrize("plan", ["", "grid", "grid,global", "launches"])
@pytest.mark.parametrize("p", GRAPHED, ids=str)
def test_captured_in_a_graph(p: Problem, plan: str, monkeypatch: Any) -> None:
    """A synchronisation, or a copy from the host, would be refused while a graph is captured."""
    monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", plan)
    p = on_gpu(p)
    try:
        expected = walks(p)
    except RuntimeError as error:
        if "expected a plan for it" in str(error):
            pytest.skip(f"too small for {plan}")
        raise
    inputs = p.v.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = walks(p)
    p.v.zero_()
    graph.replay()
    p.v.copy_(inputs)
    if p.batch_sizes is not None:
        p.batch_sizes.zero_()  # the graph has its own
    for _ in range(2):
        graph.replay()
    assert_exact(found, expected)


def training_step(dtype: torch.dtype, **options: Any) -> tuple[Callable[..., Any], Tensor]:
    module = fused_bptt.RNN(5, 33, num_layers=2, bidirectional=True, device="cuda", dtype=dtype)
    x = torch.randn(9, 4, 5, device="cuda", dtype=dtype)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        output, _ = module(x, **options)
        return output, *torch.autograd.grad(output.square().sum(), [*module.parameters()])

    return step, x


def numbered(values: Any) -> Named:
    return {str(index): value.detach().clone() for index, value in enumerate(values)}


@pytest.mark.parametrize("option", ["", "reset", "window", "value", "norm"])
def test_training_step_captured_in_a_graph(option: str) -> None:
    """Forward and backward of the module, as torch's notes on CUDA graphs write it."""
    reset = (torch.arange(36, device="cuda") % 5 == 0).view(9, 4)
    options: dict[str, dict[str, Any]] = {"reset": {"reset": reset}, "window": {"bptt_window": 3}}
    options |= {kind: {"clip_state_grad": (kind, 0.1)} for kind in ("value", "norm")}
    step, x = training_step(torch.float32, **options.get(option, {}))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_exact(numbered(found), numbered(step(x)))


def test_compiled_with_reduced_overhead() -> None:
    """mode="reduce-overhead": Inductor's own CUDA graphs."""
    torch._dynamo.reset()
    module = fused_bptt.RNN(5, 33, device="cuda")
    call = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):  # the third is a replay
        torch.compiler.cudagraph_mark_step_begin()
        x = torch.randn(9, 4, 5, device="cuda")
        results = []
        for of in (call, module):
            output, _ = of(x)
            gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
            results.append(numbered([output, *gradients]))
        truth = copy.deepcopy(module).double()
        output, _ = truth(x.double())
        gradients = torch.autograd.grad(output.square().sum(), list(truth.parameters()))
        assert_no_worse(*results, numbered([output, *gradients]))


def test_grad_scaler() -> None:
    """Under autocast in float16: an overflow is skipped, and the loss goes down."""
    rnn, head = fused_bptt.RNN(4, 9, device="cuda"), nn.Linear(9, 1, device="cuda")
    optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.2)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, growth_interval=1000)
    x, losses = torch.randn(12, 16, 4, device="cuda"), []
    for step in range(30):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = (head(rnn(x)[0]) - 0.5).float().square().mean()
        scaler.scale(loss * torch.inf if step == 0 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**11
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_of_each_sample(dtype: torch.dtype) -> None:
    module = fused_bptt.RNN(5, 33, device="cuda", dtype=dtype)
    weights = {name: value.detach() for name, value in module.named_parameters()}
    x = torch.randn(9, 4, 5, device="cuda", dtype=dtype)

    def loss(weights: Named, x: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    gradient = torch.func.grad(loss)
    found = torch.func.vmap(gradient, in_dims=(None, 1))(weights, x)
    wide = {name: value.double() for name, value in weights.items()}
    for sample in range(4):
        each = {name: value[sample] for name, value in found.items()}
        alone = gradient(weights, x[:, sample])
        module.double()
        exact = gradient(wide, x[:, sample].double())
        module.to(dtype)
        if dtype == torch.float64:
            assert_close(each, exact)
        else:
            assert_no_worse(each, alone, exact)


def test_on_the_current_stream() -> None:
    """The walk begins after what is on the stream before it, and is waited for by what follows."""
    p = on_gpu(Problem(T=200, B=16, G=1, H=256, dtype=torch.float32))
    expected = walks(p)
    inputs = {name: getattr(p, name).clone() for name in ("v", "factor")}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for name, value in inputs.items():
            getattr(p, name).fill_(float("nan"))
            torch.cuda._sleep(20_000_000)
            getattr(p, name).copy_(value)
        found = {name: value.clone() for name, value in walks(p).items()}
        torch.cuda.current_stream().synchronize()
    assert_exact(found, expected)


def test_on_a_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here; this test is about the second")
    p = Problem(T=20, B=9, G=2, H=70, reverse_groups=1)
    first, second = (to_cpu(walks(moved(p, f"cuda:{i}"))) for i in (0, 1))
    assert torch.cuda.current_device() == 0
    assert_exact(second, first)


def moved(problem: Problem, device: str) -> Problem:
    other = problem.to(problem.dtype)
    for name in ("v", "factor", "weight", "s0"):
        setattr(other, name, getattr(other, name).to(device))
    return other


def test_opcheck() -> None:
    p = on_gpu(Problem(T=4, B=3, G=2, H=5, dtype=torch.float32))
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.fused_bptt.recurrence_.default,
        (p.v, p.weight, p.s0, None, 1, TANH),
        test_utils=utils,
    )
    torch.library.opcheck(
        torch.ops.fused_bptt.linear_recurrence.default,
        (p.factor, p.v, p.weight, None, None, 1, TANH, True),
        test_utils=utils,
    )


def test_limits_of_this_device() -> None:
    limits = _ops.cuda_limits(0)
    text = _ops.explain_plan(16, 1, 512, "bfloat16", limits)
    assert text.startswith("limits name=cuda:0")
    assert "chosen" in text


def test_wrong_code_of_products() -> None:
    p = on_gpu(Problem(T=1, B=1, G=1, H=1, dtype=torch.float32))
    with pytest.raises(RuntimeError, match="float32_products: expected 0, 1 or 2, got 3"):
        torch.ops.fused_bptt.recurrence_(p.v, p.weight, p.s0, None, 0, TANH, 3)


def test_an_unknown_plan(monkeypatch: Any) -> None:
    monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", "warp")
    with pytest.raises(
        RuntimeError, match="FUSED_BPTT_CUDA_PLAN: expected cta, cluster, grid or la"
    ):
        walks(on_gpu(Problem(T=1, B=1, G=1, H=1)))


# --------------------------------------------------------------------------------------- a clip


each_clip = pytest.mark.parametrize(
    "clip", [(_ops.CLIP_VALUE, 0.6), (_ops.CLIP_NORM, 1.5)], ids=["value", "norm"]
)


@each_clip
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("size", OF_EVERY_PLAN, ids=str)
def test_clipped_adjoint(size: Any, dtype: torch.dtype, clip: tuple[int, float]) -> None:
    """Numbers or norms of rows held within a limit, with and without cuts, as on the CPU."""
    p = Problem(*size, dtype)

    def walk(p: Problem, cuts: dict[str, Any]) -> Named:
        mask, _, window = cuts_of(p, **cuts)
        kind = (p.batch_sizes, p.reverse_groups, TANH, True, mask, None, window, clip)
        q, last = _ops.linear_recurrence(p.factor, p.v, p.weight, p.s0, *kind)
        return {"q": q, "last": last}

    for cuts in ({}, {"reset": True, "each_group": True, "window": 2}):
        found, exact = to_cpu(walk(on_gpu(p), cuts)), walk(p.to(torch.float64), cuts)
        if dtype == torch.float64:
            assert_close(found, exact)
        else:
            assert_no_worse(found, walk(p, cuts), exact)


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf, 1e30])
def test_norms_that_are_no_numbers_or_large(spoiled: float) -> None:
    """As on the CPU: NaN spoils its row, infinity makes zeros of it, the square of 1e30 is none."""
    p, found = Problem(T=3, B=4, G=2, H=70, dtype=torch.float32), []
    p.v[-1, 1, 0, 3] = spoiled  # where the walk begins
    for here in (on_gpu(p), p):
        kind = (None, 0, TANH, True, None, None, 0, (_ops.CLIP_NORM, 1.5))
        q, last = _ops.linear_recurrence(here.factor, here.v, here.weight, here.s0, *kind)
        found.append({"q": q.cpu(), "last": last.cpu()})
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2, equal_nan=True)  # TF32 may be allowed


def test_norms_are_the_same_from_run_to_run() -> None:
    p, found = on_gpu(Problem(T=20, B=70, G=1, H=700, dtype=torch.float32)), []
    for _ in range(3):
        kind = (None, 0, TANH, True, None, None, 0, (_ops.CLIP_NORM, 1.5))
        found.append(_ops.linear_recurrence(p.factor, p.v, p.weight, p.s0, *kind)[0])
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_clip_of_the_module(kind: str) -> None:
    torch.manual_seed(0)
    module = fused_bptt.RNN(5, 33, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(9, 4, 5, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        module.to(device)
        output, h_n = module(x.to(device), clip_state_grad=(kind, 0.3))
        loss = output.square().sum() + h_n.sum()
        results.append(to_cpu(numbered(torch.autograd.grad(loss, list(module.parameters())))))
    assert_close(results[1], results[0])


# --------------------------------------------------------------------------------------- a leak

LEAKY_PROBLEMS = (
    *PROBLEMS,
    Problem(T=7, B=5, G=1, H=200),
    Problem(T=4, B=19, G=3, H=133, reverse_groups=1),
    Problem(6, 6, 2, 150, 1, (6, 5, 5, 2, 1, 1)),
)
each_form = pytest.mark.parametrize("voltage", [False, True], ids=["rate", "voltage"])
each_cut = pytest.mark.parametrize("cut", ["", "reset", "window"])


def leaky_on(case: Leaky, solve: Any, device: str, dtype: torch.dtype, orders: int) -> Named:
    """Both results, and gradients of a loss of them up to an order."""
    here = copy.copy(case)
    here.mask = None if case.mask is None else case.mask.to(device)
    leaves = [x.to(device, dtype).requires_grad_() for x in case.values()]
    results = here.function(solve)(*leaves)
    found, value = list(results), weighted(lambda: results)()
    for order in range(orders):
        bars = torch.autograd.grad(value, leaves, create_graph=order + 1 < orders)
        found += bars
        directions = [random(*bar.shape, seed=9 + i).to(bar) for i, bar in enumerate(bars)]
        value = sum((bar * d).sum() for bar, d in zip(bars, directions, strict=True))
    return to_cpu(named(found))


@each_cut
@each_form
@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
@pytest.mark.parametrize("problem", LEAKY_PROBLEMS, ids=str)
def test_leaky_derivatives(problem: Problem, phi: int, voltage: bool, cut: str) -> None:
    """To the third order, against the loop that the CPU is compared with."""
    case = Leaky(problem, phi, voltage, cut)
    exact = leaky_on(case, taped_leaky, "cpu", torch.float64, 3)
    assert_close(leaky_on(case, _leaky.leaky_recurrence, "cuda", torch.float64, 3), exact)


@each_cut
@each_form
@pytest.mark.parametrize("dtype", FLOAT_TYPES[1:], ids=str)
@pytest.mark.parametrize("problem", LEAKY_PROBLEMS, ids=str)
def test_leaky_precision(problem: Problem, dtype: torch.dtype, voltage: bool, cut: str) -> None:
    """No further from float64 than the loop in the same type on the same device."""
    case = Leaky(problem, TANH, voltage, cut)
    case.leaves = {name: x.to(dtype).double() for name, x in case.leaves.items()}
    exact = leaky_on(case, taped_leaky, "cpu", torch.float64, 1)
    ours = leaky_on(case, _leaky.leaky_recurrence, "cuda", dtype, 1)
    assert_no_worse(ours, leaky_on(case, taped_leaky, "cuda", dtype, 1), exact)


@each_cut
@each_form
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[2]], ids=str)
def test_leaky_forward_mode(problem: Problem, voltage: bool, cut: str) -> None:
    case = Leaky(problem, TANH, voltage, cut)

    def twice(solve: Any, device: str) -> Named:
        here = copy.copy(case)
        here.mask = None if case.mask is None else case.mask.to(device)
        values = tuple(x.to(device) for x in case.values())
        tangents, others = (
            tuple(random(*x.shape, seed=seed + i).to(x) for i, x in enumerate(values))
            for seed in (9, 19)
        )
        jvp, f = torch.func.jvp, here.function(solve)
        return to_cpu(named(jvp(lambda *x: jvp(f, x, tangents), values, others)))

    assert_close(twice(_leaky.leaky_recurrence, "cuda"), twice(taped_leaky, "cpu"))


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
@pytest.mark.parametrize("inner", [False, True], ids=["outer", "inner"])
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("problem", LEAKY_PROBLEMS, ids=str)
def test_leaky_linear_walks(
    problem: Problem, dtype: torch.dtype, inner: bool, adjoint: bool, window: int
) -> None:
    """As on the CPU, whose walks are those of the same table."""
    p = problem
    mask = torch.rand(p.v.shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.3
    values = [random(*p.v.shape, seed=i, scale=0.7) for i in range(3)]
    values = [x.to(dtype) for x in (*values, p.weight)]

    def walk(device: str, of: torch.dtype) -> Named:
        w, keep, factor, weight = (x.to(device, of) for x in values)
        kind = (p.batch_sizes, p.reverse_groups, inner, adjoint, mask.to(device), window)
        return {"m": _ops.leaky_linear(w, keep, factor, weight, *kind).cpu()}

    found, exact = walk("cuda", dtype), walk("cpu", torch.float64)
    if dtype == torch.float64:
        assert_close(found, exact)
    else:
        assert_no_worse(found, walk("cpu", dtype), exact)


@pytest.mark.parametrize("products", [_ops.TF32, _ops.TF32X3], ids=["tf32", "tf32x3"])
@each_form
def test_leaky_float32_by_tensor_cores(products: int, voltage: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(_ops, "float32_products", lambda tensor: products)
    case = Leaky(Problem(T=12, B=64, G=2, H=200, reverse_groups=1), TANH, voltage)
    case.leaves = {name: x.float().double() for name, x in case.leaves.items()}
    exact = leaky_on(case, taped_leaky, "cpu", torch.float64, 1)
    in_type = torch.float16 if products == _ops.TF32 else torch.float32
    ours = leaky_on(case, _leaky.leaky_recurrence, "cuda", torch.float32, 1)
    rival = leaky_on(case, taped_leaky, "cuda", torch.float32, 1)
    assert_no_worse(ours, rival, exact, computed_in=in_type)


@pytest.mark.parametrize("shape", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("form", ["inside", "rate", "voltage"])
def test_leaky_module(form: str, shape: dict[str, Any]) -> None:
    """Outputs and gradients, with noise that is given and with cuts, are those of the CPU."""
    torch.manual_seed(0)
    options = {"leak": 0.3, "learn_leak": True, "learn_initial": True, "dtype": torch.float64}
    m = fused_bptt.LeakyRNN(5, 33, form=form, **options, **shape)
    x, reset = torch.randn(9, 4, 5, dtype=torch.float64), torch.rand(9, 4) < 0.3
    noises = [torch.randn(9, 4, 33 * (1 + m.bidirectional)).double() for _ in range(m.num_layers)]
    results = []
    for device in ("cpu", "cuda"):
        m.to(device)
        noise = [one.to(device) for one in noises]
        values = m(
            x.to(device), reset=reset.to(device), bptt_window=4, noise=noise, return_rates=True
        )
        loss = sum((value.sin() * value).sum() for value in values)
        gradients = torch.autograd.grad(loss, list(m.parameters()))
        results.append(to_cpu(numbered([*values, *gradients])))
    assert_close(results[1], results[0])


def test_leaky_noise_is_the_generators() -> None:
    """Drawn on the device, so that a CUDA graph draws anew at each replay."""
    m = fused_bptt.LeakyRNN(3, 8, leak=0.2, noise_std=0.3, device="cuda")
    x = torch.randn(5, 2, 3, device="cuda")
    first, same, other = (
        m(x, generator=torch.Generator("cuda").manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["zoneout", "recurrent_dropout"])
def test_state_noise(kind: str, training: bool, monkeypatch: Any) -> None:
    """With the same masks as on the CPU."""
    drawn = StateNoise.drawn

    def on_the_cpu(
        noise: StateNoise, probability: float, shape: Any, device: torch.device, groups: int = 1
    ) -> Tensor:
        return drawn(noise, probability, shape, torch.device("cpu"), groups).to(device)

    monkeypatch.setattr(StateNoise, "drawn", on_the_cpu)
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    m = fused_bptt.RNN(5, 33, **options, **{kind: 0.3}).train(training)
    x = torch.randn(9, 4, 5, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        m.to(device)
        output, h_n = m(x.to(device), generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(output.square().sum() + h_n.sum(), list(m.parameters()))
        results.append(to_cpu(numbered([output, h_n, *gradients])))
    assert_close(results[1], results[0])


@each_form
def test_leaky_training_step_captured_in_a_graph(voltage: bool) -> None:
    case = Leaky(Problem(T=9, B=5, G=2, H=70, reverse_groups=1), TANH, voltage, "reset")
    case.mask = case.mask.cuda()
    leaves = [x.float().cuda().requires_grad_() for x in case.values()]
    inputs = [x.detach().clone() for x in leaves]

    def step() -> list[Tensor]:
        x, r = case.function(_leaky.leaky_recurrence)(*leaves)
        return [x, r, *torch.autograd.grad(x.square().sum() + r.sum(), leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.zero_()
        graph.replay()
        for leaf, value in zip(leaves, inputs, strict=True):
            leaf.copy_(value)
    graph.replay()
    assert_exact(numbered(found), numbered(step()))


@each_form
@pytest.mark.parametrize(("T", "B", "H"), [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_leaky_with_nothing_to_do(T: int, B: int, H: int, voltage: bool) -> None:
    u, weight, initial = (torch.ones(s).cuda() for s in ((T, B, 2, H), (2, H, H), (2, B, H)))
    gain = None if voltage else u
    operands = [x if x is None else x.requires_grad_() for x in (u, u, gain, weight, initial)]
    x, r = _leaky.leaky_recurrence(*operands, None, 1, TANH)
    assert x.shape == r.shape == u.shape
    (x.sum() + r.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_leaky_strides_of_zero() -> None:
    case = Leaky(PROBLEMS[1], TANH, voltage=False)
    shape = case.operands["u"].shape
    case.leaves["keep"] = (0.5 + 0.2 * random(17, seed=1)).expand(shape)
    case.leaves["gain"] = (0.5 + 0.3 * random(17, seed=2)).expand(shape)
    exact = leaky_on(case, taped_leaky, "cpu", torch.float64, 1)
    assert_close(leaky_on(case, _leaky.leaky_recurrence, "cuda", torch.float64, 1), exact)


@each_form
def test_leaky_bits_are_the_same_from_run_to_run(voltage: bool) -> None:
    case = Leaky(Problem(T=50, B=33, G=2, H=500, reverse_groups=1), TANH, voltage)
    first, *others = (
        leaky_on(case, _leaky.leaky_recurrence, "cuda", torch.float32, 1) for _ in range(4)
    )
    for other in others:
        assert_exact(other, first)


def test_leaky_opcheck() -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    case = Leaky(PROBLEMS[1], TANH, voltage=False)
    u, keep, gain, weight, initial = (x.float().cuda() for x in case.values())
    torch.library.opcheck(
        torch.ops.fused_bptt.leaky_recurrence.default,
        (u, keep, gain, weight, initial, *case.walk),
        test_utils=tests,
    )
    torch.library.opcheck(
        torch.ops.fused_bptt.leaky_linear.default,
        (u, keep, gain, weight, None, 1, False, True),
        test_utils=tests,
    )


@each_form
@pytest.mark.parametrize("plan", ["cta", "cluster", "grid", "launches"])
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("size", OF_EVERY_PLAN, ids=str)
def test_leaky_every_plan(
    size: Any, dtype: torch.dtype, plan: str, voltage: bool, monkeypatch: Any
) -> None:
    """Every exchange, both ways in time, with cuts and without; W where the plan puts it."""
    for cut in ("", "reset", "window"):
        case = Leaky(Problem(*size), SIGMOID, voltage, cut)
        case.leaves = {name: x.to(dtype).double() for name, x in case.leaves.items()}
        exact = leaky_on(case, taped_leaky, "cpu", torch.float64, 1)
        monkeypatch.setenv("FUSED_BPTT_CUDA_PLAN", plan)
        try:
            ours = leaky_on(case, _leaky.leaky_recurrence, "cuda", dtype, 1)
        except RuntimeError as error:
            skip_where_refused(error, plan)
        if dtype == torch.float64:
            assert_close(ours, exact)
        else:
            assert_no_worse(ours, leaky_on(case, taped_leaky, "cuda", dtype, 1), exact)
