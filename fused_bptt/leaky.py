"""The module with a leak: parameters, time constants and noise; no numerics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _ops
from ._autograd import _transformed
from ._leaky_layer import leaky_layer
from ._lengths import Masked, Ragged, check_lengths, check_padded, check_range, readable
from ._noise import check_generator, drawn_from
from .functional import _NONLINEARITIES, _check_clip, _check_reset

FORMS = ("inside", "rate", "voltage")

SequenceLike = Tensor | PackedSequence


class LeakyRNN(nn.Module):
    """A continuous-time RNN, integrated by Euler's method.

    With z_t = W_ih x_t + b + W_hh (state before) and the leak α, ``form`` is one of the three in
    use (the first is neurogym's, the second neuralrnn's, the third nn4n's, PsychRNN's and
    lowrank_inference's):

    - ``"inside"``: h_t = φ((1 - α) h_{t-1} + α z_t);
    - ``"rate"``: h_t = (1 - α) h_{t-1} + α φ(z_t);
    - ``"voltage"``: v_t = (1 - α) v_{t-1} + α (W_ih x_t + b + W_hh φ(v_{t-1})).

    Parameters of layer k are ``weight_ih_lk`` [H, I], ``weight_hh_lk`` [H, H] and ``bias_lk`` [H];
    ``leak_lk`` and ``initial_lk`` [H] are parameters where they are learned. Those of the direction
    that walks time backwards end with ``_reverse``. A layer above the first one reads what the
    units below send: h, or φ(v).

    Args:
        input_size: I.
        hidden_size: H.
        form: ``"inside"``, ``"rate"`` or ``"voltage"``. Default ``"rate"``.
        nonlinearity: φ, as in :func:`fused_bptt.rnn`. Default ``"tanh"``.
        leak: α, a number or one for each unit [H], of all layers; or None for ``dt / tau``.
        dt, tau: the step and the time constant, in the same unit; tau may be [H].
        learn_leak: α is a parameter with a gradient. Default False: a buffer.
        learn_initial: the state before the first step is a parameter. Default False: zero.
        noise_std: σ; noise of this size is added to z_t at every step. Default 0.
        scale_noise: √(2 / α) σ in place of σ, so that α times the noise is the field's √(2α) σ ξ.
            Default False.
        num_layers: number of layers. Default 1.
        bidirectional: a second recurrence walks time backwards. Default False.
        dropout: probability of zeroing what a layer, but the last, sends on, in training mode.
            Default 0.
        bias: whether there are biases. Default True.
        batch_first: input and output are [B, T, ...]. Default False.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument is none of the above (name, expected, got).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        form: str = "rate",
        nonlinearity: str = "tanh",
        leak: float | Tensor | None = None,
        dt: float | None = None,
        tau: float | Tensor | None = None,
        learn_leak: bool = False,
        learn_initial: bool = False,
        noise_std: float = 0.0,
        scale_noise: bool = False,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Weights and bias are drawn from ±1/√H, as nn.RNN's; see the class for the arguments."""
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        if nonlinearity not in _NONLINEARITIES:
            names = ", ".join(_NONLINEARITIES)
            raise ValueError(f"nonlinearity: expected one of {names}, got {nonlinearity!r}")
        if not noise_std >= 0:
            raise ValueError(f"noise_std: expected 0 or more, got {noise_std}")
        if num_layers < 1:
            raise ValueError(f"num_layers: expected 1 or more, got {num_layers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a probability in [0, 1], got {dropout}")
        if (leak is None) == (dt is None) or (dt is None) != (tau is None):
            raise ValueError(
                "leak, dt, tau: expected either leak or both dt and tau, "
                f"got leak={leak}, dt={dt}, tau={tau}"
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.form, self.nonlinearity = form, nonlinearity
        self.noise_std, self.scale_noise = noise_std, scale_noise
        self.num_layers, self.bidirectional, self.dropout = num_layers, bidirectional, dropout
        self.batch_first = batch_first
        dtype = dtype or torch.get_default_dtype()
        given = leak if dt is None or tau is None else dt / torch.as_tensor(tau)
        value = torch.as_tensor(given, device=device, dtype=dtype)
        if value.shape not in ((), (hidden_size,)):
            raise ValueError(f"leak: expected a number or [{hidden_size}], got {list(value.shape)}")
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"leak: expected numbers in [0, 1], got {value.tolist()}")
        if scale_noise and not (value > 0).all():
            raise ValueError(f"leak: expected above 0 with scale_noise, got {value.tolist()}")

        def drawn(*shape: int) -> nn.Parameter:
            bound = 1 / math.sqrt(hidden_size) if hidden_size > 0 else 0
            return nn.Parameter(value.new_empty(shape).uniform_(-bound, bound))

        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self._directions
            for suffix in self._suffixes(layer):
                self.register_parameter(f"weight_ih{suffix}", drawn(hidden_size, width))
                self.register_parameter(f"weight_hh{suffix}", drawn(hidden_size, hidden_size))
                self.register_parameter(f"bias{suffix}", drawn(hidden_size) if bias else None)
                own = value.expand(hidden_size).clone()
                if learn_leak:
                    self.register_parameter(f"leak{suffix}", nn.Parameter(own))
                else:
                    self.register_buffer(f"leak{suffix}", own)
                first = nn.Parameter(value.new_zeros(hidden_size)) if learn_initial else None
                self.register_parameter(f"initial{suffix}", first)

    def extra_repr(self) -> str:
        """What it was made with."""
        words = [f"{self.input_size}, {self.hidden_size}, form={self.form!r}"]
        words += [f"nonlinearity={self.nonlinearity!r}", f"num_layers={self.num_layers}"]
        shown = ("noise_std", "scale_noise", "bidirectional", "dropout", "batch_first")
        words += [f"{name}={value}" for name in shown if (value := getattr(self, name))]
        return ", ".join(words)

    def forward(
        self,
        input: SequenceLike,
        state: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        bptt_window: int = 0,
        clip_state_grad: tuple[str, float] | None = None,
        lengths: Tensor | None = None,
        noise: Tensor | Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        return_rates: bool = False,
    ) -> tuple[Any, ...]:
        """Runs the whole sequence.

        Under autocast it computes in float32: in 16 bits, 1 - α would be another time constant.

        Args:
            input: [T, B, I]; [B, T, I] if ``batch_first``; [T, I] unbatched; or a PackedSequence.
            state: before the first step, [num_layers * D, B, H] ([num_layers * D, H] unbatched),
                D = 2 if ``bidirectional`` else 1. Default: the learned one, or zero.
            reset, bptt_window: as in :func:`fused_bptt.rnn`; after a reset a row begins with the
                learned initial state, or zero.
            clip_state_grad: ``("norm", c)`` or ``("value", c)``: at every step the gradient of the
                state, h or v, is clipped before it goes back through the step, as in
                :func:`fused_bptt.rnn`. On the CPU, in float32 and float64; not under the transforms
                of ``torch.func``, with ``create_graph`` or ``is_grads_batched``, and not where
                ``noise`` needs a gradient. Default None.
            lengths: integers [B], the steps of each row of a padded batch; as in
                :func:`fused_bptt.rnn`, with its two ways to walk them, and what is random is
                another draw in each. Where they are not read on the host, ``reset`` with
                ``bidirectional`` takes no ``state``. Default None: every row has T steps.
            noise: added to z_t, shaped as the output, and of several layers one for each; it takes
                the place of ``noise_std``.
            generator: draws the seed of a layer's noise; the same state of it gives the same noise,
                whatever the number of threads. Compiled, under a transform of ``torch.func``, or on
                CUDA, where it is one of that device, it draws the noise itself: other numbers.
            return_rates: also return r.

        Returns:
            ``(output, state)``: the last layer's states h or v, [T, B, D * H], laid out as
            ``input``, and each layer's and direction's last one, shaped as ``state``; with
            ``return_rates`` then the rates r as well: φ(z_t), or φ(v_t), or h where the leak is
            inside.

        Raises:
            ValueError, RuntimeError: an argument does not fit (name, expected, got).
        """
        data = input.data if isinstance(input, PackedSequence) else input
        packed = isinstance(input, PackedSequence)
        if data.dim() not in ((2,) if packed else (2, 3)) or data.size(-1) != self.input_size:
            shapes = "[N, I] in a PackedSequence" if packed else "[T, B, I] or [T, I]"
            raise ValueError(
                f"input: expected {shapes}, I = {self.input_size}, got {list(data.shape)}"
            )
        if bptt_window < 0:
            raise ValueError(f"bptt_window: expected 0 (none) or more steps, got {bptt_window}")
        if reset is not None:
            _check_reset(reset, input, None)
        clip = None if clip_state_grad is None else _check_clip(clip_state_grad, None)
        if lengths is not None:
            check_padded(input)
            check_lengths(lengths, data.size(0 if self.batch_first else 1), data.device)
            if readable(lengths):
                check_range(lengths, data.size(1 if self.batch_first else 0))
            elif reset is not None and state is not None and self.bidirectional:
                raise ValueError(
                    "reset: expected no state with lengths and bidirectional=True, where lengths "
                    "are not read on the host, got one (a row would be cut with two states)"
                )
        noises = noise if noise is None or isinstance(noise, Sequence) else [noise]
        for one in noises or ():
            if not isinstance(one, Tensor):
                raise ValueError(f"noise: expected a tensor, or one for each layer, got {one!r}")
        if noises is not None and len(noises) != self.num_layers:
            raise ValueError(f"noise: expected {self.num_layers}, one a layer, got {len(noises)}")
        shape = [*data.shape[:-1], self.hidden_size * self._directions]
        for one in noises or ():
            if list(one.shape) != shape:
                raise ValueError(f"noise: expected shape {shape}, got {list(one.shape)}")
        # Of the meta device torch has no autocast, and says so by an error.
        cast = not data.is_meta and torch.is_autocast_enabled(data.device.type)
        if cast:
            data = data if data.dtype == torch.float64 else data.float()
            input = input._replace(data=data) if isinstance(input, PackedSequence) else data
            state = state if state is None else state.to(data.dtype)
            noises = noises if noises is None else [one.to(data.dtype) for one in noises]
        with torch.autocast(data.device.type, enabled=False) if cast else nullcontext():
            return self._run(
                input, state, reset, lengths, bptt_window, clip, noises, generator, return_rates
            )

    def _run(
        self,
        input: SequenceLike,
        state: Tensor | None,
        reset: Tensor | None,
        lengths: Tensor | None,
        window: int,
        clip: _ops.Clip,
        noises: Sequence[Tensor] | None,
        generator: torch.Generator | None,
        return_rates: bool,
    ) -> tuple[Any, ...]:
        """:meth:`forward`, checked: the layouts of what goes in and comes out."""
        batch_sizes = order = back = None
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            rows = int(batch_sizes[0]) if batch_sizes.numel() else 0
        else:
            data = self._inwards(input)
            reset = None if reset is None else self._inwards(reset, input)
            rows = data.size(1)
        dtype = self._of(0, "leak").dtype
        if data.dtype != dtype:
            raise ValueError(f"input: expected {dtype} (that of the weights), got {data.dtype}")
        unbatched = not isinstance(input, PackedSequence) and input.dim() == 2
        shape = [self.num_layers * self._directions, *([] if unbatched else [rows])]
        shape.append(self.hidden_size)
        if state is not None and list(state.shape) != shape:
            raise ValueError(f"state: expected shape {shape}, got {list(state.shape)}")
        if state is not None and state.dtype != dtype:
            raise ValueError(f"state: expected {dtype} (that of the weights), got {state.dtype}")
        if state is not None and unbatched:
            state = state.unsqueeze(1)
        if state is not None and order is not None:
            state = state.index_select(1, order)

        if noises is not None and batch_sizes is None:
            noises = [self._inwards(given, input) for given in noises]  # type: ignore[arg-type]
        others = (window, clip, generator)
        if lengths is None:
            outputs, rates, last = self._walk(
                data, state, batch_sizes, noises, reset, None, *others
            )
            output = outputs[-1]
        else:
            walk = self._walk_packed if readable(lengths) else self._walk_masked
            output, rates, last = walk(data, state, lengths, noises, reset, *others)
        last = last if back is None else last.index_select(1, back)

        def outwards(value: Tensor) -> SequenceLike:
            if isinstance(input, PackedSequence):
                return input._replace(data=value)
            if unbatched:
                return value.squeeze(1)
            return value.transpose(0, 1) if self.batch_first else value

        results = (outwards(output), last.squeeze(1) if unbatched else last)
        return (*results, outwards(rates)) if return_rates else results

    def _walk(
        self,
        data: Tensor,
        state: Tensor | None,
        batch_sizes: Tensor | None,
        noises: Sequence[Tensor] | None,
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
        clip: _ops.Clip,
        generator: torch.Generator | None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The states of every layer, the last one's rates, and the last states [L * D, B, H].

        Sequences are [T, B, ...] or packed [N, ...]. ``reset_state``: what a reset begins with,
        [L * D, B, H]; None for the learned state, or zero.
        """
        outputs, lasts = [], []
        rates = data
        for layer in range(self.num_layers):
            here = slice(layer * self._directions, (layer + 1) * self._directions)
            given = None if noises is None else noises[layer]
            first, other = (None if s is None else s[here] for s in (state, reset_state))
            output, rates, last = self._layer(
                layer, data, first, batch_sizes, given, generator, reset, other, window, clip
            )
            outputs.append(output)
            lasts.append(last)
            data = rates if self.form == "voltage" else output
            if self.dropout > 0 and self.training and layer + 1 < self.num_layers:
                data = F.dropout(data, self.dropout)
        return outputs, rates, torch.cat(lasts) if len(lasts) > 1 else lasts[0]

    def _walk_packed(
        self,
        data: Tensor,
        state: Tensor | None,
        lengths: Tensor,
        noises: Sequence[Tensor] | None,
        reset: Tensor | None,
        *others: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last layer's states and rates, and the last states, of the rows packed."""
        ragged = Ragged(lengths, data.size(0))
        start = self._start(data.size(1)) if state is None else state
        outputs, rates, last = self._walk(
            ragged.pack(data),
            start.index_select(1, ragged.order),
            ragged.batch_sizes,
            noises if noises is None else [ragged.pack(given) for given in noises],
            reset if reset is None else ragged.pack(reset),
            None,
            *others,
        )
        last = start.index_copy(1, ragged.order, last)
        return ragged.pad(outputs[-1]), ragged.pad(rates), last

    def _walk_masked(
        self,
        data: Tensor,
        state: Tensor | None,
        lengths: Tensor,
        noises: Sequence[Tensor] | None,
        reset: Tensor | None,
        *others: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_walk_packed`, of the padded batch."""
        rows = Masked(lengths, data.size(0))
        start = self._start(data.size(1)) if state is None else state
        first = start.masked_fill(rows.empty, 0)
        outputs, rates, _ = self._walk(
            rows.zeroed(data),
            first,
            None,
            noises if noises is None else [rows.zeroed(given) for given in noises],
            rows.past if reset is None else reset | rows.past,
            first if self.bidirectional and state is not None else None,
            *others,
        )
        of_layers = start.chunk(self.num_layers)
        ends = [rows.last(h, h0) for h, h0 in zip(outputs, of_layers, strict=True)]
        return rows.zeroed(outputs[-1]), rows.zeroed(rates), torch.cat(ends)

    def _start(self, rows: int) -> Tensor:
        """The state that every row begins with, [L * D, rows, H]: the learned one, or zero."""
        H, D = self.hidden_size, self._directions
        learned = [self._of(layer, "initial") for layer in range(self.num_layers)]
        if learned[0] is None:
            first: Tensor = self._of(0, "leak").new_zeros(self.num_layers * D, 1, H)
        else:
            first = torch.cat(learned).view(self.num_layers * D, 1, H)
        return first.expand(-1, rows, -1)

    def _layer(
        self,
        layer: int,
        data: Tensor,
        state: Tensor | None,
        batch_sizes: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
        clip: _ops.Clip,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States, rates and the last states of one layer."""
        H, D = self.hidden_size, self._directions
        leak = self._of(layer, "leak")
        rows = data.size(1) if batch_sizes is None else int(batch_sizes[:1].sum())
        learned = self._of(layer, "initial")
        first = leak.new_zeros(D, 1, H) if learned is None else learned.view(D, 1, H)
        fresh = first.expand(D, rows, H)
        scale = seed = None
        if noise is None and self.noise_std > 0:
            check_generator(generator)
            # These can hold no seed, or have no kernel for it.
            if torch.compiler.is_compiling() or _transformed() or not data.is_cpu:
                shape = (*data.shape[:-1], D * H)
                noise = torch.randn(
                    shape, dtype=data.dtype, device=data.device, **drawn_from(generator)
                )
            else:
                seed = int(torch.randint(2**63 - 1, (), generator=generator))
            scale = torch.full_like(leak, self.noise_std)
            if self.scale_noise:
                scale = scale * (2 / leak).sqrt()
        weight_ih, weight = self._of(layer, "weight_ih"), self._of(layer, "weight_hh")
        bias = self._of(layer, "bias")
        keep: Tensor = 1 - leak
        gain: Tensor | None = leak
        if self.form != "rate":  # α z_t is made of weights times α
            weight_ih, weight = leak[:, None] * weight_ih, leak[:, None] * weight
            bias = None if bias is None else leak * bias
            gain = None
            if noise is not None or seed is not None:
                scale = leak if scale is None else leak * scale
        weight = weight.view(D, H, H)
        if self.form == "inside":  # the plain recurrence of W' = (1 - α) + α W
            weight, keep = weight + torch.diag_embed(keep.view(D, H)), torch.zeros_like(leak)
            gain = torch.ones_like(leak)
        initial = fresh if state is None else state
        operands = (data, weight_ih, weight, bias, keep, gain, initial, noise, scale)
        other = fresh if reset_state is None else reset_state
        cuts = (reset, None if reset is None else other, window)
        phi = _NONLINEARITIES[self.nonlinearity]
        walk = (batch_sizes, D - 1, phi, *cuts, seed, self.form == "inside", clip)
        return leaky_layer(*operands, *walk)

    def _of(self, layer: int, name: str) -> Any:
        """A layer's tensors of one name, those of both directions as more rows; None: it has none.

        As attributes: a parametrization takes a parameter's place.
        """
        values = [getattr(self, name + suffix) for suffix in self._suffixes(layer)]
        return values[0] if len(values) == 1 or values[0] is None else torch.cat(values)

    def _inwards(self, value: Tensor, model: Tensor | None = None) -> Tensor:
        """A sequence as [T, B, ...]; ``model`` is an input of the same layout."""
        model = value if model is None else model
        if model.dim() == 2:
            return value.unsqueeze(1)
        return value.transpose(0, 1) if self.batch_first else value

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]
