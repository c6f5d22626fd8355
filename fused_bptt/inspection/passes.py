"""What a pass through a network leaves to be read, and ‖∂L/∂z_t‖ of every layer from it."""

from __future__ import annotations

import traceback
import weakref
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _ops
from .._lengths import Ragged
from ..functional import _NONLINEARITIES
from ..functional import rnn as run


class Given(NamedTuple):
    """What a module was called with, sequences [T, B, ...] or packed rows, states [S, B, H]."""

    #: None, as ``hx`` and ``reset_state``, if no lower layer is to be computed again.
    x: Tensor | None = None
    hx: Tensor | None = None
    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    reset_state: Tensor | None = None


class Pass(NamedTuple):
    """A pass: what was given, what came of it, and the gradients of that."""

    #: Of every layer; or of the last alone, and then the others are computed again if x is known.
    outputs: list[Tensor]
    gradients: list[Tensor | None]
    h_n_gradient: Tensor | None
    given: Given
    window: int
    #: Every parameter; or, where one layer is read, W_hh of each of its directions.
    weights: list[Tensor]


class Layer(NamedTuple):
    """Of a layer, h and q [T, B, D, H] or [N, D, H], how they are packed, and each W_hh."""

    number: int
    h: Tensor
    q: Tensor
    batch_sizes: Tensor | None
    weights: list[Tensor]


def nonlinearity_of(rnn: nn.RNNBase) -> str:
    """``"tanh"``, ``"relu"`` and so on."""
    return rnn.mode.removeprefix("RNN_").lower()


def tap(
    key: int,
    due: bool,
    rnn: nn.RNNBase,
    x: Any,
    hx: Tensor | None,
    output: Any,
    h_n: Tensor,
    *,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    bptt_window: int = 0,
    lengths: Tensor | None = None,
    return_all_layers: bool = False,
    state_batch_first: bool = False,
) -> tuple[Any, Tensor]:
    """Gives ``output`` and ``h_n`` on; in the backward pass the reader sees their gradients.

    Args:
        key: of the reader.
        due: whether it reads; else an operator is asked in the backward pass.
        rnn: what was called.
        x, hx, reset, reset_state, bptt_window, lengths, return_all_layers, state_batch_first: with
            what.
        output, h_n: what it returns.
    """
    # A compiled step pays for every tensor that is kept for a reading, so where the last layer
    # alone is read, that is no more than its W_hh. Which lower states were dropped is not known.
    whole = rnn.num_layers > 1 and not (rnn.dropout > 0 and rnn.training)
    names = rnn._flat_weights_names
    if not whole:
        last = f"weight_hh_l{rnn.num_layers - 1}"
        names = [last, f"{last}_reverse"] if rnn.bidirectional else [last]
    outputs = list(output) if return_all_layers else [output]
    untouched = [] if whole else outputs[:-1]
    outputs = outputs[len(untouched) :]

    packed = isinstance(x, PackedSequence)
    again = whole and not return_all_layers
    given = (
        (x.data if packed else x) if again else None,
        hx if again else None,
        x.batch_sizes if packed else None,
        x.sorted_indices if packed else None,
        lengths,
        reset,
        reset_state if again else None,
    )
    behind = put_behind
    if not due:
        from .compiled import put_behind as behind
    *results, h_n = behind(
        key,
        due,
        bptt_window,
        rnn.batch_first and not packed,
        state_batch_first,
        [each.data for each in outputs] if packed else outputs,
        h_n,
        given,
        [getattr(rnn, name) for name in names],
    )
    if packed:
        results = [old._replace(data=new) for old, new in zip(outputs, results, strict=True)]
    return (*untouched, *results) if return_all_layers else results[0], h_n


