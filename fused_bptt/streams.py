"""Long sequences: training in bounded memory, by recomputation or by truncation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .functional import _check_reset

Item = TypeVar("Item")

#: From the output of some steps, shaped as the module's output, and which steps they are, to the
#: sum of their losses: a scalar; or None where these steps have none.
ChunkLoss = Callable[[Tensor, slice], Tensor | None]

#: A window of a stream, or one with its resets.
StreamItem = Tensor | tuple[Tensor, Tensor]

#: ``clip_state_grad`` of :func:`fused_bptt.rnn`.
ClipStateGrad = tuple[str, float] | None


def checkpointed_loss(
    rnn: nn.Module,
    input: Tensor,
    loss: ChunkLoss,
    *,
    every: int,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    clip_state_grad: ClipStateGrad = None,
) -> tuple[Tensor, Tensor]:
    """The loss of a sequence whose output is never there as a whole; full BPTT goes through it.

    The sequence is taken ``every`` = k steps at a time: the module's output of these steps, their
    loss, and the state for the next k. Of all that only the states are kept; the backward pass
    computes k steps at a time again (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
    2016). Memory is O(T/k + k) beside the input, time one forward pass more. The gradients are
    those of the sum of the losses over the whole sequence.

    Args:
        rnn: a module that is called as ``rnn(input, state)`` and returns output and state, as
            :class:`fused_bptt.RNN` does, in one direction.
        input: [T, B, I]; [B, T, I] if ``rnn.batch_first``; [T, I] unbatched.
        loss: ``loss(output, steps)``, the sum of the losses of the steps ``steps``, a slice of
            time; None where they have none. It is called twice for each part, the second time in
            the backward pass, with the same random numbers.
        every: k, steps between two states that are kept.
        state: the initial state. Default: the module's own.
        reset: bool [T, B] ([B, T] if ``rnn.batch_first``; [T] unbatched), where a new sequence
            begins; each part gets its steps. This and the next two are for modules that take them
            by name, and mean what they mean there: :func:`fused_bptt.rnn`. Default None.
        reset_state: what the state is replaced by, shaped as ``state``. Default None: zero.
        clip_state_grad: ``("norm", c)`` or ``("value", c)``; at every step. Default None.

    Returns:
        ``(loss, state)``: the sum of all losses, and the last state. Both are differentiable once,
        by ``backward``: parameters, those of other modules that ``loss`` uses too, find their
        gradients in ``.grad``; ``torch.autograd.grad`` finds those of ``input``, ``state`` and
        ``reset_state``.

    Raises:
        ValueError: ``every`` is less than 1, ``rnn`` is bidirectional, ``loss`` gave no scalar, or
            ``reset`` or ``reset_state`` does not fit ``input``.
    """
    _check_count("every", every)
    _check_direction(rnn)
    _check_cuts(input, reset, reset_state)
    seed = int(torch.randint(1 << 62, ()))
    time = _time_dimension(rnn, input)
    parts = _Parts(rnn, loss, every, seed, time, reset, clip_state_grad)
    # With a graph on the tape for each part, small things that are kept would lie between large
    # ones that are not: the C library's heap grew by the whole output. One node keeps one tensor.
    # The ticket makes it a node even where nothing but parameters requires a gradient.
    ticket = torch.zeros((), requires_grad=True)
    return _CheckpointedLoss.apply(parts, ticket, input, state, reset_state)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class _Parts:
    """A sequence in parts of ``every`` steps; each can be computed again, with its randomness."""

    rnn: nn.Module
    loss: ChunkLoss
    every: int
    seed: int
    time: int
    reset: Tensor | None
    clip: ClipStateGrad

    def steps(self, input: Tensor) -> list[slice]:
        T = input.size(self.time)
        begins = range(0, T, self.every) or [0]
        return [slice(begin, min(begin + self.every, T)) for begin in begins]

    def of(self, sequence: Tensor, steps: slice) -> Tensor:
        return sequence.narrow(self.time, steps.start, steps.stop - steps.start)

    def compute(
        self, x: Tensor, state: Tensor | None, reset_state: Tensor | None, steps: slice
    ) -> tuple[Tensor | None, Tensor]:
        devices = [x.device] if x.is_cuda else []
        reset = None if self.reset is None else self.of(self.reset, steps)
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed + steps.start)
            output, last = _call(self.rnn, x, state, reset, reset_state, self.clip)
            return _loss_of(self.loss, output, steps), last


class _CheckpointedLoss(torch.autograd.Function):
    """:func:`checkpointed_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: _Parts,
        ticket: Tensor,
        input: Tensor,
        state: Tensor | None,
        reset_state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        all_steps = parts.steps(input)
        device = input.device.type
        ctx.autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        total, kept, last = input.new_zeros(()), None, state
        for number, steps in enumerate(all_steps):
            value, after = parts.compute(parts.of(input, steps), last, reset_state, steps)
            if value is not None:
                total = total + value
            if kept is None:
                kept = after.new_empty(len(all_steps), *after.shape)
            if last is not None:
                kept[number] = last
            last = after
        ctx.parts, ctx.given = parts, state is not None
        ctx.save_for_backward(input, kept, reset_state)
        ctx.set_materialize_grads(False)
        assert last is not None
        return total, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, last_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        input, kept, reset_state = ctx.saved_tensors
        parts = ctx.parts
        if reset_state is not None:  # a leaf, where the parts' gradients add up
            reset_state = reset_state.detach().requires_grad_(ctx.needs_input_grad[4])
        input_bar = torch.empty_like(input) if ctx.needs_input_grad[2] else None
        for number, steps in reversed(list(enumerate(parts.steps(input)))):
            x = parts.of(input, steps).detach().requires_grad_(input_bar is not None)
            state = kept[number].requires_grad_() if number or ctx.given else None
            with torch.enable_grad(), ctx.autocast:
                value, last = parts.compute(x, state, reset_state, steps)
            pairs = [
                (y, c)
                for y, c in ((value, g), (last, last_bar))
                if y is not None and c is not None and y.requires_grad
            ]
            if pairs:
                torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])
            last_bar = None if state is None else state.grad
            if input_bar is not None:
                of_part = parts.of(input_bar, steps)
                of_part.zero_() if x.grad is None else of_part.copy_(x.grad)
        return None, None, input_bar, last_bar, None if reset_state is None else reset_state.grad


@dataclass(frozen=True)
class Window:
    """A window of a stream, after its backward pass.

    Attributes:
        steps: where in the stream's time it lies.
        loss: what the loss gave, detached; None where it gave none.
        state: the state after it, detached, with which the next window begins.
    """

    steps: slice
    loss: Tensor | None
    state: Tensor


def truncated_bptt(
    rnn: nn.Module,
    stream: Tensor | Iterable[StreamItem],
    loss: ChunkLoss,
    optimizer: torch.optim.Optimizer,
    *,
    window: int | None = None,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    clip_state_grad: ClipStateGrad = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
) -> Iterator[Window]:
    """Trains on a stream window by window: truncated BPTT (Williams & Peng, 1990).

    The state is carried from window to window, its gradient is not. Each turn of the loop clears
    the gradients, runs a window forward and backward, and hands it over; what follows is the
    caller's: clip, step, log, or leave the loop::

        for window in truncated_bptt(rnn, x, loss, optimizer, window=200):
            nn.utils.clip_grad_norm_(rnn.parameters(), 1.0)
            optimizer.step()

    Memory is that of one window. Gradients are there in the loop's body; when the loop is left, in
    whatever way, they are cleared, so that none is added to what comes next.

    Args:
        rnn: as in :func:`checkpointed_loss`.
        stream: a sequence [T, B, I] ([B, T, I] if ``rnn.batch_first``; [T, I] unbatched), which is
            cut into windows; or an iterable of windows, of any lengths, of a stream without end,
            or of pairs ``(window, reset)``.
        loss: ``loss(output, steps)``, a scalar for the steps ``steps`` of the whole stream, a
            slice; or None where they have none, and then the window has no backward pass.
        optimizer: holds all parameters that ``loss`` reaches; its ``zero_grad`` clears them.
        window: steps of a window, for a sequence; the last one may be shorter.
        state: the initial state. Default: the module's own.
        reset: as in :func:`checkpointed_loss`, for a sequence: it is cut along with it. The state
            that a window begins with is replaced too where it is true at its first step.
        reset_state: as there. Each window goes back through its graph: give a parameter, or a view
            of one, as :class:`fused_bptt.parametrizations.InitialState` makes it.
        clip_state_grad: as there.
        checkpoint_every: k; inside a window, only every k-th state is kept and the loss is taken k
            steps at a time, as :func:`checkpointed_loss` does. Default None: not cut.
        progress: show a progress bar (needs the package rich). Default False.

    Yields:
        Each :class:`Window` after its backward pass.

    Raises:
        ValueError: a count is less than 1, ``window`` is missing for a sequence or given for an
            iterable, so is ``reset``, ``rnn`` is bidirectional, ``loss`` gave no scalar, or
            ``reset`` or ``reset_state`` does not fit ``stream``.
    """
    _check_direction(rnn)
    if checkpoint_every is not None:
        _check_count("checkpoint_every", checkpoint_every)
    if isinstance(stream, Tensor):
        if window is None:
            raise ValueError("window: expected a number of steps for a sequence, got None")
        _check_count("window", window)
        _check_cuts(stream, reset, reset_state)
        time = _time_dimension(rnn, stream)
        windows = stream.split(window, time)  # type: ignore[no-untyped-call]
        if reset is not None:
            windows = list(zip(windows, reset.split(window, time), strict=True))  # type: ignore[no-untyped-call]
        stream = windows
    elif window is not None:
        raise ValueError(f"window: expected None for an iterable of windows, got {window}")
    elif reset is not None:
        raise ValueError(
            "reset: expected None for an iterable of windows (which may give pairs of a window and "
            f"its reset), got {list(reset.shape)}"
        )
    if progress:
        stream = _with_progress(stream)
    options = (reset_state, clip_state_grad, checkpoint_every)
    return _windows(rnn, stream, loss, optimizer, state, *options)


def _windows(
    rnn: nn.Module,
    stream: Iterable[StreamItem],
    loss: ChunkLoss,
    optimizer: torch.optim.Optimizer,
    state: Tensor | None,
    reset_state: Tensor | None,
    clip: ClipStateGrad,
    checkpoint_every: int | None,
) -> Iterator[Window]:
    begin = 0
    try:
        for item in stream:
            x, reset = _window_of(item)
            steps = slice(begin, begin + x.size(_time_dimension(rnn, x)))
            optimizer.zero_grad()
            # A state that has a history, the first one's too, would lead the gradient out of here.
            state = None if state is None else state.detach()
            cuts = (reset, reset_state, clip)
            value, state = _forward(rnn, x, loss, steps, state, *cuts, checkpoint_every)
            if value is not None and value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
            state = state.detach()
            yield Window(steps, None if value is None else value.detach(), state)
            begin = steps.stop
    finally:
        optimizer.zero_grad()


def _window_of(item: StreamItem) -> tuple[Tensor, Tensor | None]:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, tuple) and [isinstance(part, Tensor) for part in item] == [True, True]:
        return item
    got = f"{len(item)} items" if isinstance(item, tuple) else type(item).__name__
    raise ValueError(f"stream: expected tensors or pairs of tensors (window, reset), got {got}")


def _forward(
    rnn: nn.Module,
    x: Tensor,
    loss: ChunkLoss,
    steps: slice,
    state: Tensor | None,
    reset: Tensor | None,
    reset_state: Tensor | None,
    clip: ClipStateGrad,
    checkpoint_every: int | None,
) -> tuple[Tensor | None, Tensor]:
    if checkpoint_every is not None:

        def shifted(output: Tensor, inside: slice) -> Tensor | None:
            return loss(output, slice(steps.start + inside.start, steps.start + inside.stop))

        return checkpointed_loss(
            rnn,
            x,
            shifted,
            every=checkpoint_every,
            state=state,
            reset=reset,
            reset_state=reset_state,
            clip_state_grad=clip,
        )
    output, state = _call(rnn, x, state, reset, reset_state, clip)
    return _loss_of(loss, output, steps), state


def _call(
    rnn: nn.Module,
    x: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    reset_state: Tensor | None,
    clip: ClipStateGrad,
) -> tuple[Tensor, Tensor]:
    """What the module makes of these steps; a module need not know options that are not given."""
    options = {"reset": reset, "reset_state": reset_state, "clip_state_grad": clip}
    given = {name: value for name, value in options.items() if value is not None}
    return rnn(x, state, **given)  # type: ignore[no-any-return]


def _loss_of(loss: ChunkLoss, output: Tensor, steps: slice) -> Tensor | None:
    value = loss(output, steps)
    if value is not None and not (isinstance(value, Tensor) and value.dim() == 0):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar tensor or None for steps {steps}, got {got}")
    return value


def _time_dimension(rnn: nn.Module, input: Tensor) -> int:
    return 1 if getattr(rnn, "batch_first", False) and input.dim() == 3 else 0


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected a number of steps >= 1, got {value}")


def _check_cuts(input: Tensor, reset: Tensor | None, reset_state: Tensor | None) -> None:
    if reset is not None:
        _check_reset(reset, input, reset_state)
    elif reset_state is not None:
        raise ValueError("reset_state: expected with reset, got it alone")


def _check_direction(rnn: nn.Module) -> None:
    if getattr(rnn, "bidirectional", False):
        raise ValueError(
            "rnn: expected a module in one direction, got bidirectional=True (its second direction "
            "begins at the end of the sequence)"
        )


def _with_progress(stream: Iterable[Item]) -> Iterable[Item]:
    from rich.progress import track

    return track(stream, description="windows")
