"""Zoneout and recurrent dropout: against the loop, their masks, and what they cannot do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from against_loop import resets, setting, with_gradients
from cases import Case, ids, variants
from helpers import FLOAT_TYPES, data_of, raised
from tolerance import Named, assert_close, assert_exact
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import fused_bptt
from fused_bptt import _ops

P = 0.3
KINDS = ("zoneout", "recurrent_dropout")
CASES = tuple(
    variants(
        Case("noise", T=7, B=5, I=3, H=9),
        nonlinearity=("tanh", "relu"),
        num_layers=(1, 2),
        bidirectional=(False, True),
        lengths=(None, (2, 7, 1, 4, 4)),
    )
)
every_case = pytest.mark.parametrize("case", CASES, ids=ids(CASES))
both_kinds = pytest.mark.parametrize("kind", KINDS)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def masks(kind: str, case: Case, data: Tensor) -> dict[str, list[Tensor]]:
    """What `seeded` draws, as the loop takes it."""
    generator, D = seeded(), case.directions

    def drawn(probability: float, groups: int, *shape: int) -> Tensor:
        seed = torch.randint(2**63 - 1, (), generator=generator)
        return _ops.flags(torch.empty(shape), groups, probability, seed).double()

    if kind == "zoneout":
        lead = data.shape[:-1]
        held = [drawn(P, D, *lead, D * case.H) for _ in range(case.num_layers)]
        return {"held": [m.view(*lead, D, case.H) for m in held]}
    kept = [drawn(1 - P, 1, D, case.B, case.H) for _ in range(case.num_layers)]
    return {"dropped": [m / (1 - P) for m in kept]}


def solve(case: Case, kind: str, ours: bool, second: bool, cuts: bool = False) -> Named:
    """Outputs, gradients, and those of the gradients' squares."""
    both = setting(case)
    options: dict[str, Any] = {}
    data = data_of(both.x)
    if cuts:
        options = {"reset": resets(case, data), "reset_state": both.state, "bptt_window": 3}
    if ours:
        noise: dict[str, Any] = {kind: P, "generator": seeded(), "training": True}
        found = both.ours(**options, **noise)
    else:
        found = both.loop(**options, **masks(kind, case, data))
    return with_gradients(found, both.leaves(learned=cuts), second=second)


@pytest.mark.isa
@both_kinds
@pytest.mark.parametrize("cuts", [False, True])
@every_case
def test_equals_the_loop(case: Case, cuts: bool, kind: str) -> None:
    found = solve(case, kind, True, True, cuts)
    assert_close(found, solve(case, kind, False, True, cuts))


@both_kinds
def test_gradcheck(kind: str) -> None:
    case = Case("gradcheck", T=4, B=3, I=2, H=2, bidirectional=True)
    x, hx = case.inputs()

    def function(x: Tensor, hx: Tensor, *weights: Tensor) -> Any:
        options: dict[str, Any] = {kind: P, "generator": seeded(), "training": True}
        return fused_bptt.rnn(x, hx, weights, bidirectional=True, **options)

    point = (x, hx, *case.module().parameters())
    assert gradcheck(function, point, check_forward_ad=True)
    assert gradgradcheck(function, point)


@both_kinds
@pytest.mark.parametrize("case", CASES[:4], ids=ids(CASES[:4]))
def test_lengths_and_batch_first(case: Case, kind: str) -> None:
    """Rows of one length are the padded batch; time is where it is said to be."""
    x, hx = case.inputs()
    weights, T = list(case.module().parameters()), case.T
    options: dict[str, Any] = {kind: P, "training": True}
    options |= {name: getattr(case, name) for name in ("num_layers", "bidirectional")}

    def call(data: Any, **more: Any) -> Named:
        output, h_n = fused_bptt.rnn(data, hx, weights, generator=seeded(), **options, **more)
        return {"output": data_of(output), "h_n": h_n}

    if isinstance(x, PackedSequence):
        x = torch.randn(T, case.B, case.I, dtype=torch.float64)
    plain = call(x)
    turned = call(x.transpose(0, 1), batch_first=True)
    assert_exact({**turned, "output": turned["output"].transpose(0, 1)}, plain)
    assert_exact(call(x, lengths=torch.full((case.B,), T)), plain)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_evaluation(dtype: torch.dtype) -> None:
    """Dropout is nothing; zoneout is its mean."""
    case = Case("eval", T=6, B=3, I=2, H=5)
    x, hx = (value.detach() for value in case.inputs(dtype))
    dropping = fused_bptt.RNN(2, 5, recurrent_dropout=P, dtype=dtype).eval()
    plain = fused_bptt.RNN(2, 5, dtype=dtype)
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping(x, hx)[0], plain(x, hx)[0])

    zoning = fused_bptt.RNN(2, 5, zoneout=P, dtype=dtype).eval()
    found, last = zoning(x, hx)
    h, expected = hx[0].double(), []
    w, v, b, c = (p.double() for p in zoning.parameters())
    for u in x.double().unbind():
        h = P * h + (1 - P) * torch.tanh(u @ w.mT + h @ v.mT + b + c)
        expected.append(h)
    exact = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 0.03)
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=exact, rtol=0)
    assert torch.equal(last[0], found[-1])
    state = hx
    for t in range(6):
        h, state = zoning.step(x[t], state)
        torch.testing.assert_close(h, found[t], atol=2 * exact, rtol=0)