def put_behind(
    key: int,
    due: bool,
    window: int,
    turned: bool,
    states_turned: bool,
    outputs: list[Tensor],
    h_n: Tensor,
    given: tuple[Tensor | None, ...],
    weights: list[Tensor],
) -> tuple[Tensor, ...]:
    """:func:`tap` with the tensors alone, of packed sequences their data: what a graph holds.

    Dynamo guards every step by all that it reads, and of this it reads nothing.

    Args:
        key, due, window: as :func:`tap`'s.
        turned, states_turned: whether the batch comes first in sequences, in states.
        outputs, h_n: what the reader sees the gradients of.
        given: in the order of :class:`Given`.
        weights: as in :class:`Pass`.
    """
    batched = h_n.dim() == 3
    sequence, state = _Layout(batched, turned), _Layout(batched, states_turned)
    of = Given(*given)
    of = of._replace(
        x=sequence.inner(of.x),
        hx=state.inner(of.hx),
        reset=sequence.inner(of.reset),
        reset_state=state.inner(of.reset_state),
    )
    *results, h_n = _Tap.apply(  # type: ignore[no-untyped-call]
        key,
        due,
        len(outputs),
        window,
        *[sequence.inner(each) for each in outputs],
        state.inner(h_n),
        *[None if each is None else each.detach() for each in (*of, *weights)],
    )
    return *[sequence.outer(each) for each in results], state.outer(h_n)


class _Layout(NamedTuple):
    """Between the layout of a call and that of the operators, [T, B, ...] or [S, B, H]."""

    batched: bool
    #: The batch comes first in the call.
    turned: bool

    def inner(self, values: Any) -> Any:
        """As the operators have it."""
        if values is None or (self.batched and not self.turned):
            return values
        return values.transpose(0, 1) if self.batched else values.unsqueeze(1)

    def outer(self, values: Tensor) -> Tensor:
        """As the call has it."""
        if not self.batched:
            return values.squeeze(1)
        return values.transpose(0, 1) if self.turned else values


