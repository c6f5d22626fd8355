"""The module with a leak, against its three forms as users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerance import Named, assert_close, assert_exact
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from fused_bptt import LeakyRNN, _ops, leaky
from fused_bptt.parametrizations import Dale, dale_signs

T, B, I, H = 6, 3, 2, 5  # noqa: E741
MASK = torch.tensor([[t in (0, 3) and b == 1 for b in range(B)] for t in range(T)])
LENGTHS = (3, 6, 1)

each_form = pytest.mark.parametrize("form", ["inside", "rate", "voltage"])


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


Hook = Callable[[Tensor], Tensor]


def written_row(
    m: LeakyRNN,
    layer: int,
    suffix: str,
    x: Tensor,
    noise: Tensor,
    mask: Tensor,
    h0: Tensor | None,
    hook: Hook | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of a layer for one row of the batch: states [T, H], rates, and the last.

    `hook` gets the gradient of each state.
    """
    w = {
        name: getattr(m, f"{name}_l{layer}{suffix}")
        for name in ("weight_ih", "weight_hh", "bias", "leak", "initial")
    }
    a, fresh = w["leak"], w["initial"]
    if fresh is None:
        fresh = torch.zeros(H, dtype=torch.float64)
    state = fresh if h0 is None else h0
    steps, found = len(x), []
    for t in reversed(range(steps)) if suffix else range(steps):
        boundary = t + 1 if suffix else t  # what was carried is cut before this step in time
        if boundary < steps and mask[boundary]:
            state = fresh
        drive = w["weight_ih"] @ x[t] + noise[t]
        drive = drive if w["bias"] is None else drive + w["bias"]
        if m.form == "voltage":
            state = (1 - a) * state + a * (drive + w["weight_hh"] @ torch.tanh(state))
        elif m.form == "rate":
            rate = torch.tanh(drive + w["weight_hh"] @ state)
            state = (1 - a) * state + a * rate
        else:
            state = torch.tanh((1 - a) * state + a * (drive + w["weight_hh"] @ state))
        if hook is not None:
            state.register_hook(hook)
        if m.form != "rate":
            rate = torch.tanh(state) if m.form == "voltage" else state
        found.append((state, rate))
    states, rates = zip(*(found[::-1] if suffix else found), strict=True)
    return torch.stack(states), torch.stack(rates), state


def written(
    m: LeakyRNN,
    rows: list[Tensor],
    noises: list[Any],
    masks: list[Tensor],
    h0: Tensor | None,
    hook: Hook | None = None,
) -> list[Tensor]:
    """The last layer's states and rates of every row, one row after the other, and h_n."""
    suffixes = ["", "_reverse"][: 1 + m.bidirectional]
    last = []
    for layer in range(m.num_layers):
        of_rows = []
        for b, x in enumerate(rows):
            ways = []
            for d, suffix in enumerate(suffixes):
                noise = noises[layer][b][:, d * H : (d + 1) * H]
                start = None if h0 is None else h0[layer * len(suffixes) + d, b]
                ways.append(written_row(m, layer, suffix, x, noise, masks[b], start, hook))
            of_rows.append([torch.cat([way[0] for way in ways], -1)])
            of_rows[-1] += [torch.cat([way[1] for way in ways], -1), [way[2] for way in ways]]
        last += [torch.stack([row[2][d] for row in of_rows]) for d in range(len(suffixes))]
        rows = [row[1] if m.form == "voltage" else row[0] for row in of_rows]
    states, rates, _ = zip(*of_rows, strict=True)
    return [torch.cat(states), torch.cat(rates), torch.stack(last)]


def gradients(values: list[Tensor], leaves: list[Tensor]) -> Named:
    bars = torch.autograd.grad(
        sum((v.sin() * v).sum() for v in values), leaves, materialize_grads=True
    )
    return {str(i): v.detach() for i, v in enumerate((*values, *bars))}


SHAPES: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]


def module(form: str, **options: Any) -> LeakyRNN:
    m = LeakyRNN(
        I, H, form=form, learn_leak=True, learn_initial=True, dtype=torch.float64, **options
    )
    for name, parameter in m.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(parameter)
    return m


