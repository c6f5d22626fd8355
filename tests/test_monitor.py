"""fused_bptt.GradientMonitor: it reads what the trace says, changes nothing, and costs little."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import time
from typing import Any

import pytest
import torch
from helpers import LOW_PRECISION, raised
from tolerance import assert_close, assert_exact, assert_no_worse
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import fused_bptt
from fused_bptt import GradientMonitor, _ops
from fused_bptt.inspection import monitor as monitoring
from fused_bptt.inspection.readings import Reading, plot, saturation, spectral_radius

STEPS, ROWS, INPUTS, HIDDEN = 6, 3, 4, 5

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"nonlinearity": "relu"},
    "layers": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False, "num_layers": 2},
}


def compiles(test: Any) -> Any:
    """With torch's own warnings inside the compiler."""
    for said in (":Dynamo detected a call to a `functools.lru_cache`", "::DeprecationWarning"):
        test = pytest.mark.filterwarnings(f"ignore{said}")(test)
    return test


def make(kind: type[nn.RNNBase] = fused_bptt.RNN, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(INPUTS, HIDDEN, dtype=torch.float64, **options)


def batch(rnn: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    shape = (ROWS, STEPS, INPUTS) if rnn.batch_first else (STEPS, ROWS, INPUTS)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    return (
        torch.randn(shape, dtype=torch.float64),
        torch.randn(states, ROWS, HIDDEN, dtype=torch.float64),
    )


def loss(output: Tensor, h_n: Tensor) -> Tensor:
    weights = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).cos()
    return (output * weights).square().sum() + (h_n * h_n).sum()


def assert_reads_as_traced(readings: list[Reading], rnn: Any, x: Tensor, hx: Tensor | None) -> None:
    directions = [False, True] if rnn.bidirectional else [False]
    assert [(each.layer, each.reverse) for each in readings] == [
        *itertools.product(range(rnn.num_layers), directions)
    ]
    for each in readings:
        found = fused_bptt.trace(rnn, x, hx, loss, layer=each.layer, reverse=each.reverse)
        norms = found.q.flatten(1).norm(dim=1)
        assert_close({"q": each.q_norms}, {"q": norms.flip(0) if each.reverse else norms})
        assert each.saturation == pytest.approx(saturation(found.h, rnn.nonlinearity), abs=1e-6)


@pytest.mark.parametrize("kind", [fused_bptt.RNN, nn.RNN])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("given_state", [True, False])
def test_readings_are_those_of_the_trace(kind: Any, options: Any, given_state: bool) -> None:
    rnn = make(kind, **options)
    x, hx = batch(rnn)
    state = hx if given_state else None
    with GradientMonitor(rnn, every=1) as monitor:
        loss(*rnn(x, state)).backward()
    assert_reads_as_traced(list(monitor.readings), rnn, x, state)


def test_unbatched_and_by_keyword() -> None:
    rnn = make()
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    loss(*rnn(input=x[:, 0], hx=hx[:, 0])).backward()
    monitor.close()
    assert_reads_as_traced(list(monitor.readings), rnn, x[:, 0], hx[:, 0])


@pytest.mark.parametrize("used", ["output", "h_n"])
def test_either_result_may_be_unused(used: str) -> None:
    rnn = make()
    x, hx = batch(rnn)
    with GradientMonitor(rnn, every=1) as monitor:
        output, h_n = rnn(x, hx)
        (output if used == "output" else h_n).sum().backward()
    found = fused_bptt.trace(
        rnn, x, hx, lambda output, h_n: (output if used == "output" else h_n).sum()
    )
    assert_close({"q": monitor.readings[0].q_norms}, {"q": found.q.flatten(1).norm(dim=1)})


@pytest.mark.parametrize("layers", [1, 2])
def test_packed_sequences(layers: int) -> None:
    """The norms of the steps are those of the padded sequences, row by row."""
    rnn = make(num_layers=layers, bidirectional=True)
    lengths = (2, 6, 4)
    torch.manual_seed(1)
    rows = [torch.randn(length, INPUTS, dtype=torch.float64) for length in lengths]
    hx = torch.randn(2 * layers, 3, HIDDEN, dtype=torch.float64)

    def ask(output: PackedSequence, h_n: Tensor) -> Tensor:
        return output.data.square().sum() + (h_n * h_n).sum()

    with GradientMonitor(rnn, every=1) as monitor:
        ask(*rnn(pack_sequence(rows, enforce_sorted=False), hx)).backward()
    for each in monitor.readings:
        squares = torch.zeros(max(lengths), dtype=torch.float64)
        for row, x in enumerate(rows):
            found = fused_bptt.trace(
                rnn,
                x,
                hx[:, row],
                lambda output, h_n: output.square().sum() + (h_n * h_n).sum(),
                layer=each.layer,
                reverse=each.reverse,
            )
            q = found.q.flip(0) if each.reverse else found.q
            squares[: len(x)] += q.flatten(1).square().sum(1)
        assert_close({"q": each.q_norms}, {"q": squares.sqrt()})


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_the_same_bits(options: Any) -> None:
    rnn = make(**options)
    x, hx = batch(rnn)

    def gradients() -> dict[str, Tensor]:
        leaves = x.clone().requires_grad_(), hx.clone().requires_grad_()
        value = loss(*rnn(*leaves))
        named = {"x": leaves[0], "hx": leaves[1], **dict(rnn.named_parameters())}
        found = torch.autograd.grad(value, list(named.values()))
        return {"loss": value.detach(), **dict(zip(named, found, strict=True))}

    expected = gradients()
    monitor = GradientMonitor(rnn, every=1)
    assert_exact(gradients(), expected)
    assert monitor.readings
    monitor.close()
    count = len(monitor.readings)
    assert_exact(gradients(), expected)
    assert len(monitor.readings) == count, "closed"


def taped(
    rnn: Any,
    x: Tensor,
    hx: Tensor,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    bptt_window: int = 0,
    lengths: Tensor | None = None,
) -> tuple[list[Tensor], Tensor, dict[tuple[int, bool], list[list[Tensor]]]]:
    """A loop over layers, directions, rows and steps: every layer's output, h_n, and z by step."""
    steps, rows = x.shape[:2]
    ends = [steps] * rows if lengths is None else lengths.tolist()
    directions = 2 if rnn.bidirectional else 1
    data = [[x[t, row] for t in range(ends[row])] for row in range(rows)]
    outputs, last, found = [], [], {}
    for layer, direction in itertools.product(range(rnn.num_layers), range(directions)):
        suffix, state = f"l{layer}" + "_reverse" * direction, layer * directions + direction
        W_ih, W_hh, b_ih, b_hh = (
            getattr(rnn, f"{name}_{suffix}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        z_of: list[list[Tensor]] = [[] for _ in range(max(ends))]
        h_of = [[hx.new_zeros(HIDDEN)] * steps for _ in range(rows)]
        for row, end in enumerate(ends):
            h = hx[state, row]
            for t in reversed(range(end)) if direction else range(end):
                boundary = t + 1 if direction else t
                if boundary < end and boundary > 0 and bptt_window and boundary % bptt_window == 0:
                    h = h.detach()
                if boundary < end and reset is not None and reset[boundary, row]:
                    h = torch.zeros_like(h) if reset_state is None else reset_state[state, row]
                z = W_ih @ data[row][t] + b_ih + W_hh @ h + b_hh
                z.retain_grad()
                z_of[t].append(z)
                h = PHI[rnn.nonlinearity](z)
                h_of[row][t] = h
            last.append(h)
        outputs.append(torch.stack([torch.stack(each) for each in h_of], 1))
        found[layer, bool(direction)] = z_of
        if direction == directions - 1:
            whole = torch.cat(outputs[layer:], -1)
            outputs[layer:] = [whole]
            data = [[whole[t, row] for t in range(ends[row])] for row in range(rows)]
    return outputs, torch.stack(last).view(-1, rows, HIDDEN), found


PHI: dict[str, Any] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": lambda z: torch.log1p(torch.exp(z)),
    "identity": lambda z: z + 0,
}
CALLS: dict[str, tuple[str, ...]] = {
    "reset": ("reset",),
    "reset to a state": ("reset", "reset_state"),
    "window": ("bptt_window",),
    "lengths": ("lengths",),
    "all layers": ("return_all_layers",),
    "batch first states": ("state_batch_first",),
    "all": (
        "reset", "reset_state", "bptt_window", "lengths", "return_all_layers", "state_batch_first"
    ),
}  # fmt: skip
STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "layers": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


def loss_of_all(outputs: list[Tensor], h_n: Tensor) -> Tensor:
    """Without what is past the end of a row, which is zero."""
    return torch.stack([loss(each, h_n) for each in outputs]).sum()


def assert_reads_as_taped(
    readings: list[Reading], rnn: Any, names: tuple[str, ...], run: Any = None
) -> None:
    """One call of the module, or of ``run`` in its place, with the options ``names``."""
    x, hx = batch(rnn)
    torch.manual_seed(2)
    options: dict[str, Any] = {
        "reset": torch.rand(STEPS, ROWS) < 0.3,
        "reset_state": torch.randn_like(hx),
        "bptt_window": 4,
        "lengths": torch.tensor([4, 6, 0]),
        "return_all_layers": True,
        "state_batch_first": True,
    }
    options = {name: options[name] for name in names}
    every = bool(options.pop("return_all_layers", False))
    turned = bool(options.pop("state_batch_first", False))
    steps_first = x.transpose(0, 1) if rnn.batch_first else x
    outputs, h_n, z = taped(rnn, steps_first, hx, **options)
    loss_of_all(outputs if every else outputs[-1:], h_n).backward()
    expected = {
        place: torch.stack([torch.stack([each.grad for each in row]).norm() for row in of_step])
        for place, of_step in z.items()
    }

    def as_called(values: Tensor) -> Tensor:
        return values.transpose(0, 1) if turned else values

    if rnn.batch_first and "reset" in options:
        options["reset"] = options["reset"].t()
    if "reset_state" in options:
        options["reset_state"] = as_called(options["reset_state"])
    found, h_n = (rnn if run is None else run)(
        x,
        as_called(hx),
        **options,
        **({"return_all_layers": True} if every else {}),
        **({"state_batch_first": True} if turned else {}),
    )
    found = found if every else (found,)
    loss_of_all(
        [each.transpose(0, 1) if rnn.batch_first else each for each in found], as_called(h_n)
    ).backward()
    assert [(each.layer, each.reverse) for each in readings] == [*expected]
    for each in readings:
        assert_close({"q": each.q_norms}, {"q": expected[each.layer, each.reverse]})


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("names", CALLS.values(), ids=CALLS)
def test_readings_of_every_option_are_those_of_a_taped_loop(
    names: tuple[str, ...], stack: Any
) -> None:
    rnn = make(**stack)
    with GradientMonitor(rnn, every=1) as monitor:
        assert_reads_as_taped(monitor.readings, rnn, names)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("nonlinearity", PHI)
def test_readings_of_every_nonlinearity_are_those_of_a_taped_loop(
    nonlinearity: str, stack: Any
) -> None:
    rnn = make(nonlinearity=nonlinearity, **stack)
    with GradientMonitor(rnn, every=1) as monitor:
        assert_reads_as_taped(monitor.readings, rnn, ())


@compiles
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_every_option_under_compile(stack: Any) -> None:
    """Of those that can be compiled."""
    torch._dynamo.reset()
    rnn = make(**stack)
    names = tuple(name for name in CALLS["all"] if name != "lengths")
    with GradientMonitor(rnn, every=1) as monitor:
        compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
        assert_reads_as_taped(monitor.readings, rnn, names, compiled)


def test_dropout_leaves_the_last_layer_of_all_outputs() -> None:
    rnn = make(num_layers=2, dropout=0.5)
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    outputs, h_n = rnn(x, hx, return_all_layers=True)
    loss_of_all(list(outputs), h_n).backward()
    assert [each.layer for each in monitor.readings] == [1]


def test_dropout_leaves_the_last_layer() -> None:
    rnn = make(num_layers=2, dropout=0.5)
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    loss(*rnn(x, hx)).backward()
    assert [each.layer for each in monitor.readings] == [1]
    rnn.eval()
    loss(*rnn(x, hx)).backward()
    assert [each.layer for each in monitor.readings] == [1, 0, 1]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_lower_precision_is_no_worse_than_the_trace(dtype: torch.dtype, options: Any) -> None:
    rnn = make(**options).to(dtype)
    x, hx = (each.to(dtype) for each in batch(rnn))
    with GradientMonitor(rnn, every=1) as monitor:
        loss(*rnn(x, hx)).backward()
    wide = make(**options)
    wide.load_state_dict(rnn.state_dict())
    assert len(monitor.readings) == rnn.num_layers * (2 if rnn.bidirectional else 1)
    for each in monitor.readings:
        rival, exact = (
            fused_bptt.trace(module, *data, loss, layer=each.layer, reverse=each.reverse).q.double()
            for module, data in ((rnn, (x, hx)), (wide, (x.double(), hx.double())))
        )
        norms = [q.flatten(1).norm(dim=1) for q in (rival, exact)]
        rival, exact = (n.flip(0) for n in norms) if each.reverse else norms
        assert_no_worse({"q": each.q_norms}, {"q": rival}, {"q": exact}, computed_in=dtype)


def test_autocast_is_read_as_the_type_that_it_computes_in() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        rnn = make(num_layers=2).bfloat16().to(dtype)
        x, hx = (each.bfloat16().to(dtype) for each in batch(rnn))
        monitor = GradientMonitor(rnn, every=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output, h_n = rnn(x, hx)
        loss(output.float(), h_n.float()).backward()
        found.append({each.name: each.q_norms for each in monitor.readings})
    assert_exact(*found)


# When it reads.


def test_every() -> None:
    rnn = make()
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=3, keep=2)
    for _ in range(8):
        loss(*rnn(x, hx)).backward()
    assert [each.passes for each in monitor.readings] == [4, 7]
    assert monitor.passes == 8


def test_passes_that_a_checkpoint_computes_again() -> None:
    rnn, x = fused_bptt.RNN(3, 5, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    plain = GradientMonitor(rnn, every=1)
    rnn(x)[0].sin().sum().backward()
    plain.close()
    for every in (2, 3):
        monitor = GradientMonitor(rnn, every=every)
        parts = [
            checkpoint(lambda x: rnn(x)[0].sin(), x, use_reentrant=False).sum() for _ in range(2)
        ]
        sum(parts).backward()
        assert monitor.passes == 4  # computed again, they count again
        assert len(monitor.readings) == 1
        read, expected = monitor.readings[0], plain.readings[0]
        assert_close({"q": read.q_norms}, {"q": expected.q_norms})
        monitor.close()


def test_made_in_inference_mode() -> None:
    rnn = fused_bptt.RNN(3, 5)
    with torch.inference_mode():
        monitor = GradientMonitor(rnn, every=1)
    rnn(torch.randn(6, 2, 3))[0].sum().backward()
    assert len(monitor.readings) == 1


def test_made_under_a_fake_mode() -> None:
    with FakeTensorMode():
        rnn = fused_bptt.RNN(3, 5)
        kind, said = raised(lambda: GradientMonitor(rnn))
    assert kind is RuntimeError
    assert "expected to be made outside FakeTensorMode and its like, got a FakeTensor" in said
    assert rnn._observers == ()


def test_readings_are_rationed_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that costs 2 s, and a little, is followed by 38 s without."""
    said = 0.0  # seconds that the clock of the readings is ahead
    monkeypatch.setattr(monitoring, "perf_counter", lambda: time.perf_counter() + said)
    monkeypatch.setattr(monitoring, "_AROUND", 0.0)
    rnn = make()
    x, hx = batch(rnn)

    def slow(reading: Reading) -> None:
        nonlocal said
        said = 1.0

    monitor = GradientMonitor(rnn, slow, cost=0.05)
    for _ in range(200):
        loss(*rnn(x, hx)).backward()
        monitor._clock[monitoring._DUE] -= 1.02 + said
        said = 0.0
    read = [each.passes for each in monitor.readings]
    assert read == [*range(1, 201, 38)]


def test_the_clock_is_the_one_of_perf_counter() -> None:
    clock = torch.tensor([0.0, 0.0, time.perf_counter() + 100], dtype=torch.float64)
    _ops.watch(-1, clock)
    assert not _ops.is_due(-1)
    clock[monitoring._DUE] = time.perf_counter()
    assert _ops.is_due(-1)
    assert clock[monitoring._PASSES] == 2
    _ops.watch(-1, None)
    assert not _ops.is_due(-1)
    assert clock[monitoring._PASSES] == 2


@pytest.mark.parametrize(
    "clock",
    [torch.zeros(2, dtype=torch.float64), torch.zeros(3), torch.zeros(6, dtype=torch.float64)[::2]],
)
def test_a_clock_that_does_not_fit(clock: Tensor) -> None:
    assert "clock: expected float64 [3] on the CPU" in raised(lambda: _ops.watch(-1, clock))[1]


def test_opcheck() -> None:
    g, g_n, h = (torch.randn(4, 3, 5) for _ in range(3))
    torch.library.opcheck(_ops.observe, (-1, g, h, g_n[0]))
    for rest in (None, [None, h]):
        torch.library.opcheck(_ops.observe_more, (-1, g, h, g_n[0], rest, 1, 2))


def test_calls_without_gradients_are_not_read() -> None:
    rnn = make()
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    with torch.no_grad():
        assert rnn(x, hx)[0].grad_fn is None
    copied = copy.deepcopy(rnn)
    loss(*copied(x, hx)).backward()
    torch.func.grad(lambda x: loss(*rnn(x, hx)))(x)
    assert (monitor.passes, len(monitor.readings)) == (0, 0)
    loss(*rnn(x, hx)).backward()
    assert len(monitor.readings) == 1


def test_two_monitors_and_a_second_order() -> None:
    rnn = make()
    x, hx = batch(rnn)
    first, second = GradientMonitor(rnn, every=1), GradientMonitor(rnn, every=1)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(loss(*rnn(x, hx)), x, create_graph=True)
    dx.square().sum().backward()
    assert torch.equal(first.readings[0].q_norms, second.readings[0].q_norms)


@compiles
@pytest.mark.parametrize(
    ("backend", "options"),
    [("aot_eager", VARIANTS["plain"]), ("aot_eager", VARIANTS["layers"]), ("inductor", {})],
    ids=["plain", "layers", "inductor"],
)
def test_under_compile(backend: str, options: Any) -> None:
    torch._dynamo.reset()
    rnn = make(**options)
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=2)
    compiled = torch.compile(lambda x, hx: loss(*rnn(x, hx)), fullgraph=True, backend=backend)
    for _ in range(4):
        compiled(x, hx).backward()
    count = len(monitor.readings) // 2
    assert {each.passes for each in monitor.readings} == {1, 3}
    assert_reads_as_traced(list(monitor.readings)[:count], rnn, x, hx)
    monitor.close()
    compiled(x, hx).backward()
    assert len(monitor.readings) == 2 * count


@compiles
@pytest.mark.parametrize("compiled", [False, True])
def test_an_error_of_a_callback_ends_the_backward_pass(
    compiled: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    rnn = make()
    x, _ = batch(rnn)
    GradientMonitor(rnn, lambda reading: 1 / 0, every=1)
    step = torch.compile(lambda x: rnn(x)[0].sum(), backend="aot_eager") if compiled else rnn
    value = step(x) if compiled else step(x)[0].sum()
    kind, said = raised(value.backward)
    if compiled:
        assert "a reading failed" in said
        said = capfd.readouterr().err
    assert "division by zero" in said
    assert kind is (RuntimeError if compiled else ZeroDivisionError)


@compiles
@pytest.mark.parametrize("layers", [1, 2])
def test_a_compiled_step_keeps_no_more_than_is_read(layers: int) -> None:
    """And an h_n without a gradient stays without one: zeros would be added at every step."""
    torch._dynamo.reset()
    rnn = make(num_layers=layers)
    x, _ = batch(rnn)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def forward(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=forward, bw_compiler=keep)
    GradientMonitor(rnn, every=1)
    torch.compile(lambda x: rnn(x)[0].sum(), fullgraph=True, backend=backend)(x).backward()
    (graph,) = graphs
    (node,) = (each for each in graph.graph.nodes if "observe" in str(each.target))
    _, g, h, weight, *others = node.args
    assert None not in (g, h, weight)
    assert node.target is (_ops.observe if layers == 1 else _ops.observe_more)
    if layers > 1:
        g_n, *rest = others[0]
        assert g_n is None
        assert sum(each is not None for each in rest) == 1 + 4 * layers - 1, "x and parameters"


@compiles
def test_packed_sequences_under_compile() -> None:
    torch._dynamo.reset()
    rnn = make(num_layers=2, bidirectional=True)
    torch.manual_seed(1)
    rows = [torch.randn(length, INPUTS, dtype=torch.float64) for length in (2, 6, 4)]
    packed = pack_sequence(rows, enforce_sorted=False)
    hx = torch.randn(4, 3, HIDDEN, dtype=torch.float64)

    def ask(packed: PackedSequence, hx: Tensor) -> Tensor:
        output, h_n = rnn(packed, hx)
        return output.data.square().sum() + (h_n * h_n).sum()

    monitor = GradientMonitor(rnn, every=1)
    ask(packed, hx).backward()
    torch.compile(ask, fullgraph=True, backend="aot_eager")(packed, hx).backward()
    eager, compiled = (
        {each.name: each.q_norms for each in monitor.readings if each.passes == number}
        for number in (1, 2)
    )
    assert_close(compiled, eager)


@compiles
def test_a_graph_is_compiled_again_for_a_monitor_and_without_it() -> None:
    """Also where the same code was compiled before for another module of the same shapes."""
    torch._dynamo.reset()

    def step(rnn: Any) -> Any:
        return torch.compile(lambda x: rnn(x)[0].sum(), fullgraph=True, backend="aot_eager")

    plain, watched = make(), make()
    x, _ = batch(plain)
    run_plain, run_watched = step(plain), step(watched)
    run_plain(x).backward()
    run_watched(x).backward()
    monitor = GradientMonitor(watched, every=1)
    run_watched(x).backward()
    run_plain(x).backward()
    assert monitor.passes == 1
    monitor.close()
    run_watched(x).backward()
    second = GradientMonitor(watched, every=1)
    run_watched(x).backward()
    assert (monitor.passes, second.passes) == (1, 1)


def test_copies_and_saved_modules_are_not_monitored() -> None:
    rnn = make()
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    copies = copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), rnn.from_torch(rnn.to_torch())
    for each in copies:
        loss(*each(x, hx)).backward()
    assert monitor.passes == 0
    loss(*rnn(x, hx)).backward()
    assert monitor.passes == 1


# What it tells.


def test_callback_and_writer() -> None:
    class Curves:
        def __init__(self) -> None:
            self.points: list[tuple[str, float, int]] = []

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.points.append((tag, scalar_value, global_step))

    rnn = make(bidirectional=True)
    x, hx = batch(rnn)
    told: list[Reading] = []
    curves = Curves()
    monitor = GradientMonitor(rnn, told.append, curves, every=1, name="encoder")
    loss(*rnn(x, hx)).backward()
    assert told == list(monitor.readings)
    assert {tag for tag, _, _ in curves.points} == {
        f"encoder/{name}/{what}"
        for name in ("l0", "l0_reverse")
        for what in ("gradient_norm", "gradient_reach", "saturation", "spectral_radius")
    }
    assert all(step == 1 for _, _, step in curves.points)
    values = {tag: value for tag, value, _ in curves.points}
    q = told[1].q_norms
    assert values["encoder/l0_reverse/gradient_norm"] == pytest.approx(q.norm().item())
    assert values["encoder/l0_reverse/gradient_reach"] == pytest.approx((q[-1] / q.max()).item())
    assert told[0].reach == pytest.approx((told[0].q_norms[0] / told[0].q_norms.max()).item())


def test_a_real_writer(tmp_path: Any) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="no tensorboard here")
    rnn = make()
    with tensorboard.SummaryWriter(tmp_path) as writer:
        GradientMonitor(rnn, writer=writer, every=1)
        loss(*rnn(*batch(rnn))).backward()
    assert list(tmp_path.iterdir())


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    rnn = make()
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    for steps in (STEPS, 4, STEPS):
        loss(*rnn(x[:steps], hx)).backward()
    axes = monitor.plot()
    drawn = axes.collections[0].get_array()
    assert drawn.shape == (3, STEPS)
    assert torch.allclose(torch.tensor(drawn[2].data), monitor.readings[2].q_norms)
    assert drawn[1][4:].mask.all() or torch.tensor(drawn[1].data)[4:].isnan().all()
    assert axes.get_title() == "‖∂L/∂z_t‖ of l0"
    assert "got none" in raised(lambda: monitor.plot(layer=1))[1]
    assert (
        "got l0, l1"
        in raised(
            lambda: plot([Reading(1, layer, False, torch.ones(2), 0.0, 1.0) for layer in (0, 1)])
        )[1]
    )


def test_saturation() -> None:
    h = torch.tensor([0.0, 0.5, 0.995, -0.999])
    assert saturation(h, "tanh") == 0.5
    assert saturation(h.clamp(min=0), "relu") == 0.5
    assert saturation(h[:0], "tanh") == 0.0
    assert saturation(torch.tensor([0.001, 0.5, 0.999, 0.01]), "sigmoid") == 0.5
    assert saturation(torch.tensor([0.0, 0.01, 0.1, 4.0]), "softplus") == 0.5
    assert saturation(h, "identity") == 0.0


def test_spectral_radius() -> None:
    orthogonal = nn.init.orthogonal_(torch.empty(40, 40))
    assert spectral_radius(0.9 * orthogonal) == pytest.approx(0.9, rel=1e-5)
    shear = torch.tensor([[0.5, 100.0], [0.0, -0.6]])
    assert spectral_radius(shear) == pytest.approx(0.6, rel=1e-4)
    assert spectral_radius(shear.bfloat16()) == pytest.approx(0.6, rel=1e-2)
    assert math.isnan(spectral_radius(shear * float("nan")))
    rnn = make(bidirectional=True)
    with GradientMonitor(rnn, every=1) as monitor:
        loss(*rnn(*batch(rnn))).backward()
    for each, weight in zip(
        monitor.readings, (rnn.weight_hh_l0, rnn.weight_hh_l0_reverse), strict=True
    ):
        exact = torch.linalg.eigvals(weight).abs().max().item()
        assert each.spectral_radius == pytest.approx(exact)


def test_a_module_that_is_gone_is_not_read() -> None:
    rnn = make()
    x, hx = batch(rnn)
    monitor = GradientMonitor(rnn, every=1)
    value = loss(*rnn(x, hx))
    del rnn
    value.backward()
    assert len(monitor.readings) == 0


def test_the_sweep_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    right = _ops.linear_recurrence
    monkeypatch.setattr(_ops, "linear_recurrence", lambda *args: (calls.append(1), right(*args))[1])
    rnn = make(nn.RNN)
    GradientMonitor(rnn, every=1)
    loss(*rnn(*batch(rnn))).backward()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "every: expected at least 1, or None, got 0"),
        ({"cost": 0.0}, "cost: expected a fraction above 0 and at most 1, got 0.0"),
        ({"cost": 1.5}, "cost: expected a fraction above 0 and at most 1, got 1.5"),
        ({"keep": 0}, "keep: expected at least 1, got 0"),
    ],
)
def test_refusals(options: Any, says: str) -> None:
    assert raised(lambda: GradientMonitor(make(), **options))[1] == says
    assert "got LSTM" in raised(lambda: GradientMonitor(nn.LSTM(2, 3)))[1]


@pytest.mark.parametrize("option", ["recurrent_dropout", "zoneout"])
def test_what_a_monitor_does_not_read_is_refused(option: str) -> None:
    rnn = fused_bptt.RNN(2, 3, **{option: 0.5})
    x = torch.randn(4, 1, 2)
    with GradientMonitor(rnn):
        assert "does not know their masks" in raised(lambda: rnn(x))[1]
    rnn(x)