class _Tap(torch.autograd.Function):
    """The identity of its first ``count`` + 1 tensors."""

    @staticmethod
    def forward(
        key: int, due: bool, count: int, window: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(each.view_as(each) for each in tensors[: count + 1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], result: tuple[Tensor, ...]) -> None:
        ctx.key, ctx.due, ctx.count, ctx.window, *tensors = inputs
        del tensors[ctx.count]  # h_n
        ctx.kept = None
        if ctx.due:
            # torch.utils.checkpoint compares how many tensors are saved when a pass is computed
            # again, and then it need not be due.
            ctx.kept = [None if each is None else each.detach() for each in tensors]
        else:
            ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        kept: list[Any] = list(ctx.saved_tensors if ctx.kept is None else ctx.kept)
        *lower_gradients, g, g_n = gradients
        *lower, h = kept[: ctx.count]
        *others, weight = kept[ctx.count :]
        rest = [*lower_gradients, *lower, g_n, *others]
        more = rest, ctx.count, ctx.window
        if ctx.due:
            _read(ctx.key, g, h, weight, *more)
        elif g is None or ctx.window or any(each is not None for each in rest):
            _ops.observe_more(ctx.key, g, h, weight, *more)
        else:
            _ops.observe(ctx.key, g, h, weight)
        return (None, None, None, None, *gradients, *[None] * (len(kept) - ctx.count))


class Reader(Protocol):
    """Who reads passes."""

    def read(self, done: Pass) -> None:
        """Reads one, in a backward pass."""


#: A compiled graph knows its reader by a number.
readers: weakref.WeakValueDictionary[int, Reader] = weakref.WeakValueDictionary()


def _read(
    key: int,
    g: Tensor | None,
    h: Tensor,
    weight: Tensor,
    rest: list[Tensor | None] | None = None,
    outputs: int = 1,
    window: int = 0,
) -> None:
    """Has a reader read what :class:`_Tap` kept."""
    reader = readers.get(key)
    if reader is None:
        return
    states: list[Any] = list(rest or [None, *Given()])
    below, start = outputs - 1, 2 * (outputs - 1)
    end = start + 1 + len(Given._fields)
    done = Pass(
        [*states[below:start], h],
        [*states[:below], g],
        states[start],
        Given(*states[start + 1 : end]),
        window,
        [*states[end:], weight],
    )
    with torch.no_grad():
        reader.read(done)


def _read_for_a_graph(*arguments: Any) -> None:
    """:func:`_read`; the library that calls it can raise an error, and not this one."""
    try:
        _read(*arguments)
    except Exception:
        traceback.print_exc()
        raise


_ops.define_read(_read_for_a_graph)


def layers(rnn: nn.RNNBase, done: Pass) -> list[Layer]:
    """The layers of a pass that can be read, the lowest first."""
    directions = 2 if rnn.bidirectional else 1
    nonlinearity = nonlinearity_of(rnn)
    outputs, gradients, h_n_gradient, given, window, weights = _packed(done)
    dtype = outputs[-1].dtype
    weights = [weight.to(dtype) for weight in weights]
    per_direction = 4 if rnn.bias else 2
    per_layer = per_direction * directions
    of_layer = [weights[at : at + per_layer] for at in range(0, len(weights), per_layer)]
    recurrent = [each[1::per_direction] for each in of_layer]
    if len(weights) == directions:
        of_layer, recurrent = [], [weights]
    if given.x is not None:
        below = _layers_below(rnn, nonlinearity, given, window, of_layer, dtype)
        outputs, gradients = [*below, *outputs], [*[None] * len(below), *gradients]

    found: list[Layer] = []
    carried: Tensor | None = None
    for h, direct in zip(reversed(outputs), reversed(gradients), strict=True):
        number = rnn.num_layers - 1 - len(found)
        W_hh = recurrent[-1 - len(found)]
        if carried is None or direct is None:
            g = direct if carried is None else carried
        else:
            g = carried + direct
        states = slice(number * directions, (number + 1) * directions)
        h = h.unflatten(-1, (directions, rnn.hidden_size))  # type: ignore[no-untyped-call]
        q, _ = _ops.linear_recurrence(
            h,
            None if g is None else g.contiguous().view(h.shape).to(dtype),
            torch.stack(W_hh),
            None if h_n_gradient is None else h_n_gradient[states].to(dtype),
            given.batch_sizes,
            directions - 1,
            _NONLINEARITIES[nonlinearity],
            True,
            given.reset,
            None,
            window,
        )
        found.append(Layer(number, h, q, given.batch_sizes, W_hh))
        if len(found) < len(outputs):
            carried = q.flatten(-2) @ torch.cat(of_layer[number][0::per_direction])
    return found[::-1]


def _layers_below(
    rnn: nn.RNNBase,
    nonlinearity: str,
    given: Given,
    window: int,
    weights: list[list[Tensor]],
    dtype: torch.dtype,
) -> list[Tensor]:
    """The outputs of all layers but the last, computed again."""
    directions = 2 if rnn.bidirectional else 1
    assert given.x is not None
    data: Any = given.x.to(dtype)
    if given.batch_sizes is not None:
        data = PackedSequence(data, given.batch_sizes)
    count = (rnn.num_layers - 1) * directions

    def below(states: Tensor | None) -> Tensor | None:
        return None if states is None else states[:count].to(dtype)

    outputs, _ = run(
        data,
        below(given.hx),
        [weight for each in weights[:-1] for weight in each],
        nonlinearity=nonlinearity,
        bias=rnn.bias,
        num_layers=rnn.num_layers - 1,
        bidirectional=rnn.bidirectional,
        reset=given.reset,
        reset_state=below(given.reset_state),
        bptt_window=window,
        return_all_layers=True,
    )
    return [each.data if isinstance(each, PackedSequence) else each for each in outputs]


def _packed(done: Pass) -> Pass:
    """Rows of different lengths as packed rows, and states in the order of packed rows."""
    given = done.given
    if given.lengths is None:
        ragged, sizes, order = None, given.batch_sizes, given.sorted_indices
    else:
        ragged = Ragged(given.lengths, done.outputs[-1].size(0))
        sizes, order = ragged.batch_sizes, ragged.order

    def sequence(values: Any) -> Any:
        return values if values is None or ragged is None else ragged.pack(values)

    def state(values: Any) -> Any:
        return values if values is None or order is None else values.index_select(1, order)

    return Pass(
        [sequence(each) for each in done.outputs],
        [sequence(each) for each in done.gradients],
        state(done.h_n_gradient),
        Given(
            x=sequence(given.x),
            hx=state(given.hx),
            batch_sizes=sizes,
            reset=sequence(given.reset),
            reset_state=state(given.reset_state),
        ),
        done.window,
        done.weights,
    )
