"""Every k-th state kept, a loss in parts, truncated BPTT: the same gradients in less memory."""

from __future__ import annotations

import pytest
import torch
from cases import Case, variants
from helpers import Named, assert_runs, cotangent, raised
from layers import Layer, arguments, only, solved
from taped import taped_rnn
from test_clip import LIMITS, clip_of
from tolerance import assert_close, assert_exact, assert_no_worse
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from fused_bptt import RNN, _ops, checkpointed_loss, truncated_bptt
from fused_bptt.parametrizations import InitialState

CPU = (torch.float32, torch.float64)


def leaves_of(case: Case, dtype: torch.dtype) -> tuple[RNN, Tensor, Tensor | None]:
    return case.module(RNN, dtype), *case.inputs(dtype)


def found(module: RNN, x: Tensor, hx: Tensor | None, both: bool = True, **options) -> Named:
    """Outputs, and the gradients of everything for a cotangent of h_n, and of the output too."""
    output, h_n = module(x, hx, **options)
    leaves = {"x": x, **dict(module.named_parameters())}
    if hx is not None:
        leaves["hx"] = hx
    ends = [output, h_n] if both else [h_n]
    bars = torch.autograd.grad(ends, list(leaves.values()), [cotangent(y, 3) for y in ends])
    named = dict(zip(leaves, bars, strict=True))
    return {"output": output.detach(), "h_n": h_n.detach()} | named


# Long enough for several chunks of the kernels; the first block is a short one.
CHECKPOINTED = (
    *variants(
        Case("checkpointed", T=403, B=7, I=3, H=20),
        num_layers=(1, 3),
        nonlinearity=("tanh", "relu"),
        bias=(True, False),
        hx=(True, False),
    ),
    Case("one-row", T=1300, B=1, I=2, H=9, num_layers=2),
    Case("many-rows", T=9, B=600, I=2, H=17),
    Case("batch-first", T=403, B=7, I=3, H=20, batch_first=True),
    Case("unbatched", T=1300, I=2, H=9, batched=False),
    Case("threads", T=90, B=67, I=40, H=150, num_layers=2),
)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", CPU, ids=str)
@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("case", CHECKPOINTED, ids=lambda case: case.name)
def test_every_kth_state_gives_the_bits_of_every_state(case, every, dtype):
    leaves = leaves_of(case, dtype)
    assert_exact(found(*leaves, checkpoint_every=every), found(*leaves))


@pytest.mark.parametrize("dtype", CPU, ids=str)
@pytest.mark.parametrize("share", [0.03, 0.5])
def test_every_kth_state_with_resets(share, dtype):
    leaves = leaves_of(Case("reset", T=403, B=7, I=3, H=20, num_layers=2), dtype)
    reset = torch.rand(403, 7) < share
    reset[403 - 73] = True  # where a block begins
    assert_exact(found(*leaves, checkpoint_every=73, reset=reset), found(*leaves, reset=reset))


def ends(output: Tensor | tuple[Tensor, ...], h_n: Tensor) -> list[Tensor]:
    return [*output, h_n] if isinstance(output, tuple) else [output, h_n]


def solved_with(module: RNN, x: Tensor, hx: Tensor, graph: bool = False, **options) -> Named:
    """All outputs, and the gradients of everything, of reset_state too where it needs one."""
    torch.manual_seed(7)
    values = ends(*module(x, hx, **options))
    leaves = {"x": x, "hx": hx, **dict(module.named_parameters())}
    if (state := options.get("reset_state")) is not None and state.requires_grad:
        leaves["reset_state"] = state
    cotangents = [cotangent(y, seed) for seed, y in enumerate(values)]
    bars = torch.autograd.grad(values, list(leaves.values()), cotangents, create_graph=graph)
    found = {f"value {index}": value.detach() for index, value in enumerate(values)}
    return found | dict(zip(leaves, bars, strict=True))


def cuts(reset: bool, state: bool, window: int) -> dict:
    generator = torch.Generator().manual_seed(8)
    options: dict = {"bptt_window": window}
    if reset:
        options["reset"] = torch.rand(403, 7, generator=generator) < 0.1
        options["reset"][403 - 146] = True  # where a block begins
    if state:
        values = torch.randn(2, 7, 20, dtype=torch.float64, generator=generator)
        options["reset_state"] = values
    return options


