"""``fused_bptt.GradientMonitor``: how the gradient fares in the steps of a network in training."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from .. import _ops
from ..functional import rnn as run
from ..module import RNN, SequenceLike
from .readings import Reading, saturation, spectral_radius
from .readings import plot as draw

#: What a reading costs beyond its own seconds: as many again, because the steps after it find
#: caches that it has emptied, and 0.2 ms of autograd around it. Measured, and rounded up.
_AFTER, _AROUND = 2, 2e-4

_CODES = {"tanh": _ops.TANH, "relu": _ops.RELU}


class Writer(Protocol):
    """What is used of a ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Adds a point to a curve."""


class GradientMonitor:
    """Reads, now and then in training, how the gradient passes through the steps of an RNN.

    A reading holds ‖∂L/∂z_t‖ of every step, the saturation of the states and the spectral radius of
    W_hh, for each layer and direction. It costs another backward sweep and an eigenvalue problem,
    so readings are rationed: by default they take about 1 % of the time. Gradients are not changed,
    and neither is what the module computes.

    Lower layers are read through the layers above them. Where dropout drops between layers, its
    mask is not known here, and the last layer alone is read. Calls without gradients, and under
    ``torch.func`` transforms, are not read; neither are copies of the module. Under
    ``torch.compile`` the monitor is part of the compiled graph: a new monitor, or a closed one, and
    the next call compiles again.

    Args:
        rnn: a :class:`fused_bptt.RNN` or :class:`torch.nn.RNN`.
        callback: is given each :class:`Reading`, during the backward pass.
        writer: a ``torch.utils.tensorboard.SummaryWriter``, which is given the scalars of each
            reading.
        every: read each so many-th pass. Default: as often as ``cost`` allows.
        cost: the fraction of the time that readings may take while ``every`` is None. Default 0.01.
        keep: readings that are kept in ``readings``, the latest. Default 1000.
        name: what the writer's tags begin with. Default ``"rnn"``.

    Raises:
        TypeError: ``rnn`` is of another kind.
        ValueError: a number does not fit.
    """

    readings: deque[Reading]
    """The latest readings, in the order of time."""
    passes: int
    """Passes with gradients that were seen so far."""

    def __init__(
        self,
        rnn: nn.RNNBase,
        callback: Callable[[Reading], object] | None = None,
        writer: Writer | None = None,
        *,
        every: int | None = None,
        cost: float = 0.01,
        keep: int = 1000,
        name: str = "rnn",
    ) -> None:
        """Hooks into ``rnn``, until :meth:`close`."""
        if getattr(rnn, "nonlinearity", "tanh") not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got '{rnn.nonlinearity}'")
        if getattr(rnn, "mode", None) not in ("RNN_TANH", "RNN_RELU"):
            raise TypeError(
                f"rnn: expected a fused_bptt.RNN or torch.nn.RNN, got {type(rnn).__qualname__}"
            )
        if every is not None and every < 1:
            raise ValueError(f"every: expected at least 1, or None, got {every}")
        if not 0 < cost <= 1:
            raise ValueError(f"cost: expected a fraction above 0 and at most 1, got {cost}")
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        self.readings = deque(maxlen=keep)
        self.passes = 0
        self._callback, self._writer, self._name = callback, writer, name
        self._every, self._cost, self._due = every, cost, 0.0
        self._rnn = weakref.ref(rnn)
        self._nonlinearity = rnn.mode.removeprefix("RNN_").lower()
        self._handle: RemovableHandle | None = None
        self._key = next(_keys)
        _monitors[self._key] = self

        if isinstance(rnn, RNN):
            rnn._observers += (self._observe,)
            return

        def hook(module: nn.RNNBase, args: Any, kwargs: Any, result: Any) -> Any:
            x = args[0] if args else kwargs["input"]
            hx = args[1] if len(args) > 1 else kwargs.get("hx")
            return self._observe(module, x, hx, *result)

        # A function, which a copy of the module shares; a method's monitor would be copied, too.
        self._handle = rnn.register_forward_hook(hook, with_kwargs=True)

    def close(self) -> None:
        """Stops monitoring; the readings stay."""
        _monitors.pop(self._key, None)
        rnn = self._rnn()
        if self._handle is not None:
            self._handle.remove()
        elif isinstance(rnn, RNN):
            rnn._observers = tuple(each for each in rnn._observers if each != self._observe)

    def __enter__(self) -> GradientMonitor:
        """The monitor itself, which is closed at the end of the ``with``."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def plot(self, layer: int = 0, reverse: bool = False, axes: Any = None) -> Any:
        """Draws ‖∂L/∂z_t‖ of the kept readings over steps and passes, with matplotlib.

        Args:
            layer: which layer. Default 0.
            reverse: the direction that walks time backwards. Default False.
            axes: matplotlib axes. Default: those of a new figure.

        Returns:
            The axes.

        Raises:
            ValueError: there is no reading of that layer and direction.
        """
        chosen = [each for each in self.readings if (each.layer, each.reverse) == (layer, reverse)]
        return draw(chosen, axes)

    def _observe(
        self, rnn: nn.RNNBase, x: SequenceLike, hx: Tensor | None, output: SequenceLike, h_n: Tensor
    ) -> tuple[SequenceLike, Tensor]:
        """Puts a tap behind the module's output in passes that are to be read.

        Eagerly it is known before the backward pass whether it is one of them; a compiled graph
        has the tap in it, and asks in every backward pass.
        """
        compiling = is_compiling()
        if not h_n.requires_grad or torch._C._are_functorch_transforms_active():
            return output, h_n
        if not compiling and (rnn is not self._rnn() or not self._is_due()):
            return output, h_n
        # A compiled step pays for every tensor that is kept for a reading, so the last layer alone
        # takes no more than its W_hh.
        whole = rnn.num_layers > 1 and not (rnn.dropout > 0 and rnn.training)
        names = rnn._flat_weights_names
        if not whole:
            last = f"weight_hh_l{rnn.num_layers - 1}"
            names = [last, f"{last}_reverse"] if rnn.bidirectional else [last]
        tap = _Tap.apply
        if compiling:
            from . import compiled

            tap = compiled.tap
        data, h_n = tap(  # type: ignore[no-untyped-call]
            output.data if isinstance(output, PackedSequence) else output,
            h_n,
            self._key,
            not compiling,
            *[getattr(rnn, name).detach() for name in names],
            (x.data if isinstance(x, PackedSequence) else x).detach() if whole else None,
            hx.detach() if whole and hx is not None else None,
            x.batch_sizes if isinstance(x, PackedSequence) else None,
            x.sorted_indices if isinstance(x, PackedSequence) else None,
        )
        return (output._replace(data=data) if isinstance(output, PackedSequence) else data), h_n

    def _is_due(self) -> bool:
        """Counts a pass, and says whether it is one to read."""
        self.passes += 1
        if self._every is not None:
            return (self.passes - 1) % self._every == 0
        return perf_counter() >= self._due

    def _read(self, states: _States) -> None:
        rnn = self._rnn()
        if rnn is None:
            return
        start = perf_counter()
        directions = 2 if rnn.bidirectional else 1
        for layer, h, q, weights in _layers(rnn, self._nonlinearity, states):
            for direction in range(directions):
                reading = Reading(
                    self.passes,
                    layer,
                    bool(direction),
                    _norms(q[..., direction, :], states.batch_sizes),
                    saturation(h[..., direction, :], self._nonlinearity),
                    spectral_radius(weights[direction]),
                )
                self.readings.append(reading)
                self._tell(reading)
        end = perf_counter()
        self._due = end + (_AFTER * (end - start) + _AROUND) * (1 / self._cost - 1)

    def _tell(self, reading: Reading) -> None:
        if self._callback is not None:
            self._callback(reading)
        if self._writer is not None:
            for name, value in reading.scalars().items():
                self._writer.add_scalar(f"{self._name}/{reading.name}/{name}", value, self.passes)