def test_rate_of_zoneout() -> None:
    """A unit keeps its state to the bit in a share P of the steps, each on its own."""
    m = fused_bptt.RNN(1, 50, zoneout=P)
    output, _ = m(torch.randn(200, 20, 1), generator=seeded())
    kept = (output[1:] == output[:-1]).double()
    assert abs(float(kept.mean()) - P) < 5 * (P * (1 - P) / kept.numel()) ** 0.5
    for dim in range(3):  # no dimension shares a mask: means over it scatter as they should
        means = kept.mean(dim)
        scatter = P * (1 - P) / kept.size(dim)
        assert 0.8 < float(means.var()) / scatter < 1.25


def test_rate_and_scale_of_dropout() -> None:
    """With W = 1, u = 0 and no φ, h_t / h_{t-1} is m: fixed in time, 0 or 1 / (1 - P)."""
    T, B, H = 3, 40, 100
    weights = [torch.zeros(H, 1), torch.eye(H)]
    options: dict[str, Any] = {"bias": False, "nonlinearity": "identity", "training": True}
    noise: dict[str, Any] = {"recurrent_dropout": P, "generator": seeded()}
    h0 = torch.ones(1, B, H)
    output, _ = fused_bptt.rnn(torch.zeros(T, B, 1), h0, weights, **options, **noise)
    m = output[0]
    assert set(m.unique().tolist()) == {0.0, torch.tensor(1 / (1 - P)).item()}
    assert torch.allclose(output[1], m**2)
    assert torch.allclose(output[2], m**3)
    deviation = (P / (1 - P) / m.numel()) ** 0.5
    assert abs(float(m.mean()) - 1) < 5 * deviation
    assert float(m.std(0).min()) > 0  # of each row its own
    assert float(m.std(1).min()) > 0