STACK = Case("stack", T=403, B=7, I=3, H=20, num_layers=2)
every_cut = pytest.mark.parametrize(
    ("reset", "state", "window"),
    [
        (True, True, 0),
        (False, False, 1),
        (False, False, 10),
        (False, False, 73),
        (False, False, 403),
        (True, False, 30),
        (True, True, 257),
    ],
)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", CPU, ids=str)
@pytest.mark.parametrize("every", [1, 200])
@every_cut
def test_every_kth_state_with_cuts_and_all_layers(reset, state, window, every, dtype):
    """The bits of the plain call, wherever the windows of the sequence lie in a block."""
    leaves = leaves_of(STACK, dtype)
    options = cuts(reset, state, window) | {"return_all_layers": True}
    if state:
        options["reset_state"] = options["reset_state"].to(dtype)
    found = solved_with(*leaves, checkpoint_every=every, **options)
    assert_exact(found, solved_with(*leaves, **options))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", CPU, ids=str)
@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("every", [1, 200])
@every_cut
def test_every_kth_state_with_a_clip(reset, state, window, every, kind, dtype):
    """The bits of the plain call; what a block hands on to the one before it is not clipped."""
    leaves = leaves_of(STACK, dtype)
    options = cuts(reset, state, window) | {"clip_state_grad": (kind, LIMITS[kind])}
    if state:
        options["reset_state"] = options["reset_state"].to(dtype)
    found = solved_with(*leaves, checkpoint_every=every, **options)
    assert_exact(found, solved_with(*leaves, **options))
    options["clip_state_grad"] = None
    assert (found["weight_hh_l0"] != solved_with(*leaves, **options)["weight_hh_l0"]).any()


@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_clip_with_lengths_and_a_learned_state(learned, kind):
    """Where there are no parts of a layer, or rows are masked; in a graph, once and not twice."""
    module, x, hx = leaves_of(STACK, torch.float64)
    options = cuts(True, True, 30) | {"clip_state_grad": (kind, LIMITS[kind])}
    options["reset_state"].requires_grad_(learned)
    options["lengths"] = torch.tensor([403, 0, 1, 100, 257, 256, 402])
    for graph in (False, True):
        one = solved_with(module, x, hx, graph, checkpoint_every=73, **options)
        assert_close(one, solved_with(module, x, hx, **options))
    with pytest.raises(RuntimeError, match="clip_state_grad: expected None where the gradients"):
        torch.autograd.grad(one["x"].square().sum(), x)


@every_cut
def test_cuts_without_a_cotangent_of_the_output(reset, state, window):
    """Where nothing comes from later steps, nothing goes on to earlier ones."""
    leaves = leaves_of(STACK, torch.float64)
    options = cuts(reset, state, window)
    if state:
        options["reset_state"].requires_grad_()
    one = found(*leaves, both=False, checkpoint_every=73, **options)
    assert_close(one, found(*leaves, both=False, **options))


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("window", [0, 30, 257])
def test_learned_state_after_a_reset(window, every):
    leaves = leaves_of(STACK, torch.float64)
    options = cuts(True, True, window) | {"return_all_layers": True}
    options["reset_state"].requires_grad_()
    one = solved_with(*leaves, checkpoint_every=every, **options)
    assert_exact(one, solved_with(*leaves, **options))


NOISE = ({"zoneout": 0.3}, {"recurrent_dropout": 0.3})
either_noise = pytest.mark.parametrize("noise", NOISE, ids=["zoneout", "recurrent_dropout"])


