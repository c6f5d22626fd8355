"""``fused_bptt.GradientMonitor``: how the gradient fares in the steps of a network in training."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from .. import _ops
from ..module import RNN, SequenceLike
from .passes import Pass, layers, nonlinearity_of, readers, tap
from .readings import Reading, q_norms, saturation, spectral_radius
from .readings import plot as draw

#: What a reading costs beyond its own seconds: as many again, because the steps after it find
#: caches that it has emptied, and 0.2 ms of autograd around it. Measured, and rounded up.
_AFTER, _AROUND = 2, 2e-4

#: Places in a monitor's clock, which the operators ``is_due`` and ``observe`` use, too; between
#: them stands ``every``. The time is that of ``perf_counter``, which is C++'s steady clock.
_PASSES, _DUE = 0, 2


class Writer(Protocol):
    """What is used of a ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Adds a point to a curve."""


class GradientMonitor:
    """Reads, now and then in training, how the gradient passes through the steps of an RNN.

    A reading holds ‖∂L/∂z_t‖ of every step, the saturation of the states and the spectral radius of
    W_hh, for each layer and direction. It costs another backward sweep and an eigenvalue problem,
    so readings are rationed: by default they take about 1 % of the time. Gradients are not changed,
    and neither is what the module computes. Every nonlinearity is read, and every option of a
    call but ``clip_state_grad``. That, ``zoneout`` and ``recurrent_dropout`` are refused meanwhile:
    what was cut off, held or dropped is known in the pass alone.

    Lower layers are read through the layers above them. Where dropout drops between layers, its
    mask is not known here, and the last layer alone is read. Calls without gradients, and under
    ``torch.func`` transforms, are not read; neither are copies of the module. A pass that
    ``torch.utils.checkpoint`` computes again counts as another. Under ``torch.compile`` the monitor
    is part of the compiled graph: a new monitor, or a closed one, and the next call compiles again.

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
        RuntimeError: it is made under ``FakeTensorMode``.
    """

    readings: deque[Reading]
    """The latest readings, in the order of time."""

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
        if not isinstance(rnn, RNN | nn.RNN):
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
        self._callback, self._writer, self._name = callback, writer, name
        self._cost = cost
        self._rnn = weakref.ref(rnn)
        self._handle: RemovableHandle | None = None
        self._key = next(_keys)
        with torch.inference_mode(False):  # it is written in later passes
            self._clock = torch.tensor([0.0, every or 0.0, 0.0], dtype=torch.float64, device="cpu")
        if type(self._clock) is not Tensor:
            raise RuntimeError(
                "GradientMonitor: expected to be made outside FakeTensorMode and its like, got a "
                f"{type(self._clock).__name__} (it reads numbers); make it when the module has them"
            )
        _ops.watch(self._key, self._clock)
        weakref.finalize(self, _ops.watch, self._key, None)
        readers[self._key] = self

        if isinstance(rnn, RNN):
            rnn._observers += (self._observe,)
            return

        def hook(module: nn.RNNBase, args: Any, kwargs: Any, result: Any) -> Any:
            x = args[0] if args else kwargs["input"]
            hx = args[1] if len(args) > 1 else kwargs.get("hx")
            return self._observe(module, x, hx, *result)

        # A function, which a copy of the module shares; a method's monitor would be copied, too.
        self._handle = rnn.register_forward_hook(hook, with_kwargs=True)

    @property
    def passes(self) -> int:
        """Passes with gradients that were seen so far."""
        return int(self._clock[_PASSES])

    def close(self) -> None:
        """Stops monitoring; the readings stay."""
        readers.pop(self._key, None)
        _ops.watch(self._key, None)
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
        self,
        rnn: nn.RNNBase,
        x: SequenceLike,
        hx: Tensor | None,
        output: Any,
        h_n: Tensor,
        **options: Any,
    ) -> tuple[Any, Tensor]:
        """Puts a tap behind the module's results in passes that are to be read.

        Eagerly it is known before the backward pass whether it is one of them; a compiled graph
        has the tap in it, and asks in every backward pass.
        """
        due = not is_compiling()
        if not h_n.requires_grad or _are_functorch_transforms_active():
            return output, h_n
        if due and (rnn is not self._rnn() or not _ops.is_due(self._key)):
            return output, h_n
        return tap(self._key, due, rnn, x, hx, output, h_n, **options)

    def read(self, done: Pass) -> None:
        """Reads a pass; it is called in the backward pass that is due."""
        rnn = self._rnn()
        if rnn is None:
            return
        start = perf_counter()
        passes = self.passes
        for layer in layers(rnn, done):
            for direction, weight in enumerate(layer.weights):
                reading = Reading(
                    passes,
                    layer.number,
                    bool(direction),
                    q_norms(layer.q[..., direction, :], layer.batch_sizes),
                    saturation(layer.h[..., direction, :], nonlinearity_of(rnn)),
                    spectral_radius(weight),
                )
                self.readings.append(reading)
                self._tell(reading)
        end = perf_counter()
        self._clock[_DUE] = end + (_AFTER * (end - start) + _AROUND) * (1 / self._cost - 1)

    def _tell(self, reading: Reading) -> None:
        if self._callback is not None:
            self._callback(reading)
        if self._writer is not None:
            for name, value in reading.scalars().items():
                self._writer.add_scalar(
                    f"{self._name}/{reading.name}/{name}", value, reading.passes
                )


_keys = itertools.count()