#: A compiled graph knows its monitor by a number.
_keys = itertools.count()
_monitors: weakref.WeakValueDictionary[int, GradientMonitor] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class _States:
    """What a pass leaves to be read: tensors as the module took and gave them."""

    output: Tensor
    g: Tensor | None
    g_n: Tensor | None
    #: Every parameter; or, of the last layer alone, W_hh of each direction.
    weights: list[Tensor]
    #: None if the last layer alone is read.
    x: Tensor | None
    hx: Tensor | None
    batch_sizes: Tensor | None
    sorted_indices: Tensor | None

    def steps_first(self, rnn: nn.RNNBase) -> _States:
        """The same in the layout of the operators: [T, B, ...] or packed rows, states [L, B, H]."""

        def sequence(values: Tensor | None) -> Tensor | None:
            if values is None or self.batch_sizes is not None:
                return values
            if values.dim() == 2:
                return values.unsqueeze(1)
            return values.transpose(0, 1) if rnn.batch_first else values

        def state(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            if values.dim() == 2:
                values = values.unsqueeze(1)
            if self.sorted_indices is not None:
                values = values.index_select(1, self.sorted_indices)
            return values

        output = sequence(self.output)
        assert output is not None
        return _States(
            output,
            sequence(self.g),
            state(self.g_n),
            self.weights,
            sequence(self.x),
            state(self.hx),
            self.batch_sizes,
            None,
        )


def _layers(
    rnn: nn.RNNBase, nonlinearity: str, given: _States
) -> list[tuple[int, Tensor, Tensor, list[Tensor]]]:
    """Of each layer, the lowest first: its number, h and q [..., D, H], and its W_hh."""
    states = given.steps_first(rnn)
    directions, size = 2 if rnn.bidirectional else 1, rnn.hidden_size
    per_direction = 4 if rnn.bias else 2
    per_layer = per_direction * directions
    weights = [weight.to(states.output.dtype) for weight in states.weights]
    outputs: list[Tensor] = []
    if states.x is None:
        of_layer, recurrent = [], [weights]
    else:
        of_layer = [weights[at : at + per_layer] for at in range(0, len(weights), per_layer)]
        recurrent = [each[1::per_direction] for each in of_layer]
        data: Any = states.x.to(states.output.dtype)
        if states.batch_sizes is not None:
            data = PackedSequence(data, states.batch_sizes)
    for layer in range(len(of_layer) - 1):
        hx = states.hx
        part = None if hx is None else hx[layer * directions : (layer + 1) * directions].to(data[0])
        data, _ = run(
            data,
            part,
            of_layer[layer],
            nonlinearity=nonlinearity,
            bias=rnn.bias,
            bidirectional=rnn.bidirectional,
        )
        outputs.append(data.data if isinstance(data, PackedSequence) else data)
    outputs.append(states.output)

    found: list[tuple[int, Tensor, Tensor, list[Tensor]]] = []
    g = states.g
    for h in reversed(outputs):
        layer = rnn.num_layers - 1 - len(found)
        W_hh = recurrent[-1 - len(found)]
        h = h.unflatten(-1, (directions, size))  # type: ignore[no-untyped-call]
        g_n = states.g_n
        q, _ = _ops.linear_recurrence(
            h,
            None if g is None else g.contiguous().view(h.shape).to(h.dtype),
            torch.stack(W_hh),
            None if g_n is None else g_n[layer * directions : (layer + 1) * directions].to(h.dtype),
            states.batch_sizes,
            directions - 1,
            _CODES[nonlinearity],
            True,
        )
        found.append((layer, h, q, W_hh))
        if len(found) < len(outputs):
            g = q.flatten(-2) @ torch.cat(of_layer[layer][0::per_direction])
    return found[::-1]


def _norms(q: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """[T] ‖q_t‖ of [T, B, H], or of packed rows [N, H]; float64 on the CPU."""
    wide = q if q.dtype == torch.float64 else q.float()
    rows: Tensor = torch.linalg.vector_norm(wide, dim=-1).double().cpu()
    if batch_sizes is None:
        return rows.square().sum(1).sqrt()
    steps = torch.repeat_interleave(torch.arange(len(batch_sizes)), batch_sizes)
    return rows.new_zeros(len(batch_sizes)).index_add(0, steps, rows.square()).sqrt()


def _observe(
    output: Tensor,
    g: Tensor | None,
    g_n: Tensor | None,
    key: int,
    due: bool,
    weights: list[Tensor],
    x: Tensor | None = None,
    hx: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    sorted_indices: Tensor | None = None,
) -> None:
    """Lets a monitor read, in a backward pass."""
    monitor = _monitors.get(key)
    if monitor is not None and (due or monitor._is_due()):
        with torch.no_grad():
            monitor._read(_States(output, g, g_n, weights, x, hx, batch_sizes, sorted_indices))


_operator = _ops.define(
    "observe(Tensor output, Tensor? g, Tensor? g_n, int key, bool due, Tensor[] weights, "
    "Tensor? x=None, Tensor? hx=None, Tensor? batch_sizes=None, "
    "Tensor? sorted_indices=None) -> ()",
    _observe,
)


class _Tap(torch.autograd.Function):
    """Gives its first two arguments on; in the backward pass the monitor sees their gradients."""

    @staticmethod
    def forward(output: Tensor, h_n: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return output.view_as(output), h_n.view_as(h_n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], result: tuple[Tensor, Tensor]) -> None:
        output, _, ctx.key, ctx.due, *rest = inputs
        ctx.save_for_backward(output, *rest)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Any, ...]:
        output, *rest, x, hx, batch_sizes, sorted_indices = ctx.saved_tensors
        optional = (x, hx, batch_sizes, sorted_indices)
        _operator(output, g, g_n, ctx.key, ctx.due, rest, *optional)
        return (g, g_n, *[None] * (6 + len(rest)))