@either_noise
@every_cut
def test_masks_are_the_same_when_computed_again(reset, state, window, noise):
    """A graph of the gradients is torch's own; without it, each block is computed again."""
    _, x, hx = leaves_of(STACK, torch.float64)
    module = RNN(3, 20, 2, dropout=0.2, dtype=torch.float64, **noise)
    options = cuts(reset, state, window) | {"checkpoint_every": 73, "return_all_layers": True}
    if state:
        options["reset_state"].requires_grad_()
    one = solved_with(module, x, hx, **options)
    assert_close(one, solved_with(module, x, hx, True, **options))
    first, again, other = (
        module(x, hx, generator=torch.Generator().manual_seed(seed), **options)[0][0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@either_noise
def test_noise_is_the_gradient_of_what_was_computed(noise):
    case = Case("noise", T=9, B=3, I=2, H=5)
    _, x, hx = leaves_of(case, torch.float64)
    module = RNN(2, 5, 2, dtype=torch.float64, **noise)
    hx = hx.detach().expand(2, 3, 5).clone().requires_grad_()
    weights = list(module.parameters())

    def call(x: Tensor, hx: Tensor, *_: Tensor) -> Tensor:
        return module(x, hx, checkpoint_every=2, generator=torch.Generator().manual_seed(1))[0]

    assert torch.autograd.gradcheck(call, (x, hx, *weights), fast_mode=True)


def test_zoneout_of_every_step_is_its_own():
    module = RNN(1, 50, zoneout=0.3)
    x = torch.randn(100, 20, 1)
    output, _ = module(x, checkpoint_every=10)
    kept = (output[1:] == output[:-1]).detach().double()
    assert abs(float(kept.mean()) - 0.3) < 5 * (0.21 / kept.numel()) ** 0.5
    for dim in range(3):
        scatter = 0.21 / kept.size(dim)
        assert 0.8 < float(kept.mean(dim).var()) / scatter < 1.25
    plain, cut = (module.eval()(x, **given)[0] for given in ({}, {"checkpoint_every": 10}))
    torch.testing.assert_close(cut, plain)


def test_recurrent_dropout_is_one_for_all_blocks():
    """With W = 1, u = 0 and no phi, h_t / h_{t-1} is the mask."""
    module = RNN(1, 50, bias=False, nonlinearity="identity", recurrent_dropout=0.3)
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(50))
    ones = torch.ones(1, 20, 50)
    output, _ = module(torch.zeros(30, 20, 1), ones, checkpoint_every=7)
    mask = output[0].detach()
    assert set((0.7 * mask).round().unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(output.detach(), torch.stack([mask ** (t + 1) for t in range(30)]))


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_kth_state_with_lengths(nonlinearity, window, every):
    case = Case("lengths", T=403, B=7, I=3, H=20, num_layers=2, nonlinearity=nonlinearity)
    leaves = leaves_of(case, torch.float64)
    lengths = torch.tensor([403, 0, 1, 100, 257, 256, 402])
    options = cuts(True, True, window) | {"lengths": lengths}
    options["reset_state"].requires_grad_()
    for all_layers in (False, True):
        options["return_all_layers"] = all_layers
        one = solved_with(*leaves, checkpoint_every=every, **options)
        assert_close(one, solved_with(*leaves, **options))


def test_a_mask_of_resets_that_is_written_over_is_refused():
    rnn, x = RNN(3, 5), torch.randn(6, 2, 3)
    reset = torch.zeros(6, 2, dtype=torch.bool)
    output, _ = rnn(x, reset=reset, checkpoint_every=2)
    reset.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.3}, {"recurrent_dropout": 0.3}])