@both_kinds
def test_the_generator_says_the_masks(kind: str) -> None:
    m = fused_bptt.RNN(3, 8, num_layers=2, bidirectional=True, **{kind: P})
    x = torch.randn(5, 2, 3)
    first, again, other = (
        m(x, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    first = m(x)[0]
    torch.manual_seed(3)
    assert torch.equal(m(x)[0], first)
    assert not torch.equal(m(x)[0], first)


@both_kinds
@pytest.mark.parametrize(("T", "B"), [(0, 2), (4, 0)])
def test_nothing_to_do(kind: str, T: int, B: int) -> None:
    m = fused_bptt.RNN(3, 8, bidirectional=True, **{kind: P})
    hx = torch.randn(2, B, 8, requires_grad=True)
    output, h_n = m(torch.zeros(T, B, 3), hx, reset=torch.zeros(T, B, dtype=torch.bool))
    assert output.shape == (T, B, 16)
    assert torch.equal(h_n, hx)
    (output.sum() + h_n.sum()).backward()
    assert torch.equal(hx.grad, torch.ones_like(hx))


@both_kinds
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(kind: str, use_reentrant: bool) -> None:
    """What is computed again in the backward pass has the masks of the first pass."""
    m = fused_bptt.RNN(3, 8, num_layers=2, dropout=0.2, **{kind: P})
    x, hx = torch.randn(5, 2, 3, requires_grad=True), torch.randn(2, 2, 8, requires_grad=True)

    def bars(call: Any) -> Named:
        torch.manual_seed(5)
        output, _ = call(x, hx)
        found = torch.autograd.grad(output.square().sum(), (x, hx, *m.parameters()))
        return {str(i): bar for i, bar in enumerate(found)}

    if use_reentrant:  # it knows no autograd.grad
        torch.manual_seed(5)
        checkpoint(m, x, hx, use_reentrant=True)[0].square().sum().backward()
        found = {str(i): leaf.grad for i, leaf in enumerate((x, hx, *m.parameters()))}
    else:
        found = bars(lambda *given: checkpoint(m, *given, use_reentrant=False))
    assert_exact(found, bars(m))


def test_checkpoint_with_another_generator_is_an_error() -> None:
    """Its numbers cannot be drawn a second time; other masks would give wrong gradients."""
    m = fused_bptt.RNN(3, 8, zoneout=P)
    x = torch.randn(5, 2, 3, requires_grad=True)
    output, _ = checkpoint(m, x, None, generator=seeded(), use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"generator: expected None where .* got one"):
        output.sum().backward()


@both_kinds
def test_vmap(kind: str) -> None:
    m = fused_bptt.RNN(3, 8, **{kind: P}).double()
    xs = torch.randn(4, 5, 2, 3, dtype=torch.float64)

    def of_member(x: Tensor) -> Tensor:
        return m(x, generator=seeded())[0]

    found = torch.func.vmap(of_member, randomness="same")(xs)
    assert_close({"h": found}, {"h": torch.stack([of_member(x) for x in xs])})
    torch.manual_seed(1)
    own = torch.func.vmap(lambda x: m(x)[0], randomness="different")(xs[:1].expand_as(xs))
    assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("lengths", [None, (5, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
@both_kinds
def test_many_cotangents(kind: str, bidirectional: bool, lengths: Any) -> None:
    """torch.autograd.grad(is_grads_batched=True), of the state too."""
    case = Case("many", T=5, B=2, I=3, H=4, bidirectional=bidirectional, lengths=lengths)
    x, hx = case.inputs()
    assert hx is not None
    m = fused_bptt.RNN(3, 4, bidirectional=bidirectional, dtype=torch.float64, **{kind: P})
    found = data_of(m(x, hx)[0])
    leaves = {"x": data_of(x), "hx": hx, **dict(m.named_parameters())}
    cotangents = torch.randn(3, *found.shape, dtype=found.dtype)

    def pulled(g: Tensor, batched: bool) -> Named:
        points = list(leaves.values())
        options = {"retain_graph": True, "is_grads_batched": batched}
        return dict(zip(leaves, torch.autograd.grad(found, points, g, **options), strict=True))

    alone = [pulled(g, batched=False) for g in cotangents]
    expected = {name: torch.stack([each[name] for each in alone]) for name in leaves}
    assert_close(pulled(cotangents, batched=True), expected)


@pytest.mark.parametrize("dynamic", [False, True])
@both_kinds
def test_compiled(kind: str, dynamic: bool) -> None:
    torch.compiler.reset()
    m = fused_bptt.RNN(3, 8, bidirectional=True, **{kind: P})
    x = torch.randn(5, 2, 3)
    compiled = torch.compile(m, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.manual_seed(2)
    expected = m(x)[0]
    torch.manual_seed(2)
    torch.testing.assert_close(compiled(x)[0], expected)


@both_kinds
def test_the_module(kind: str) -> None:
    """A constant of the module: no tensor of it, copied, printed, and not torch's."""
    m, plain = fused_bptt.RNN(3, 8, **{kind: P}), fused_bptt.RNN(3, 8)
    assert m.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(5, 2, 3)
    twin = copy.deepcopy(m)
    assert torch.equal(twin(x, generator=seeded())[0], m(x, generator=seeded())[0])
    plain.load_state_dict(m.state_dict())
    assert not torch.equal(plain(x)[0], m(x)[0])
    assert repr(m) == f"RNN(3, 8, {kind}={P})"
    assert repr(plain) == "RNN(3, 8)"
    assert raised(m.to_torch)[0] is ValueError


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("recurrent_dropout", {"recurrent_dropout": 1.0}),
        ("recurrent_dropout", {"recurrent_dropout": -0.1}),
        ("zoneout", {"zoneout": 1.1}),
        ("recurrent_dropout, zoneout", {"zoneout": 0.1, "recurrent_dropout": 0.1}),
    ],
)
def test_wrong_arguments_are_named(name: str, options: dict[str, float]) -> None:
    def call() -> Any:
        return fused_bptt.rnn(torch.zeros(1, 1, 1), None, [torch.zeros(1, 1)] * 2, **options)

    for wrong in (call, lambda: fused_bptt.RNN(1, 1, **options)):
        kind, words = raised(wrong)
        assert kind is ValueError
        assert words.startswith(f"{name}: expected ")
        assert ", got " in words


def test_what_does_not_go_together() -> None:
    x = torch.randn(4, 2, 3)
    dropping = fused_bptt.RNN(3, 8, recurrent_dropout=P)
    with pytest.raises(RuntimeError, match=r"step: expected evaluation mode .* got"):
        dropping.step(x[0])