@pytest.mark.parametrize("given", [False, True], ids=["", "state"])
@pytest.mark.parametrize("reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("kind", ["padded", "packed", "unbatched"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_form
def test_equals_the_form(
    form: str, shape: dict[str, Any], kind: str, reset: bool, given: bool
) -> None:
    m = module(form, leak=torch.linspace(0.1, 1, H), **shape)
    D = 1 + m.bidirectional
    rows = 1 if kind == "unbatched" else B
    x, h0 = double(T, rows, I).requires_grad_(), double(m.num_layers * D, rows, H).requires_grad_()
    noises = [double(T, rows, D * H) for _ in range(m.num_layers)]
    mask = MASK[:, 1:2] if kind == "unbatched" else MASK
    mask = mask if reset else torch.zeros_like(mask)
    lengths = LENGTHS if kind == "packed" else (T,) * rows

    def laid_out(value: Tensor) -> Any:
        """As the module takes it."""
        if kind == "packed":
            packed = pack_padded_sequence(value, torch.tensor(lengths), enforce_sorted=False)
            return packed if value is x else packed.data
        if kind == "unbatched":
            return value[:, 0]
        return value.transpose(0, 1) if m.batch_first else value

    def by_row(value: Any) -> Tensor:
        """One row after the other, each of its own length."""
        if kind == "packed":
            value, _ = pad_packed_sequence(value)
        elif kind == "unbatched":
            value = value[:, None]
        elif m.batch_first:
            value = value.transpose(0, 1)
        return torch.cat([value[:length, b] for b, length in enumerate(lengths)])

    options: dict[str, Any] = {"noise": [laid_out(noise) for noise in noises]}
    options["reset"] = laid_out(mask) if reset else None
    state = (h0[:, 0] if kind == "unbatched" else h0) if given else None
    output, last, rates = m(laid_out(x), state, return_rates=True, **options)
    found = [by_row(output), by_row(rates), last[:, None] if kind == "unbatched" else last]
    expected = written(
        m,
        [x[:length, b] for b, length in enumerate(lengths)],
        [[noise[:, b] for b in range(rows)] for noise in noises],
        [mask[:, b] for b in range(rows)],
        h0 if given else None,
    )
    leaves = [x, h0, *m.parameters()]
    assert_close(gradients(found, leaves), gradients(expected, leaves))


LIMITS = {"norm": 0.7, "value": 0.3}


@pytest.mark.isa
@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
@each_form
def test_a_clip_is_that_of_hooks(form: str, shape: dict[str, Any], kind: str) -> None:
    limit, lengths = LIMITS[kind], LENGTHS
    shape = {**shape, "batch_first": False}
    m = module(form, leak=torch.linspace(0.1, 1, H), **shape)
    D = 1 + m.bidirectional
    x, h0 = double(T, B, I).requires_grad_(), double(m.num_layers * D, B, H).requires_grad_()
    none = torch.zeros(T, D * H, dtype=torch.float64)

    def clip(a: Tensor) -> Tensor:
        return a.clamp(-limit, limit) if kind == "value" else a * (limit / a.norm()).clamp(max=1)

    def call(given: tuple[str, float] | None) -> Named:
        options = {"lengths": torch.tensor(lengths), "reset": MASK, "return_rates": True}
        output, last, rates = m(x, h0, clip_state_grad=given, **options)
        found = [
            torch.cat([value[:length, b] for b, length in enumerate(lengths)])
            for value in (output, rates)
        ]
        return gradients([*found, last], leaves)

    leaves = [x, h0, *m.parameters()]
    found = call((kind, limit))
    expected = written(
        m,
        [x[:length, b] for b, length in enumerate(lengths)],
        [[none] * B] * m.num_layers,
        list(MASK.unbind(1)),
        h0,
        clip,
    )
    assert_close(found, gradients(expected, leaves))
    assert not torch.allclose(found["3"], call(None)["3"], rtol=1e-3), "nothing was clipped"
    assert_close(call((kind, 1e30)), call(None))


@pytest.mark.parametrize("kind", LIMITS)
@each_form
def test_a_clip_has_the_same_bits_on_any_number_of_threads(form: str, kind: str) -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        m = LeakyRNN(3, 331, form=form, leak=0.5, learn_leak=True)
        output, last = m(torch.randn(9, 4, 3), clip_state_grad=(kind, 0.1))
        found.append(gradients([output, last], list(m.parameters())))
    assert_exact(*found)


def test_a_clip_compiled() -> None:
    m, x = module("voltage", leak=0.5), double(T, B, I)
    torch._dynamo.reset()
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    found, expected = (
        gradients(list(call(x, clip_state_grad=("norm", 0.7))), list(m.parameters()))
        for call in (compiled, m)
    )
    assert_close(found, expected)


def test_where_nothing_is_clipped_is_refused() -> None:
    """In words; a pass without its clip would be another one."""
    m, x, clip = module("rate", leak=0.5), double(T, B, I), ("norm", 1.0)
    with pytest.raises(ValueError, match=r"^clip_state_grad: expected .* got \('norm', '1'\)"):
        m(x, clip_state_grad=("norm", "1"))
    for wide in (m.bfloat16(), m.double().to("meta")):
        there = x.to(wide.weight_hh_l0)
        with pytest.raises(ValueError, match=r"^clip_state_grad: expected .* got"):
            wide(there, clip_state_grad=("norm", 1.0))
    m = module("rate", leak=0.5)
    with pytest.raises(ValueError, match=r"^clip_state_grad: expected None under a transform"):
        torch.func.jvp(lambda x: m(x, clip_state_grad=clip)[0], (x,), (x,))
    with pytest.raises(RuntimeError, match=r"^clip_state_grad: expected None where the gradients"):
        torch.autograd.grad(m(x, clip_state_grad=clip)[0].sum(), m.weight_hh_l0, create_graph=True)
    output = m(x, clip_state_grad=clip)[0]
    two = torch.ones(2, *output.shape)
    with pytest.raises(RuntimeError, match=r"^clip_state_grad: expected None with is_grads"):
        torch.autograd.grad(output, m.weight_hh_l0, two, is_grads_batched=True)
    noise = double(T, B, H).requires_grad_()
    with pytest.raises(RuntimeError, match=r"^clip_state_grad: expected None where noise"):
        m(x, noise=noise, clip_state_grad=clip)[0].sum().backward()


@pytest.mark.parametrize("given", [False, True], ids=["", "state"])
@pytest.mark.parametrize("reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_form
def test_rows_of_different_lengths(
    form: str,
    shape: dict[str, Any],
    masked: bool,
    reset: bool,
    given: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row is what it is alone; what is past its end is not read, and a row may be empty."""
    if masked:
        monkeypatch.setattr(leaky, "readable", lambda lengths: False)
    m = module(form, leak=torch.linspace(0.1, 1, H), **shape)
    D, lengths, there = 1 + m.bidirectional, (3, 6, 0, 1), [0, 1, 3]
    past = torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None]
    x = double(T, 4, I).masked_fill(past, torch.nan).requires_grad_()
    noises = [double(T, 4, D * H).masked_fill(past, torch.nan) for _ in range(m.num_layers)]
    h0 = double(m.num_layers * D, 4, H).requires_grad_()
    mask = torch.zeros(T, 4, dtype=torch.bool)
    mask[:, :2] = reset & MASK[:, :2]

    def laid_out(value: Tensor) -> Tensor:
        return value.transpose(0, 1) if m.batch_first else value

    options: dict[str, Any] = {"lengths": torch.tensor(lengths), "return_rates": True}
    options |= {"noise": [laid_out(noise) for noise in noises]}
    options |= {"reset": laid_out(mask) if reset else None, "state": h0 if given else None}
    if masked and reset and given and m.bidirectional:
        with pytest.raises(ValueError, match="reset: expected no state with lengths and bidirect"):
            m(laid_out(x), **options)
        return
    output, last, rates = m(laid_out(x), **options)
    output, rates = laid_out(output), laid_out(rates)
    assert (output.masked_select(past) == 0).all()
    assert (rates.masked_select(past) == 0).all()
    by_row = [torch.cat([v[:n, b] for b, n in enumerate(lengths)]) for v in (output, rates)]
    states, expected_rates, ends = written(
        m,
        [x[: lengths[b], b] for b in there],
        [[noise[: lengths[b], b] for b in there] for noise in noises],
        [mask[: lengths[b], b] for b in there],
        h0[:, there] if given else None,
    )
    first = h0
    if not given:
        names = [f"initial_l{k}{s}" for k in range(m.num_layers) for s in ("", "_reverse")[:D]]
        first = torch.stack([getattr(m, name) for name in names])[:, None].expand_as(h0)
    expected = [states, expected_rates, first.index_copy(1, torch.tensor(there), ends)]
    leaves = [x, h0, *m.parameters()]
    assert_close(gradients([*by_row, last], leaves), gradients(expected, leaves))


@each_form
def test_lengths_under_vmap_and_compiled(form: str) -> None:
    """Members with lengths of their own, and a graph that does not know them."""
    m = module(form, leak=0.3, num_layers=2, bidirectional=True)
    xs, sizes = double(3, T, B, I), torch.tensor([[1, 6, 0], [6, 6, 6], [0, 0, 2]])

    def loss(x: Tensor, lengths: Tensor) -> Tensor:
        output, last = m(x, lengths=lengths)
        return (output.sin() * output).sum() + (last.sin() * last).sum()

    found = torch.func.vmap(torch.func.grad(loss))(xs, sizes)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for x, lengths, bar in zip(xs, sizes, found, strict=True):
        x = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(x, lengths), x)
        (other,) = torch.autograd.grad(compiled(x, lengths), x)
        assert_close({"vmap": bar, "compiled": other}, {"vmap": expected, "compiled": expected})


@pytest.mark.parametrize("sizes", [(), (0, 0, 0)])
def test_no_rows_and_rows_of_no_steps(sizes: tuple[int, ...]) -> None:
    m, rows = module("rate", leak=0.3, num_layers=2), len(sizes)
    lengths = torch.tensor(sizes, dtype=torch.int64)
    output, last = m(double(T, rows, I), lengths=lengths)
    assert output.shape == (T, rows, H)
    assert (output == 0).all()
    first = torch.stack([m.initial_l0, m.initial_l1])[:, None].expand(-1, rows, -1)
    assert_exact({"": last}, {"": first})


@pytest.mark.parametrize("learned", [False, True])
@each_form
def test_the_leak_may_be_one_number(form: str, learned: bool) -> None:
    kinds: dict[str, Any] = {"form": form, "leak": 0.2, "dtype": torch.float64}
    m = LeakyRNN(I, H, learn_leak=learned, learn_initial=learned, **kinds)
    assert len(list(m.parameters())) == (5 if learned else 3)
    x = double(T, B, I).requires_grad_()
    output, last = m(x)
    none = [[torch.zeros(T, H).double()] * B]
    expected = written(m, list(x.unbind(1)), none, [torch.zeros(T).bool()] * B, None)
    leaves = [x, *m.parameters()]
    found = [output.transpose(0, 1).flatten(0, 1), last]
    assert_close(gradients(found, leaves), gradients([expected[0], expected[2]], leaves))


def test_a_window_cuts_gradients_alone() -> None:
    m = module("voltage", leak=0.3)
    x = double(T, B, I).requires_grad_()
    first = m(x[:4])
    second = m(x[4:], first[1].detach())
    expected = gradients([torch.cat([first[0], second[0]])], [x, *m.parameters()])
    assert_close(gradients([m(x, bptt_window=4)[0]], [x, *m.parameters()]), expected)


def test_noise_is_the_generators() -> None:
    m = LeakyRNN(I, H, dt=20, tau=100, noise_std=0.3, scale_noise=True, form="voltage")
    x = torch.randn(T, B, I)
    results = [m(x, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    x = torch.cat([x, x])  # the noise of a step does not depend on those after it
    assert torch.equal(m(x, generator=torch.Generator().manual_seed(1))[0][:T], results[0])


@pytest.mark.parametrize("shape", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@each_form
def test_noise_is_of_its_size(form: str, scaled: bool, shape: dict[str, Any]) -> None:
    """As if it had been given; with the gradient of the leak that scales it."""
    options: dict[str, Any] = {"form": form, "leak": 0.2, "learn_leak": True, **shape}
    m = LeakyRNN(I, H, noise_std=0.3, scale_noise=scaled, dtype=torch.float64, **options)
    x, D = double(T, B, I).requires_grad_(), 1 + m.bidirectional
    drawn = torch.Generator().manual_seed(1)
    noises = []
    for layer in range(m.num_layers):
        seed = int(torch.randint(2**63 - 1, (), generator=drawn))
        leak = m._of(layer, "leak")
        size = 0.3 * (2 / leak).sqrt() if scaled else 0.3
        noises.append(size * _ops.normal(torch.empty(T, B, D * H, dtype=torch.float64), D, seed))
    leaves = [x, *m.parameters()]
    values = m(x, return_rates=True, generator=torch.Generator().manual_seed(1))
    expected = m(x, return_rates=True, noise=noises)
    assert_close(gradients(values, leaves), gradients(expected, leaves))


@pytest.mark.parametrize("shape", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@each_form
def test_without_the_operator_of_a_layer(
    form: str, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA; with the leak inside, the plain recurrence is all that is called."""
    m = module(form, leak=0.2, noise_std=0.3, **shape)
    x = double(T, B, I).requires_grad_()
    leaves = [x, *m.parameters()]
    options: dict[str, Any] = {"reset": MASK, "bptt_window": 4, "return_rates": True}

    def run() -> Named:
        values = m(x, generator=torch.Generator().manual_seed(1), **options)
        return gradients(list(values), leaves)

    expected = run()
    monkeypatch.setattr(_ops, "has_layer", lambda x: False)
    if form == "inside":
        monkeypatch.setattr(_ops, "leaky_recurrence", None)
        monkeypatch.setattr(_ops, "leaky_linear", None)
    assert_close(run(), expected)


@each_form
def test_compiled_without_the_operator_of_a_layer(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ops, "has_layer", lambda x: False)
    torch._dynamo.reset()
    m = module(form, leak=0.2)
    x = double(T, B, I).requires_grad_()
    leaves = [x, *m.parameters()]
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    found, expected = (
        gradients(list(call(x, return_rates=True)), leaves) for call in (compiled, m)
    )
    assert_close(found, expected)


def test_gradients_of_gradients_see_the_same_noise() -> None:
    m = module("voltage", leak=0.2, noise_std=0.5)
    x = double(T, B, I).requires_grad_()
    leaves = [x, *m.parameters()]
    found = [
        torch.autograd.grad(
            m(x, generator=torch.Generator().manual_seed(1))[0].sin().sum(),
            leaves,
            create_graph=graph,
        )
        for graph in (False, True)
    ]
    plain, twice = ({str(i): bar.detach() for i, bar in enumerate(bars)} for bars in found)
    assert_close(plain, twice)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_sees_the_same_noise(use_reentrant: bool) -> None:
    m = module("rate", leak=0.2, noise_std=0.5, num_layers=2)
    x = double(T, B, I).requires_grad_()
    found = []
    for call in (m, lambda x: checkpoint(m, x, use_reentrant=use_reentrant)):
        torch.manual_seed(5)
        x.grad = None
        call(x)[0].square().sum().backward()
        found.append({"": x.grad})
    assert_exact(*found)


def test_checkpoint_with_another_generator_is_an_error() -> None:
    """Its numbers cannot be drawn a second time; other noise would give wrong gradients."""
    m = LeakyRNN(I, H, leak=0.2, noise_std=0.5)
    x, generator = torch.randn(T, B, I, requires_grad=True), torch.Generator().manual_seed(1)
    output, _ = checkpoint(m, x, generator=generator, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"generator: expected None where .* got one"):
        output.sum().backward()


def test_noise_in_16_bits() -> None:
    m = LeakyRNN(I, H, leak=0.2, noise_std=0.3, dtype=torch.bfloat16)
    output, _ = m(torch.zeros(T, B, I).bfloat16(), generator=torch.Generator().manual_seed(1))
    assert output.dtype == torch.bfloat16
    wide = LeakyRNN(I, H, leak=0.2, noise_std=0.3)
    wide.load_state_dict(m.state_dict())
    expected, _ = wide(torch.zeros(T, B, I), generator=torch.Generator().manual_seed(1))
    assert (output.float() - expected).abs().max() < 0.02


def test_dropout_is_between_layers_and_in_training() -> None:
    m = LeakyRNN(I, H, leak=0.2, num_layers=2, dropout=1.0)
    x = torch.randn(T, B, I)
    alone = LeakyRNN(H, H, leak=0.2)
    alone.load_state_dict({n[:-1] + "0": v for n, v in m.state_dict().items() if n[-1] == "1"})
    assert_exact({"": m(x)[0]}, {"": alone(torch.zeros(T, B, H))[0]})
    m.eval()
    below = LeakyRNN(I, H, leak=0.2)
    below.load_state_dict({n: v for n, v in m.state_dict().items() if n[-1] == "0"})
    assert_exact({"": m(x)[0]}, {"": alone(below(x)[0])[0]})
    assert_exact({"": LeakyRNN(I, H, leak=0.2, dropout=1.0)(x)[1] * 0}, {"": torch.zeros(1, B, H)})


@each_form
def test_autocast_computes_in_float32(form: str) -> None:
    m = LeakyRNN(I, H, leak=0.01, form=form, num_layers=2)
    x = torch.randn(T, B, I).requires_grad_()
    plain = m(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = torch.nn.functional.linear(x, torch.eye(I))
        assert low.dtype == torch.bfloat16
        cast, state, rates = m(low, torch.zeros(2, B, H).bfloat16(), return_rates=True)
    assert cast.dtype == state.dtype == rates.dtype == torch.float32
    assert_exact({"": cast}, {"": m(low.float())[0]})
    cast.sum().backward()
    assert x.grad is not None
    assert plain.dtype == torch.float32


@each_form
def test_autocast_leaves_the_backward_pass_alone(form: str) -> None:
    torch.manual_seed(0)
    m = LeakyRNN(I, H, leak=0.3, form=form, learn_leak=True, learn_initial=True)
    x, reset = torch.randn(T, B, I), torch.rand(T, B) < 0.3
    found = []
    for enabled in (False, True):
        loss = m(x, reset=reset)[0].square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients = torch.autograd.grad(loss, list(m.parameters()))
        found.append({n: g for (n, _), g in zip(m.named_parameters(), gradients, strict=True)})
    assert_exact(found[1], found[0])


@each_form
def test_transforms(form: str) -> None:
    """Per-sample gradients, and tangents, are those of the written loop."""
    m = module(form, leak=0.3, num_layers=2, bidirectional=True)
    parameters, x = dict(m.named_parameters()), double(3, T, B, I)
    none = [[torch.zeros(T, 2 * H).double()] * B] * 2
    masks = [torch.zeros(T).bool()] * B

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output, last = torch.func.functional_call(m, parameters, (x,))
        return (output.sin() * output).sum() + (last.sin() * last).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    leaves = list(parameters.values())
    for i, sample in enumerate(x):
        states, _, last = written(m, list(sample.unbind(1)), none, masks, None)
        value = (states.sin() * states).sum() + (last.sin() * last).sum()
        bars = torch.autograd.grad(value, leaves)
        expected = dict(zip(parameters, bars, strict=True))
        assert_close({n: v[i] for n, v in found.items()}, expected)

    def of_x(x: Tensor) -> Tensor:
        return written(m, list(x.unbind(1)), none, masks, None)[2]

    tangents = [torch.func.jvp(f, (x[0],), (x[1],))[1].detach() for f in (lambda x: m(x)[1], of_x)]
    assert_close({"": tangents[0]}, {"": tangents[1]})


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_noise_under_vmap(randomness: str) -> None:
    m = LeakyRNN(I, H, leak=0.2, noise_std=0.1)
    found = torch.func.vmap(lambda x: m(x)[0], randomness=randomness)(torch.zeros(2, T, B, I))
    assert torch.equal(found[0], found[1]) == (randomness == "same")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@each_form
def test_compiled(form: str, noise_std: float, dynamic: bool) -> None:
    torch.compiler.reset()
    m = module(form, leak=0.3, num_layers=2, bidirectional=True, noise_std=noise_std)
    x = double(T, B, I).requires_grad_()
    compiled = torch.compile(m, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = [run(x, reset=MASK, return_rates=True) for run in (m, compiled)]
    plain, other = (gradients(values, [x, *m.parameters()]) for values in found)
    if not noise_std:
        assert_close(other, plain)
    assert {n: v.shape for n, v in other.items()} == {n: v.shape for n, v in plain.items()}


def test_a_packed_sequence_stays_one() -> None:
    m = LeakyRNN(I, H, leak=0.2)
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor(LENGTHS), enforce_sorted=False)
    output, _, rates = m(packed, return_rates=True)
    for found in (output, rates):
        assert isinstance(found, PackedSequence)
        assert torch.equal(found.batch_sizes, packed.batch_sizes)
        assert torch.equal(found.unsorted_indices, packed.unsorted_indices)


def test_parametrizations_of_the_weights() -> None:
    m = LeakyRNN(I, H, leak=0.2, form="voltage", bidirectional=True)
    for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
        parametrize.register_parametrization(m, name, Dale(dale_signs(H)))
    m(torch.randn(T, B, I))[0].sum().backward()
    for own in m.parametrizations.values():
        assert own.original.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("form", {"leak": 0.1, "form": "a"}),
        ("leak", {}),
        ("leak", {"leak": 0.1, "dt": 1.0, "tau": 2.0}),
        ("leak", {"dt": 1.0}),
        ("leak", {"leak": torch.ones(3)}),
        ("leak", {"leak": 1.5}),
        ("leak", {"leak": 0.0, "scale_noise": True}),
        ("nonlinearity", {"leak": 0.1, "nonlinearity": "sine"}),
        ("noise_std", {"leak": 0.1, "noise_std": -1.0}),
        ("noise_std", {"leak": 0.1, "noise_std": float("nan")}),
        ("num_layers", {"leak": 0.1, "num_layers": 0}),
        ("dropout", {"leak": 0.1, "dropout": 1.5}),
    ],
)
def test_wrong_arguments_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}.*: expected .*got"):
        LeakyRNN(I, H, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("input", {"input": torch.zeros(T, B, 9)}),
        ("input", {"input": torch.zeros(T, B, 1, I)}),
        ("input", {"input": torch.zeros(T, B, I).double()}),
        ("bptt_window", {"bptt_window": -1}),
        ("state", {"state": torch.zeros(B, H)}),
        ("state", {"state": torch.zeros(1, B, H).double()}),
        ("state", {"state": torch.zeros(1, B, H).bfloat16()}),
        ("reset", {"reset": torch.zeros(T, B)}),
        ("reset", {"reset": torch.zeros(B, T).bool()}),
        ("lengths", {"lengths": torch.tensor([1, 2])}),
        ("lengths", {"lengths": torch.tensor([1.0, 2, 3])}),
        ("lengths", {"lengths": torch.tensor([1, 2, T + 1])}),
        ("lengths", {"lengths": torch.tensor([1]), "input": torch.zeros(T, I)}),
        ("noise", {"noise": torch.zeros(T - 1, B, H), "lengths": torch.tensor([1, 2, 3])}),
        ("noise", {"noise": torch.zeros(T, B, 9)}),
        ("noise", {"noise": torch.zeros(T, B, H).double()}),
        ("noise", {"noise": 3}),
        ("noise", {"noise": [0.1]}),
        ("noise", {"noise": "a"}),
        ("noise", {"noise": [torch.zeros(T, B, H)] * 2}),
    ],
)
def test_wrong_calls_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError), match=rf"^{name}: expected .*got"):
        LeakyRNN(I, H, leak=0.1)(**{"input": torch.zeros(T, B, I), **options})