def test_a_backward_pass_under_autocast_computes_again_what_was(options, graph):
    rnn, x = RNN(3, 5, **options), torch.randn(6, 2, 3)
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        output, _ = rnn(x, checkpoint_every=2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            bars = torch.autograd.grad(output.sum(), [*rnn.parameters()], create_graph=graph)
        found.append({str(index): bar.detach() for index, bar in enumerate(bars)})
    assert_exact(*found)


def test_last_state_alone():
    leaves = leaves_of(CHECKPOINTED[8], torch.float64)
    assert_exact(found(*leaves, both=False, checkpoint_every=100), found(*leaves, both=False))


@pytest.mark.parametrize("T", [0, 1])
def test_hardly_any_steps(T):
    leaves = leaves_of(Case("short", T=T, num_layers=2), torch.float64)
    assert_exact(found(*leaves, checkpoint_every=5), found(*leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    case = Case("low", T=40, B=3, num_layers=2, gap=0.5)
    module, x, hx = leaves_of(case, dtype)
    wide = case.module(RNN, dtype).double()
    truth = found(wide, *(v.detach().double().requires_grad_() for v in (x, hx)))
    theirs = found(case.module(nn.RNN, dtype), x, hx)
    assert_no_worse(found(module, x, hx, checkpoint_every=7), theirs, truth)


def test_frozen_parameters_get_nothing_and_cost_nothing():
    module, x, hx = leaves_of(CHECKPOINTED[0], torch.float64)
    full = found(module, x, hx, checkpoint_every=100)
    module.weight_ih_l0.requires_grad_(False)
    module.bias_hh_l0.requires_grad_(False)
    output, h_n = module(x.detach(), hx, checkpoint_every=100)
    ends = [output, h_n]
    torch.autograd.backward(ends, [cotangent(y, 3) for y in ends])
    grads = {name: p.grad for name, p in module.named_parameters()}
    assert grads["weight_ih_l0"] is None
    assert grads["bias_hh_l0"] is None
    names = ("weight_hh_l0", "bias_ih_l0")
    assert_exact(only(grads, names), only(full, names))


def test_derivative_of_the_derivative():
    module, x, hx = leaves_of(Case("twice", T=200, B=3, num_layers=2), torch.float64)

    def second(**options) -> Named:
        output, h_n = module(x, hx, **options)
        first = torch.autograd.grad(
            output.square().sum() + h_n.sum(), [x, module.weight_hh_l0], create_graph=True
        )
        bars = torch.autograd.grad(sum(v.square().sum() for v in first), list(module.parameters()))
        return dict(zip(dict(module.named_parameters()), bars, strict=True))

    state = torch.randn(2, 3, module.hidden_size, dtype=torch.float64)
    reset = torch.rand(200, 3) < 0.1
    for options in ({}, {"bptt_window": 30}, {"reset": reset, "reset_state": state}):
        assert_close(second(checkpoint_every=1, **options), second(**options))
        if "reset_state" in options:
            state.requires_grad_()
            options["bptt_window"] = 30
            assert_close(second(checkpoint_every=70, **options), second(**options))


def test_transforms_go_through():
    module, x, hx = leaves_of(Case("func", T=6, B=3), torch.float64)
    call = lambda x: module(x, hx, checkpoint_every=2)[0]  # noqa: E731
    direction = cotangent(x, 5)
    plain = torch.func.jvp(lambda x: module(x, hx)[0], (x,), (direction,))
    assert_exact({"jvp": torch.func.jvp(call, (x,), (direction,))[1]}, {"jvp": plain[1]})


def test_dropout_is_the_same_when_computed_again():
    """The gradient is that of the function that was computed."""
    module, x, hx = leaves_of(Case("dropout", T=30, B=20, num_layers=3, dropout=0.4), torch.float64)

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return module(x, hx, checkpoint_every=1)[0]

    assert (call(x) != call(x.flip(0)).flip(0)).any()
    assert torch.autograd.gradcheck(call, (x,), fast_mode=True)
    torch.manual_seed(2)
    assert (module(x, hx, checkpoint_every=1)[0] != call(x)).any()
    module.dropout = 1.0  # nothing but biases goes up
    bars = torch.autograd.grad(call(x).sum(), [x, module.weight_hh_l2])
    assert bars[0].abs().max() == 0
    assert bars[1].abs().max() > 0


def test_parts_of_the_operator_add_up_to_the_whole():
    whole = Layer(200, 8, 5, 33)
    expected = solved(whole, _ops.TANH)
    bars = [torch.zeros_like(expected[n]) for n in ("weight_ih_bar", "weight_hh_bar", "bias_bar")]
    chunk = _ops.chunk_steps(8)
    assert chunk == 64
    g_last, x_bars = whole.g_last, []
    for end in range(200, 0, -chunk):
        part = slice(max(0, end - chunk), end)
        h0 = expected["h"][part.start - 1].unsqueeze(0) if part.start else whole.h0
        x_bars.insert(0, torch.empty_like(whole.x[part]))
        g_last = _ops.layer_backward_(
            *(whole.g[part], g_last, expected["h"][part], whole.x[part]),
            *(whole.weight_ih, whole.weight_hh, h0, None, 0, _ops.TANH, x_bars[0], *bars),
        )
    found = dict(zip(("weight_ih_bar", "weight_hh_bar", "bias_bar"), bars, strict=True))
    found |= {"x_bar": torch.cat(x_bars), "h0_bar": g_last}
    assert_exact(found, only(expected, found))


def test_operator_refuses_sums_that_do_not_fit():
    p = Layer(3, 2, 4, 5)
    h = _ops.layer(*arguments(p, _ops.TANH))[0]
    walk = (p.g, None, h, p.x, p.weight_ih, p.weight_hh, p.h0, None, 0, _ops.TANH)
    names = ("x_bar", "weight_ih_bar", "weight_hh_bar", "bias_bar")
    for name, bar, words in (
        ("x_bar", p.x.new_zeros(3, 2, 5), "x_bar: expected shape that of x"),
        ("weight_ih_bar", p.x.new_zeros(5, 5), r"weight_ih_bar: expected shape \[G \* H, I\]"),
        ("weight_ih_bar", p.x.new_zeros(4, 5).t(), "weight_ih_bar: expected to be contiguous"),
        ("weight_hh_bar", p.x.new_zeros(5), "weight_hh_bar: expected shape that of weight_hh"),
        ("bias_bar", torch.zeros(5), "bias_bar: expected dtype Double"),
    ):
        with pytest.raises(RuntimeError, match=words):
            _ops.layer_backward_(*walk, *(bar if name == other else None for other in names))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every: expected a number of steps >= 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        RNN(2, 3)(torch.zeros(4, 1, 2), **change)


def test_kinds_that_cannot_be_cut_are_refused():
    x = torch.zeros(4, 1, 2)
    with pytest.raises(ValueError, match="expected one direction, got bidirectional=True"):
        RNN(2, 3, bidirectional=True)(x, checkpoint_every=2)
    with pytest.raises(ValueError, match="expected a padded sequence, got a PackedSequence"):
        RNN(2, 3)(pack_sequence([x[:, 0]]), checkpoint_every=2)


# ------------------------------------------------------------------------------ a loss in parts


def regression(T: int = 50, dtype: torch.dtype = torch.float64, **options):
    """A module, a readout, an input, and the loss of some steps."""
    rnn = RNN(3, 8, dtype=dtype, **options)
    readout = nn.Linear(8, 2, dtype=dtype)
    x = torch.randn(T, 4, 3, dtype=dtype)
    y = torch.randn(T, 4, 2, dtype=dtype)
    dim = 1 if rnn.batch_first else 0
    if dim:
        x, y = x.transpose(0, 1), y.transpose(0, 1)

    def loss(output: Tensor, steps: slice) -> Tensor:
        target = y.narrow(dim, steps.start, steps.stop - steps.start)
        return (readout(output) - target).square().sum()

    return rnn, readout, x, loss


def gradients(*modules: nn.Module) -> Named:
    return {
        f"{index} {name}": p.grad.clone()
        for index, module in enumerate(modules)
        for name, p in module.named_parameters()
    }


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("every", [1, 7, 50, 99])
def test_loss_in_parts_has_the_gradients_of_the_whole(every, batch_first):
    rnn, readout, x, loss = regression(num_layers=2, batch_first=batch_first)
    x.requires_grad_()
    state = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for parts in (True, False):
        for leaf in (x, state, *rnn.parameters(), *readout.parameters()):
            leaf.grad = None
        if parts:
            total, last = checkpointed_loss(rnn, x, loss, every=every, state=state)
        else:
            output, last = rnn(x, state)
            total = loss(output, slice(0, 50))
        (2 * total + last.square().sum()).backward()
        results.append(
            gradients(rnn, readout)
            | {"x": x.grad, "state": state.grad, "total": total.detach(), "last": last.detach()}
        )
    assert_close(*results)


def test_parts_without_a_loss():
    """A loss at the end alone still goes back through everything."""
    rnn, readout, x, _ = regression()
    output, _ = rnn(x)
    readout(output[-1]).sum().backward()
    expected = gradients(rnn, readout)
    rnn.zero_grad()
    readout.zero_grad()

    def at_the_end(output: Tensor, steps: slice) -> Tensor | None:
        return readout(output[-1]).sum() if steps.stop == 50 else None

    checkpointed_loss(rnn, x, at_the_end, every=8)[0].backward()
    assert_close(gradients(rnn, readout), expected)


def test_random_numbers_are_the_same_when_a_part_is_computed_again():
    rnn, _, x, loss = regression(num_layers=2, dropout=0.5)
    drop = nn.Dropout(0.5)
    seen: dict[slice, list[Tensor]] = {}

    def noisy(output: Tensor, steps: slice) -> Tensor:
        output = drop(output)
        seen.setdefault(str(steps), []).append(output.detach())
        return loss(output, steps)

    before = torch.get_rng_state()
    total, _ = checkpointed_loss(rnn, x, noisy, every=25)
    torch.rand(3)  # what happens in between does not matter
    total.backward()
    first, second = (outputs[0] != 0 for outputs in seen.values())
    assert (first != second).any()  # each part has its own
    for first, second in seen.values():
        assert_exact({"output": second}, {"output": first})
    assert (torch.get_rng_state() != before).any()


def test_autocast_is_the_same_when_a_part_is_computed_again():
    rnn, _, x, _ = regression(dtype=torch.float32)
    seen = []

    def loss(output: Tensor, steps: slice) -> Tensor:
        seen.append(output.dtype)
        return output.float().sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = checkpointed_loss(rnn, x, loss, every=25)
    total.backward()
    assert seen == [torch.bfloat16] * 4


# ------------------------------------------------------------------------------- truncated BPTT


def test_truncated_bptt_is_the_loop_written_out():
    """Each window begins with the state of the one before, and not with its graph."""
    rnn, readout, x, loss = regression(num_layers=2)
    parameters = [*rnn.parameters(), *readout.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    start = [p.detach().clone() for p in parameters]
    losses, state = [], None
    for begin in range(0, 50, 20):
        steps = slice(begin, min(50, begin + 20))
        output, state = rnn(x[steps], state if state is None else state.detach())
        value = loss(output, steps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    expected = {f"{i}": p.detach().clone() for i, p in enumerate([*parameters, *losses, state])}
    for checkpoint_every in (None, 6):
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        windows = []
        for window in truncated_bptt(
            rnn, x, loss, optimizer, window=20, checkpoint_every=checkpoint_every
        ):
            optimizer.step()
            windows.append(window)
        assert [w.steps for w in windows] == [slice(0, 20), slice(20, 40), slice(40, 50)]
        after = [*parameters, *(w.loss for w in windows), windows[-1].state]
        assert_close({f"{i}": p.detach() for i, p in enumerate(after)}, expected)


def test_no_gradient_of_before_or_left_behind():
    """The usual error: a gradient of the window before, or of what was there before the loop."""
    rnn, readout, x, loss = regression()
    optimizer = torch.optim.SGD([*rnn.parameters(), *readout.parameters()], lr=0.0)
    loss(rnn(x)[0], slice(0, 50)).backward()  # stale
    state = torch.zeros(1, 4, 8, dtype=torch.float64, requires_grad=True)
    hx = None
    for window in truncated_bptt(rnn, x, loss, optimizer, window=25, state=2 * state):
        found = gradients(rnn, readout)
        rnn.zero_grad()
        readout.zero_grad()
        output, _ = rnn(x[window.steps], hx)
        loss(output, window.steps).backward()
        assert_close(found, gradients(rnn, readout))
        hx = window.state
        assert not hx.requires_grad
    assert state.grad is None
    assert all(p.grad is None for p in [*rnn.parameters(), *readout.parameters()])
    for _ in truncated_bptt(rnn, x, loss, optimizer, window=25):
        break
    assert all(p.grad is None for p in [*rnn.parameters(), *readout.parameters()])


def test_stream_of_windows_without_end():
    rnn, _, _, _ = regression()
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-3)

    def stream():
        while True:
            yield torch.randn(5, 4, 3, dtype=torch.float64)
            yield torch.randn(9, 4, 3, dtype=torch.float64)

    def loss(output: Tensor, steps: slice) -> Tensor | None:
        return None if steps.start == 5 else output.sum()

    windows = truncated_bptt(rnn, stream(), loss, optimizer)
    first, second, third = next(windows), next(windows), next(windows)
    assert (first.steps, second.steps, third.steps) == (slice(0, 5), slice(5, 14), slice(14, 19))
    assert second.loss is None
    assert first.loss is not None
    windows.close()


STATE_OPTIONS = pytest.mark.parametrize("kind", [None, "norm", "value"])


def state_options(kind: str | None, dim: int = 0) -> dict:
    """Resets, at the beginning of parts too, a state that is learned, and a clip."""
    reset = torch.rand(50, 4, generator=torch.Generator().manual_seed(4)) < 0.15
    reset[20, 1] = reset[7, 2] = reset[0, 3] = True
    learned = InitialState(2, 8).double()
    nn.init.normal_(learned.state)
    clip = None if kind is None else (kind, LIMITS[kind])
    given = {"reset": reset.transpose(0, dim), "clip_state_grad": clip}
    return {"reset_state": learned(4), **given}


def by_the_loop(rnn: RNN, x: Tensor, hx: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    """The module's results, by a loop on autograd's tape; in the module's order of dimensions."""
    dim = 1 if rnn.batch_first else 0
    given = {name: options[name] for name in ("reset", "reset_state")}
    given["reset"] = given["reset"].transpose(0, dim)
    if options["clip_state_grad"] is not None:
        given["hook"] = clip_of(*options["clip_state_grad"])
    weights = list(rnn.parameters())
    output, h_n = taped_rnn(x.transpose(0, dim), hx, weights, num_layers=2, **given)
    return output.transpose(0, dim), h_n


@STATE_OPTIONS
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("every", [1, 7, 50])
def test_options_of_the_module_in_a_loss_in_parts(every, batch_first, kind):
    rnn, readout, x, loss = regression(num_layers=2, batch_first=batch_first)
    x.requires_grad_()
    state = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    options = state_options(kind, int(batch_first))
    options["reset_state"] = 2 * options["reset_state"]  # a graph that is gone through once
    leaves = {"x": x, "state": state, "other": options["reset_state"]}
    leaves |= dict(rnn.named_parameters()) | dict(readout.named_parameters(prefix="readout"))
    for leaf in (x, state, options["reset_state"]):
        leaf.retain_grad()
    results = []
    for parts in (True, False):
        for leaf in leaves.values():
            leaf.grad = None
        if parts:
            total, last = checkpointed_loss(rnn, x, loss, every=every, state=state, **options)
        else:
            output, last = by_the_loop(rnn, x, state, options)
            total = loss(output, slice(0, 50))
        (2 * total + last.square().sum()).backward(retain_graph=True)
        found = {name: leaf.grad for name, leaf in leaves.items()}
        results.append(found | {"total": total.detach(), "last": last.detach()})
    assert_close(*results)


@STATE_OPTIONS
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("iterator", [False, True])
@pytest.mark.parametrize("checkpoint_every", [None, 6])
def test_options_of_the_module_in_a_stream(checkpoint_every, iterator, batch_first, kind):
    rnn, readout, x, loss = regression(num_layers=2, batch_first=batch_first)
    dim = int(batch_first)
    options = state_options(kind, dim)
    learned = options["reset_state"]._base  # type: ignore[attr-defined]
    parameters = [*rnn.parameters(), *readout.parameters(), learned]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    resets = options["reset"].split(20, dim)
    stream: dict = {"stream": x, "window": 20, **options}
    if iterator:
        pairs = zip(x.split(20, dim), resets, strict=True)
        stream = {"stream": pairs, **options, "reset": None}
    hx, count = torch.zeros(2, 4, 8, dtype=torch.float64), 0
    for window in truncated_bptt(
        rnn, loss=loss, optimizer=optimizer, checkpoint_every=checkpoint_every, **stream
    ):
        found = {f"{i}": p.grad.clone() for i, p in enumerate(parameters)}
        optimizer.zero_grad()
        of_window = options | {"reset": resets[count]}
        output, last = by_the_loop(rnn, x.split(20, dim)[count], hx, of_window)
        value = loss(output, window.steps)
        value.backward()
        expected = {f"{i}": p.grad.clone() for i, p in enumerate(parameters)}
        expected |= {"loss": value.detach(), "state": last.detach()}
        assert_close(found | {"loss": window.loss, "state": window.state}, expected)
        hx, count = window.state, count + 1
    assert count == 3


def test_progress_bar(capsys):
    rnn, _, x, _ = regression()
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-3)
    bar = truncated_bptt(rnn, x, lambda h, _: h.sum(), optimizer, window=10, progress=True)
    assert len(list(bar)) == 5
    assert "windows" in capsys.readouterr().out


def test_arguments_of_streams_that_do_not_fit():
    rnn, _, x, loss = regression()
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-3)
    both = RNN(3, 8, bidirectional=True, dtype=torch.float64)
    wrong = lambda output, steps: output  # noqa: E731
    reset = torch.zeros(50, 4, dtype=torch.bool)
    for call, words in (
        (
            lambda: checkpointed_loss(rnn, x, loss, every=0),
            "every: expected a number of steps >=",
        ),
        (lambda: checkpointed_loss(both, x, loss, every=1), "rnn: expected a module in one direct"),
        (lambda: checkpointed_loss(rnn, x, wrong, every=25), "loss: expected a scalar tensor or N"),
        (lambda: truncated_bptt(rnn, x, loss, optimizer), "window: expected a number of steps for"),
        (lambda: truncated_bptt(rnn, x, loss, optimizer, window=0), "window: expected a number of"),
        (lambda: truncated_bptt(rnn, [x], loss, optimizer, window=2), "window: expected None for"),
        (lambda: truncated_bptt(both, x, loss, optimizer, window=2), "rnn: expected a module in o"),
        (
            lambda: truncated_bptt(rnn, [x], loss, optimizer, reset=reset),
            "reset: expected None for an iterable of windows",
        ),
        (
            lambda: next(truncated_bptt(rnn, [(x,)], loss, optimizer)),
            "stream: expected tensors or pairs of tensors (window, reset), got 1 items",
        ),
        (
            lambda: next(truncated_bptt(rnn, [[x, reset]], loss, optimizer)),
            "stream: expected tensors or pairs of tensors (window, reset), got list",
        ),
        (
            lambda: truncated_bptt(rnn, x, loss, optimizer, window=2, reset=reset[1:]),
            "reset: expected shape [50, 4], one for each step of input, got [49, 4]",
        ),
        (
            lambda: checkpointed_loss(rnn, x, loss, every=9, reset=reset.int()),
            "reset: expected dtype torch.bool, got torch.int32",
        ),
        (
            lambda: checkpointed_loss(rnn, x, loss, every=9, reset_state=x[:1]),
            "reset_state: expected with reset, got it alone",
        ),
        (
            lambda: checkpointed_loss(rnn, x, loss, every=9, clip_state_grad=("norm", 0.0)),
            "clip_state_grad: expected a finite limit above 0, got 0.0",
        ),
        (
            lambda: truncated_bptt(rnn, x, loss, optimizer, window=2, checkpoint_every=-1),
            "checkpoint_every: expected a number of steps >= 1, got -1",
        ),
    ):
        kind, message = raised(call)
        assert kind is ValueError
        assert message.startswith(words)


# --------------------------------------------------------------------------------------- memory

MEMORY = """
import torch
from torch import nn
from fused_bptt import RNN, checkpointed_loss, truncated_bptt

T, B, H = 24_000, 8, 256  # an output of 188 MiB
torch.set_num_threads(1)
rnn, readout = RNN(2, H, num_layers=2), nn.Linear(H, 1)
optimizer = torch.optim.SGD([*rnn.parameters(), *readout.parameters()], lr=1e-3)
x = torch.randn(T, B, 2)

def status(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if field in line)

def loss(output, steps):
    return readout(output).square().mean()

def train(x):
    if WAY == "parts":
        checkpointed_loss(rnn, x, loss, every=256)[0].backward()
    elif WAY == "truncated":
        for _ in truncated_bptt(rnn, x, loss, optimizer, window=256):
            optimizer.step()
    elif WAY == "every-kth":
        rnn(x, checkpoint_every=256)[1].sum().backward()
    else:
        rnn(x)[1].sum().backward()

train(x[:600])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
train(x)
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("way", "least", "most"),
    [("parts", 0, 60), ("truncated", 0, 60), ("every-kth", 180, 260), ("plain", 370, 1000)],
)
def test_memory_is_bounded(way, least, most):
    """Of two outputs of 188 MiB, one for each layer, what a way keeps."""
    used = float(assert_runs(f"WAY = {way!r}\n" + MEMORY, timeout=120))
    assert least <= used <= most, f"{used:.0f} MiB"
