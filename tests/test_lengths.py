"""Padded rows of different lengths: each row is what it is alone, walked packed or masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import cotangent
from taped import taped_rnn
from tolerance import Named, assert_close, assert_exact
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import fused_bptt
from fused_bptt import functional
from fused_bptt._noise import StateNoise

T, B, INPUTS, H = 7, 5, 3, 6
LENGTHS = (4, 7, 0, 1, 4)
PAST = torch.arange(T).unsqueeze(1) >= torch.tensor(LENGTHS)

ROUTES = ("packed", "masked")


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways, whatever the device."""
    take(request.param, monkeypatch)
    return str(request.param)


def take(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "readable", lambda _: route == "packed")


def solved(rnn: Any, x: Tensor, hx: Tensor, output: Tensor, h_n: Tensor) -> Named:
    """Outputs, and the gradients of a loss that weighs every number of them differently."""
    weigh = torch.linspace(0.5, 2, output.numel(), dtype=output.dtype).view(output.shape)
    loss = (output * weigh).sum() + (h_n.square() * 3).sum()
    wanted = {"x": x, "hx": hx, **dict(rnn.named_parameters())}
    return {"output": output, "h_n": h_n} | dict(
        zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True)
    )


def inputs(rnn: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    x = torch.randn(T, B, INPUTS, dtype=torch.float64, generator=generator)
    hx = torch.randn(states, B, H, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), hx.requires_grad_()


def alone(rnn: torch.nn.RNN, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, by nn.RNN."""
    outputs, states = [], []
    for b, length in enumerate(LENGTHS):
        width = H * (2 if rnn.bidirectional else 1)
        output, h_n = x.new_zeros(0, width), hx[:, b]
        if length > 0:
            output, h_n = rnn(x[:length, b], hx[:, b].contiguous())
        outputs.append(torch.cat([output, x.new_zeros(T - length, width)]))
        states.append(h_n)
    return torch.stack(outputs, 1), torch.stack(states, 1)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_each_row_is_what_it_is_alone(
    num_layers: int, bidirectional: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.RNN(INPUTS, H, num_layers, bidirectional=bidirectional, dtype=torch.float64)
    ours = fused_bptt.RNN.from_torch(theirs)
    x, hx = inputs(ours)
    found = solved(ours, x, hx, *ours(x, hx, lengths=torch.tensor(LENGTHS, dtype=dtype)))
    assert_close(found, solved(theirs, x, hx, *alone(theirs, x, hx)))


def by_rows(
    lengths: Sequence[int],
    x: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    held: Sequence[Tensor] = (),
    dropped: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The loop over time, row by row."""
    outputs, states = [], []
    width = H * (2 if options.get("bidirectional") else 1)
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        output, h_n = x.new_zeros(0, 1, width), hx[:, row]
        if length > 0:
            options["reset"] = None if reset is None else reset[:length, row]
            options["reset_state"] = None if reset_state is None else reset_state[:, row]
            options["held"] = [m[:length, row] for m in held] or None
            options["dropped"] = [m[:, row] for m in dropped] or None
            output, h_n = taped_rnn(x[:length, row], hx[:, row], weights, **options)
        outputs.append(torch.cat([output, x.new_zeros(T - length, 1, width)]))
        states.append(h_n)
    return torch.cat(outputs, 1), torch.cat(states, 1)


RESET = torch.rand(T, B, generator=torch.Generator().manual_seed(3)) < 0.3
STATE = torch.randn(4, B, H, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"nonlinearity": "relu"},
    "bidirectional": {"bidirectional": True},
    "stacked": {"num_layers": 2, "bidirectional": True},
    "stacked-relu": {"num_layers": 2, "nonlinearity": "relu"},
    "reset": {"reset": RESET},
    "reset-state": {"reset": RESET, "reset_state": STATE[:1], "nonlinearity": "relu"},
    "window": {"bptt_window": 2, "bidirectional": True},
    "window-reset": {"bptt_window": 4, "reset": RESET, "reset_state": STATE[:2], "num_layers": 2},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def module_of(options: dict[str, Any]) -> fused_bptt.RNN:
    torch.manual_seed(5)
    names = ("num_layers", "bidirectional", "nonlinearity")
    kept = {name: options[name] for name in names if name in options}
    return fused_bptt.RNN(INPUTS, H, dtype=torch.float64, **kept)


def point_of(options: dict[str, Any]) -> list[Tensor]:
    """x, hx and the weights."""
    module = module_of(options)
    return [*inputs(module), *module.parameters()]


def both(options: dict[str, Any], lengths: Any = LENGTHS) -> list[Callable[..., Any]]:
    """Ours and the loop, of x, hx and weights."""
    sizes = torch.as_tensor(lengths)

    def ours(x: Tensor, hx: Tensor, *weights: Tensor) -> Any:
        return fused_bptt.rnn(x, hx, weights, lengths=sizes, **options)

    def loop(x: Tensor, hx: Tensor, *weights: Tensor) -> Any:
        return by_rows(sizes.tolist(), x, hx, weights, **options)

    return [ours, loop]


def differentiated(call: Callable[..., Any], point: Sequence[Tensor]) -> Named:
    """Results, gradients, and those of the gradients' squares."""
    output, h_n = call(*point)
    results = [output, h_n]
    cotangents = [cotangent(value, seed) for seed, value in enumerate(results)]
    bars = torch.autograd.grad(results, point, cotangents, create_graph=True)
    again = torch.autograd.grad(sum(bar.square().sum() for bar in bars), point)
    found = {"output": output, "h_n": h_n}
    for name, values in (("grad", bars), ("again", again)):
        found |= {f"{name} {index}": value for index, value in enumerate(values)}
    return found


@pytest.mark.usefixtures("route")
@every_option
def test_derivatives(options: dict[str, Any]) -> None:
    """Of first and second order, and forward mode, equal to those of a loop row by row."""
    point = point_of(options)
    ours, loop = (differentiated(call, point) for call in both(options))
    assert_close(ours, loop)
    if "bptt_window" not in options:  # what the loop detaches has a tangent
        primals = tuple(value.detach() for value in point)
        tangents = tuple(cotangent(value, seed) for seed, value in enumerate(primals))
        found, expected = (jvp(call, primals, tangents)[1] for call in both(options))
        assert_close(dict(zip("oh", found, strict=True)), dict(zip("oh", expected, strict=True)))


@pytest.mark.parametrize("kind", ["zoneout", "recurrent_dropout"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_noise(kind: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked, the masks are drawn for the padded batch."""
    take("masked", monkeypatch)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional}
    point, D, p = point_of(options), 2 if bidirectional else 1, 0.3
    generator = torch.Generator().manual_seed(6)
    draw = StateNoise(0, 0, True, generator).drawn
    device = torch.device("cpu")
    if kind == "zoneout":
        name, flags = "held", [draw(p, (T, B, D * H), device, D) for _ in range(2)]
        masks = [m.view(T, B, D, H).double() for m in flags]
    else:
        name, flags = "dropped", [draw(1 - p, (D, B, H), device) for _ in range(2)]
        masks = [m.double() / (1 - p) for m in flags]
    noise: dict[str, Any] = {kind: p, "training": True}
    noise["generator"] = torch.Generator().manual_seed(6)
    ours, loop = both({**options, **noise})[0], both({**options, name: masks})[1]
    assert_close(differentiated(ours, point), differentiated(loop, point))


@pytest.mark.parametrize("shared", [False, True])
@every_option
def test_vmap(options: dict[str, Any], shared: bool) -> None:
    """Over x and hx, with the same lengths for all members or with their own; and under grad."""
    _, hx, *weights = (value.detach() for value in point_of(options))
    xs = torch.randn(3, T, B, INPUTS, dtype=torch.float64)
    hxs = hx + torch.arange(3).view(3, 1, 1, 1)
    sizes = torch.tensor([LENGTHS] * 3 if shared else [LENGTHS, (1, 2, 3, 4, 5), (7, 0, 0, 7, 6)])
    given = (xs, hxs, sizes[0] if shared else sizes)
    dims = (0, 0, None if shared else 0)

    def call(x: Tensor, hx: Tensor, lengths: Tensor) -> Any:
        return fused_bptt.rnn(x, hx, weights, lengths=lengths, **options)

    def loop(x: Tensor, hx: Tensor, lengths: Tensor) -> Any:
        return by_rows(lengths.tolist(), x, hx, weights, **options)

    def loss(call: Callable[..., Any], *point: Tensor) -> Tensor:
        output, h_n = call(*point)
        return output.sin().sum() + h_n.square().sum()

    found = dict(zip(("output", "h_n"), vmap(call, dims)(*given), strict=True))
    bars = vmap(torch.func.grad(lambda *point: loss(call, *point), (0, 1)), dims)(*given)
    found |= dict(zip(("x", "hx"), bars, strict=True))
    members = []
    for x, h0, lengths in zip(xs, hxs, sizes, strict=True):
        point = (x.clone().requires_grad_(), h0.clone().requires_grad_())
        expected = torch.autograd.grad(loss(loop, *point, lengths), point)
        members.append([*loop(x, h0, lengths), *expected])
    stacked = (torch.stack(values) for values in zip(*members, strict=True))
    assert_close(found, dict(zip(found, stacked, strict=True)))


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_is_past_the_end_is_not_read(bidirectional: bool, nonlinearity: str) -> None:
    """Nor the states of a row without steps; and what would overflow there does not."""
    options = {"bidirectional": bidirectional, "nonlinearity": nonlinearity}
    rnn = fused_bptt.RNN(INPUTS, H, dtype=torch.float64, **options)
    with torch.no_grad():  # a state that grows 1e60-fold a step
        rnn.weight_hh_l0.fill_(1e60)
    x, hx = (value.detach().abs() for value in inputs(rnn))
    results = []
    for filling in (0.0, float("nan")):
        past = torch.arange(T).unsqueeze(1) >= torch.tensor((2, 1, 0, 1, 2))
        spoilt = x.masked_fill(past.unsqueeze(2), filling).requires_grad_()
        start = hx.index_fill(1, torch.tensor(2), filling).requires_grad_()
        output, h_n = rnn(spoilt, start, lengths=torch.tensor((2, 1, 0, 1, 2)))
        assert (output[past] == 0).all()
        results.append(solved(rnn, spoilt, start, output, h_n.nan_to_num(0)))
    assert_exact(*results)
    assert all(value.isfinite().all() for value in results[0].values())
    assert (results[0]["x"][past] == 0).all()


@pytest.mark.usefixtures("route")
def test_batch_first_all_layers_and_resets() -> None:
    rnn = fused_bptt.RNN(INPUTS, H, 2, dtype=torch.float64)
    x, hx = inputs(rnn)
    lengths, reset = torch.tensor(LENGTHS), torch.rand(T, B) < 0.3
    outputs, h_n = rnn(x, hx, lengths=lengths, reset=reset, reset_state=hx, return_all_layers=True)
    turned = fused_bptt.rnn(
        x.transpose(0, 1),
        hx.transpose(0, 1),
        list(rnn.parameters()),
        num_layers=2,
        batch_first=True,
        lengths=lengths,
        reset=reset.t(),
        reset_state=hx.transpose(0, 1),
        state_batch_first=True,
    )
    named = {"output": turned[0].transpose(0, 1), "h_n": turned[1].transpose(0, 1)}
    assert_exact(named, {"output": outputs[-1], "h_n": h_n})
    assert len(outputs) == 2
    assert (outputs[0][PAST] == 0).all()
    row, length = 1, LENGTHS[1]
    given = (x[:length, row : row + 1], hx[:, row : row + 1].contiguous())
    options = {"reset": reset[:length, row : row + 1], "reset_state": given[1]}
    expected, _ = rnn(*given, **options)
    assert_exact({"row": outputs[-1][:length, row : row + 1]}, {"row": expected})


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("steps", [0, 3])
def test_no_row_has_a_step(steps: int) -> None:
    rnn = fused_bptt.RNN(INPUTS, H)
    hx = torch.randn(1, 2, H)
    x, lengths = torch.randn(steps, 2, INPUTS), torch.zeros(2, dtype=torch.int64)
    output, h_n = rnn(x, hx, lengths=lengths)
    assert (output == 0).all()
    assert output.shape == (steps, 2, H)
    assert torch.equal(h_n, hx)
    assert (rnn(x, lengths=lengths)[1] == 0).all()


def test_no_member_has_a_step() -> None:
    rnn, x, hx = fused_bptt.RNN(INPUTS, H), torch.randn(0, 2, INPUTS), torch.randn(1, 2, H)
    lengths = torch.zeros(3, 2, dtype=torch.int64)
    h_n = vmap(lambda lengths: rnn(x, hx, lengths=lengths)[1])(lengths)
    assert torch.equal(h_n, hx.expand(3, 1, 2, H))


@pytest.mark.usefixtures("route")
def test_autocast() -> None:
    rnn = fused_bptt.RNN(INPUTS, H, bidirectional=True)
    x, hx, lengths = torch.randn(T, B, INPUTS), torch.randn(2, B, H), torch.tensor(LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = rnn(x, hx, lengths=lengths)
        row, _ = rnn(x[:4, 4:], hx[:, 4:].contiguous())
    assert output.dtype == h_n.dtype == torch.bfloat16
    assert torch.equal(output[:4, 4:], row)


# ------------------------------------------------------------- where the host may not read them


class NothingRead(TorchDispatchMode):
    """Refuses what brings a number, or a number of elements, to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        data_dependent = torch.Tag.data_dependent_output in func.tags
        assert not data_dependent or "_assert_async" in str(func), func
        assert torch.Tag.dynamic_output_shape not in func.tags, func
        return func(*args, **(kwargs or {}))


@every_option
def test_nothing_is_read(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; the other way would be seen."""
    point, lengths = point_of(options), torch.tensor(LENGTHS)
    take("masked", monkeypatch)
    with NothingRead():
        output, h_n = fused_bptt.rnn(point[0], point[1], point[2:], lengths=lengths, **options)
        torch.autograd.grad(output.sum() + h_n.sum(), point)
    take("packed", monkeypatch)
    with NothingRead(), pytest.raises(AssertionError):
        fused_bptt.rnn(point[0], point[1], point[2:], lengths=lengths, **options)


@every_option
def test_on_meta(options: dict[str, Any]) -> None:
    """Tensors that have no numbers: what is read of them is an error."""
    x, hx, *weights = (v.detach().to("meta").requires_grad_() for v in point_of(options))
    cuts = {k: v.to("meta") for k, v in options.items() if isinstance(v, Tensor)}
    lengths = torch.tensor(LENGTHS, device="meta")
    output, h_n = fused_bptt.rnn(x, hx, weights, lengths=lengths, **{**options, **cuts})
    (output.sum() + h_n.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert output.shape == (T, B, H * (2 if "bidirectional" in options else 1))
    assert h_n.shape == hx.shape


@every_option
def test_compiled_once_for_every_length_and_batch(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    names = ("reset", "reset_state")
    static = {name: value for name, value in options.items() if name not in names}
    rnn, window = module_of(options), static.pop("bptt_window", 0)
    counter = CompileCounterWithBackend("aot_eager")

    def call(x: Tensor, hx: Tensor, lengths: Tensor, *cuts: Tensor) -> Any:
        cut = dict(zip(names, cuts, strict=False))
        return rnn(x, hx, lengths=lengths, bptt_window=window, **cut)

    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for steps, rows in ((7, 5), (9, 3), (400, 5), (2, 9)):
        generator = torch.Generator().manual_seed(rows)
        lengths = torch.randint(0, steps + 1, (rows,), generator=generator)
        x = torch.randn(steps, rows, INPUTS, dtype=torch.float64, generator=generator)
        states = (rnn.num_layers * (2 if rnn.bidirectional else 1), rows, H)
        hx, other = torch.randn(2, *states, dtype=torch.float64, generator=generator)
        x, hx = x.requires_grad_(), hx.requires_grad_()
        cuts = [torch.rand(steps, rows) < 0.3, other] if "reset_state" in options else []
        if "reset" in options and not cuts:
            cuts = [torch.rand(steps, rows) < 0.3]
        found = solved(rnn, x, hx, *compiled(x, hx, lengths, *cuts))
        assert_close(found, solved(rnn, x, hx, *call(x, hx, lengths, *cuts)))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 4


def test_inductor() -> None:
    torch._dynamo.reset()
    rnn = fused_bptt.RNN(INPUTS, H, 2, bidirectional=True, dtype=torch.float64)
    x, hx = inputs(rnn)
    compiled = torch.compile(rnn, fullgraph=True, dynamic=True)
    for sizes in (LENGTHS, (7, 1, 2, 0, 3)):
        lengths = torch.tensor(sizes)
        found = solved(rnn, x, hx, *compiled(x, hx, lengths=lengths))
        assert_close(found, solved(rnn, x, hx, *rnn(x, hx, lengths=lengths)))
    with pytest.raises(RuntimeError, match="lengths: expected numbers from 0 to T"):
        compiled(x, hx, lengths=torch.tensor([1, 2, 8, 1, 1]))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    """lengths are an input of the program, of any size."""
    rnn = fused_bptt.RNN(INPUTS, H, bidirectional=True, dtype=torch.float64)
    x, hx = (value.detach() for value in inputs(rnn))
    steps, rows = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    dynamic = {"input": {0: steps, 1: rows}, "hx": {1: rows}, "lengths": {0: rows}}
    given = {"lengths": torch.tensor(LENGTHS)}
    program = torch.export.export(
        rnn, (x, hx), given, dynamic_shapes=dynamic, strict=strict
    ).module()
    other = (x[:5, :3], hx[:, :3].contiguous(), torch.tensor([2, 0, 5]))
    for data, state, lengths in ((x, hx, given["lengths"]), other):
        found, expected = (call(data, state, lengths=lengths) for call in (program, rnn))
        assert_close(dict(zip("oh", found, strict=True)), dict(zip("oh", expected, strict=True)))
    with pytest.raises(RuntimeError, match="lengths: expected numbers from 0 to T"):
        program(x, hx, lengths=torch.tensor([1, 2, 8, 1, 1]))


@pytest.mark.parametrize("members", [False, True])
def test_compiled_vmap(members: bool) -> None:
    torch._dynamo.reset()
    rnn = fused_bptt.RNN(INPUTS, H, dtype=torch.float64)
    xs, sizes = torch.randn(3, T, B, INPUTS, dtype=torch.float64), torch.tensor([LENGTHS] * 3)
    dims = (0, 0 if members else None)
    call = vmap(lambda x, lengths: rnn(x, lengths=lengths)[0], dims)
    lengths = sizes if members else sizes[0]
    found = torch.compile(call, backend="aot_eager", fullgraph=True)(xs, lengths)
    assert_close({"h": found}, {"h": call(xs, lengths)})


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (torch.tensor([1.0, 2.0]), "lengths: expected integers, got torch.float32"),
        (torch.tensor([1, 2, 3]), r"lengths: expected shape \[2\], one a row, got \[3\]"),
        (torch.tensor([1, 4]), r"lengths: expected numbers from 0 to 3 steps, got \[1, 4\]"),
        (torch.tensor([-1, 2]), r"lengths: expected numbers from 0 to 3 steps, got \[-1, 2\]"),
    ],
)
def test_lengths_that_do_not_fit(lengths: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fused_bptt.RNN(INPUTS, H)(torch.randn(3, 2, INPUTS), lengths=lengths)


@pytest.mark.parametrize("wrong", [8, -1])
def test_numbers_that_do_not_fit_where_they_are_not_read(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take("masked", monkeypatch)
    rnn, x = fused_bptt.RNN(INPUTS, H), torch.randn(T, B, INPUTS)
    lengths = torch.tensor([1, 2, wrong, 1, 1])
    words = "lengths: expected numbers from 0 to T, the steps of input"
    with pytest.raises(RuntimeError, match=words):
        rnn(x, lengths=lengths)
    with pytest.raises(RuntimeError, match=words):
        vmap(lambda lengths: rnn(x, lengths=lengths)[0])(
            torch.stack([lengths.clamp(0, T), lengths])
        )


def test_what_lengths_do_not_go_with(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = fused_bptt.RNN(INPUTS, H)
    x, lengths = torch.randn(3, 2, INPUTS), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="lengths: expected with a padded batch, 3-D, got"):
        rnn(x[:, 0], lengths=lengths[:1])
    with pytest.raises(RuntimeError, match=r"hx: expected shape \[1, 2, 6\], got \[1, 3, 6\]"):
        rnn(x, torch.zeros(1, 3, H), lengths=lengths)
    with pytest.raises(RuntimeError, match=r"hx: expected dtype torch\.float32"):
        rnn(x, torch.zeros(1, 2, H, dtype=torch.float64), lengths=lengths)
    take("masked", monkeypatch)
    both_ways = fused_bptt.RNN(INPUTS, H, bidirectional=True)
    cut = {"lengths": lengths, "reset": torch.ones(3, 2, dtype=torch.bool)}
    both_ways(x, **cut)
    with pytest.raises(ValueError, match="reset: expected no hx and no reset_state with lengths"):
        both_ways(x, torch.zeros(2, 2, H), **cut)
