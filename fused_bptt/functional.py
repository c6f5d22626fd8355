"""The stateless RNN: ``torch.nn.RNN``'s semantics, weights as arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _checkpoint, _noise, _ops
from ._autograd import layer
from ._lengths import Masked, Ragged, check_lengths, check_padded, check_range, readable
from ._noise import StateNoise

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NONLINEARITIES = {
    "tanh": _ops.TANH,
    "relu": _ops.RELU,
    "sigmoid": _ops.SIGMOID,
    "softplus": _ops.SOFTPLUS,
    "identity": _ops.IDENTITY,
}


#: Of ``clip_state_grad``, as in ``torch.nn.utils.clip_grad_norm_`` and ``clip_grad_value_``.
_CLIPS = {"norm": _ops.CLIP_NORM, "value": _ops.CLIP_VALUE}


#: What comes out is packed where what goes in is.
_SequenceT = TypeVar("_SequenceT", Tensor, PackedSequence)


class _Options(TypedDict, total=False):
    """The keyword arguments of :func:`rnn` but the one that changes what kind of thing it gives."""

    nonlinearity: str
    bias: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool
    batch_first: bool
    reset: Tensor | None
    reset_state: Tensor | None
    bptt_window: int
    clip_state_grad: tuple[str, float] | None
    lengths: Tensor | None
    checkpoint_every: int | None
    recurrent_dropout: float
    zoneout: float
    generator: torch.Generator | None
    state_batch_first: bool


@overload
def rnn(
    input: _SequenceT,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_layers: Literal[False] = ...,
    **options: Unpack[_Options],
) -> tuple[_SequenceT, Tensor]: ...


@overload
def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_all_layers: bool,
    **options: Unpack[_Options],
) -> tuple[Any, Tensor]: ...


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    bptt_window: int = 0,
    clip_state_grad: tuple[str, float] | None = None,
    lengths: Tensor | None = None,
    checkpoint_every: int | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    generator: torch.Generator | None = None,
    return_all_layers: bool = False,
    state_batch_first: bool = False,
) -> tuple[Any, Tensor]:
    """Multi-layer Elman RNN, h_t = φ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), on a whole sequence.

    The same function as :class:`torch.nn.RNN` computes (https://pytorch.org/docs/stable/
    generated/torch.nn.RNN.html), with D = 2 if ``bidirectional`` else 1. All tensors are of one
    dtype: float64, float32, bfloat16 or float16. T = 0 and B = 0 are accepted.

    Args:
        input: [T, B, I]; [B, T, I] if ``batch_first``; [T, I] unbatched; or a PackedSequence.
        hx: initial state [num_layers * D, B, H] ([num_layers * D, H] unbatched); None is zero.
        weights: for each layer, for each direction: ``weight_ih`` [H, I] ([H, D * H] above the
            first layer), ``weight_hh`` [H, H], and, with ``bias``, ``bias_ih`` [H], ``bias_hh``
            [H]: the order of ``nn.RNN``'s parameters.
        nonlinearity: φ, ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` (without a threshold)
            or ``"identity"``. Default ``"tanh"``.
        bias: whether ``weights`` contains biases. Default True.
        num_layers: number of layers. Default 1.
        dropout: probability of zeroing an output of every layer but the last while ``training``.
            Default 0.
        training: whether dropout applies. Default False.
        bidirectional: a second recurrence walks time backwards. Default False.
        batch_first: input and output are [B, T, ...]. Default False.
        reset: bool [T, B] ([B, T] if ``batch_first``; [T] unbatched; [N] beside the data of a
            PackedSequence): where it is true, a new sequence begins with this step. The state
            before it is replaced, and no gradient crosses; a direction that walks time backwards is
            cut at the same place. ``hx`` is for the first sequence of a row (the last one, where
            time is walked backwards), unless ``reset`` is true at its first step.
        reset_state: what replaces the state, shaped as ``hx``; None is zero.
        bptt_window: no gradient is carried over the multiples of this number of steps; the forward
            pass and ``hx`` are not touched. 0, the default, is for none.
        clip_state_grad: ``("norm", c)`` or ``("value", c)``, c > 0: on its way back through time
            the gradient of each state, a_t = g_t + W_hhᵀ q_{t+1}, is clipped before it goes through
            the step, q_t = φ'(z_t) ⊙ clip(a_t): each row to a norm of at most c, a_t min(1, c /
            |a_t|), or each number to [-c, c]. For each layer and direction; what is carried on to
            ``hx`` is not clipped. Such gradients have no second derivative; forward mode (of which
            a gradient is clipped along the states alone) and the forward pass are not touched.
            Not together with ``recurrent_dropout`` and ``zoneout``. Default None.
        lengths: integers [B], the steps of each row of a padded batch, in any order and also 0; on
            the device of input. What is past a row's end is not read, its output and its gradient
            are zero; h_n holds each row's own last state. In eager mode on the CPU the rows are
            walked packed and nothing past the end is computed. On an accelerator, under
            ``torch.compile``, ``torch.export`` and the transforms of ``torch.func``, and with
            ``checkpoint_every``, the padded batch is walked and masked. There the numbers are never
            copied to the host: one out of range is a RuntimeError (a GPU's, when it comes to it);
            random masks are another draw than the packed walk's; and ``reset`` with
            ``bidirectional`` takes neither ``hx`` nor ``reset_state``, as the end of a row and its
            resets would need two states for one. Default None: every row has T steps.
        checkpoint_every: k; only every k-th state is kept for the backward pass, which computes the
            others again, k steps at a time. On the CPU, in float32 and float64, k is rounded up to
            a multiple of the kernels' chunk, max(1, 512 // B), and the gradients have the bits of
            the plain call; with ``lengths``, zoneout or recurrent dropout, and elsewhere, they are
            the same sums in another order. Random masks are drawn from a seed, and are others than
            the plain call's. Each layer's output is made where it is returned, and with
            ``lengths``. In one direction (the second reads each layer's output from its end), and
            not for a PackedSequence (use ``lengths``). No effect under ``torch.compile`` and
            ``torch.func``. Default None: every state is kept.
        recurrent_dropout: p, the probability of zeroing a unit of the state on its way through
            W_hh while ``training``: z_t = u_t + W_hh (m ⊙ h_{t-1}), where m is 0, or else
            1 / (1 - p), and drawn once for all steps of a row, for each layer and direction (Gal
            and Ghahramani, 2016). What a reset begins with is multiplied by the same m.
            Default 0.
        zoneout: p, the probability that a unit keeps its state in a step, h_t = m_t ⊙ h_{t-1} +
            (1 - m_t) ⊙ φ(z_t) (Krueger et al., 2016); m_t is drawn for each step, row and unit,
            and without ``training`` it is p. Not together with ``recurrent_dropout``. Default 0.
        generator: draws what these two need, layer after layer; on the device of input. Default
            None: torch's own, the only one that ``torch.utils.checkpoint`` puts back before it
            computes a pass again; with another there, an error.
        return_all_layers: output is a tuple of every layer's, before its dropout. Default False.
        state_batch_first: hx, reset_state and h_n are [B, num_layers * D, H]. Default False.

    Returns:
        ``(output, h_n)``: output [T, B, D * H] (shaped as ``input``, packed if it was) holds the
        last layer's h_t; h_n [num_layers * D, B, H] holds each layer's and direction's last h.

    Raises:
        ValueError, RuntimeError: an argument does not fit, in ``nn.RNN``'s words where it has some.
    """
    if lengths is not None:
        return _of_lengths(
            input,
            hx,
            weights,
            lengths,
            batch_first,
            reset,
            reset_state,
            state_batch_first,
            nonlinearity=nonlinearity,
            bias=bias,
            num_layers=num_layers,
            dropout=dropout,
            training=training,
            bidirectional=bidirectional,
            bptt_window=bptt_window,
            checkpoint_every=checkpoint_every,
            clip_state_grad=clip_state_grad,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            generator=generator,
            return_all_layers=return_all_layers,
        )
    noise = None
    if recurrent_dropout or zoneout:
        noise = StateNoise(recurrent_dropout, zoneout, training, generator)
        noise.check()
        noise = None if noise.none() else noise
    clip = None
    if clip_state_grad is not None:
        clip = _check_clip(clip_state_grad, noise)
    if bptt_window < 0:
        raise ValueError(f"bptt_window: expected 0 (none) or more steps, got {bptt_window}")
    if reset_state is not None and reset is None:
        raise ValueError("reset_state: expected with reset, got it alone")
    if reset is not None:
        _check_reset(reset, input, reset_state)
    phi = _check_options(weights, nonlinearity, bias, num_layers, dropout, bidirectional)
    if checkpoint_every is not None:
        _check_checkpoint(checkpoint_every, isinstance(input, PackedSequence), bidirectional)
    if state_batch_first and hx is not None and hx.dim() == 3:
        hx = hx.transpose(0, 1)
    if state_batch_first and reset_state is not None and reset_state.dim() == 3:
        reset_state = reset_state.transpose(0, 1)
    if isinstance(input, PackedSequence):
        data, batch_sizes, sorted_indices, unsorted_indices = input
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._functorch.is_batchedtensor(batch_sizes):
            raise ValueError(
                "batch_sizes: expected lengths that are the same for all under vmap, got some of "
                "each (padded input, or one packed batch without vmap, may have them)"
            )
        if hx is not None and compiling:
            rows = hx.size(-2)  # what batch_sizes holds is not known yet; the operator compares
        else:
            rows = int(batch_sizes[0]) if batch_sizes.numel() else 0
    else:
        if input.dim() not in (2, 3):
            raise ValueError(
                f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead"
            )
        data, batch_sizes, sorted_indices, unsorted_indices = input, None, None, None
        batched = data.dim() == 3
        if hx is not None and hx.dim() != data.dim():
            kind, want = ("batched 3-D", "3-D") if batched else ("unbatched 2-D", "2-D")
            raise RuntimeError(
                f"For {kind} input, hx should also be {want} but got {hx.dim()}-D tensor"
            )
        if not batched:
            data = data.unsqueeze(1)
            hx = hx if hx is None else hx.unsqueeze(1)
            reset = reset if reset is None else reset.unsqueeze(1)
            reset_state = reset_state if reset_state is None else reset_state.unsqueeze(1)
        elif batch_first:
            data = data.transpose(0, 1)
            reset = reset if reset is None else reset.t()
        rows = data.size(1)

    directions = 2 if bidirectional else 1
    states = num_layers * directions
    hidden_size = weights[1].size(0)
    if hx is None:
        hx = torch.zeros(states, rows, hidden_size, dtype=data.dtype, device=data.device)
    elif sorted_indices is not None:
        hx = hx.index_select(1, sorted_indices)
    if reset_state is not None and sorted_indices is not None:
        reset_state = reset_state.index_select(1, sorted_indices)
    shape = (states, rows, hidden_size)
    _check_tensors(data, hx, weights, bias, directions, batch_sizes, shape)
    if reset_state is not None and tuple(reset_state.shape) != shape:
        raise RuntimeError(
            f"reset_state: expected shape {list(shape)}, got {list(reset_state.shape)}"
        )
    if (
        torch._C._is_any_autocast_enabled()
        and not data.is_meta  # of which torch has no autocast, and says so by an error
        and torch.is_autocast_enabled(data.device.type)
    ):
        data, hx, *weights = (_autocast(tensor) for tensor in (data, hx, *weights))
        reset_state = reset_state if reset_state is None else _autocast(reset_state)

    def arranged(data: Tensor) -> Tensor | PackedSequence:
        if batch_sizes is not None:
            return PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices)
        if not batched:
            return data.squeeze(1)
        return data.transpose(0, 1) if batch_first else data

    per_direction = 4 if bias else 2
    outputs: list[Tensor] = []
    last_states = []
    if checkpoint_every is not None and _checkpoint.useful():
        rate = dropout if training and num_layers > 1 else 0.0
        outputs, last = _checkpoint.layers(
            data.contiguous(),
            hx,
            phi,
            checkpoint_every,
            rate,
            reset,
            reset_state,
            bptt_window,
            noise,
            clip,
            return_all_layers,
            weights,
        )
        data, last_states, num_layers = outputs[-1], [last], 0
    for depth in range(num_layers):
        begin, end = depth * directions, (depth + 1) * directions
        of_layer = (
            data.contiguous(),
            hx if num_layers == 1 else hx[begin:end],
            batch_sizes,
            phi,
            directions,
            weights[begin * per_direction : end * per_direction],
            reset,
            reset_state if reset_state is None else reset_state[begin:end],
            bptt_window,
        )
        if noise is None:
            data, last = layer(*of_layer, clip)
        else:
            data, last = _noise.layer(*of_layer, noise)
        outputs.append(data)
        last_states.append(last)
        if dropout > 0 and training and depth < num_layers - 1:
            data = F.dropout(data, dropout, training=True)
    h_n = last_states[0] if len(last_states) == 1 else torch.cat(last_states)

    if unsorted_indices is not None:
        h_n = h_n.index_select(1, unsorted_indices)
    if batch_sizes is None and not batched:
        h_n = h_n.squeeze(1)
    elif state_batch_first:
        h_n = h_n.transpose(0, 1)
    return tuple(map(arranged, outputs)) if return_all_layers else arranged(data), h_n


def _of_lengths(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor,
    batch_first: bool,
    reset: Tensor | None,
    reset_state: Tensor | None,
    state_batch_first: bool,
    **options: Any,
) -> tuple[Any, Tensor]:
    """:func:`rnn` of padded rows of different lengths."""
    check_padded(input)
    assert isinstance(input, Tensor)
    if batch_first:
        input = input.transpose(0, 1)
        reset = reset if reset is None else reset.t()
    if state_batch_first:
        hx = hx if hx is None else hx.transpose(0, 1)
        reset_state = reset_state if reset_state is None else reset_state.transpose(0, 1)
    T, B = input.shape[:2]
    check_lengths(lengths, B, input.device)
    states = options["num_layers"] * (2 if options["bidirectional"] else 1)
    shape = (states, B, weights[1].size(0))
    for name, state in (("hx", hx), ("reset_state", reset_state)):
        if state is not None and state.shape != shape:
            raise RuntimeError(f"{name}: expected shape {list(shape)}, got {list(state.shape)}")
    if hx is not None and hx.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
        raise RuntimeError(f"hx: expected dtype {input.dtype} (that of input), got {hx.dtype}")
    if reset is not None:
        _check_reset(reset, input, reset_state)
    packed = readable(lengths)
    if packed:
        check_range(lengths, T)
        packed = options["checkpoint_every"] is None
    walk = _walk_packed if packed else _walk_masked
    outputs, h_n = walk(_Rows(input, hx, weights, lengths, reset, reset_state, shape, options))
    if batch_first:
        outputs = [output.transpose(0, 1) for output in outputs]
    return (
        tuple(outputs) if options["return_all_layers"] else outputs[-1],
        h_n.transpose(0, 1) if state_batch_first else h_n,
    )


class _Rows(NamedTuple):
    """Padded rows of different lengths, checked; ``shape`` is that of ``hx``."""

    input: Tensor
    hx: Tensor | None
    weights: Sequence[Tensor]
    lengths: Tensor
    reset: Tensor | None
    reset_state: Tensor | None
    shape: tuple[int, ...]
    options: dict[str, Any]


def _walk_packed(given: _Rows) -> tuple[list[Tensor], Tensor]:
    """The outputs that are asked for, and the last states, of a packed sequence of the rows."""
    hx = given.input.new_zeros(given.shape) if given.hx is None else given.hx
    ragged = Ragged(given.lengths, given.input.size(0))
    reset, reset_state = given.reset, given.reset_state
    output, last = rnn(
        PackedSequence(ragged.pack(given.input), ragged.batch_sizes),
        hx.index_select(1, ragged.order),
        given.weights,
        reset=reset if reset is None else ragged.pack(reset),
        reset_state=reset_state if reset_state is None else reset_state[:, ragged.order],
        **given.options,
    )
    packed = output if given.options["return_all_layers"] else [output]
    outputs = [ragged.pad(of_layer.data) for of_layer in packed]
    return outputs, hx.to(last.dtype).index_copy(1, ragged.order, last)


def _walk_masked(given: _Rows) -> tuple[list[Tensor], Tensor]:
    """As :func:`_walk_packed`, of the padded batch."""
    input, hx, weights, lengths, reset, reset_state, shape, options = given
    bidirectional = options["bidirectional"]
    if reset is not None and bidirectional and not (hx is None and reset_state is None):
        raise ValueError(
            "reset: expected no hx and no reset_state with lengths and bidirectional=True, where "
            "lengths are not read on the host, got one (a row would be cut with two states)"
        )
    rows = Masked(lengths, input.size(0))
    start = None if hx is None else hx.masked_fill(rows.empty, 0)
    if start is not None and bidirectional:
        reset_state = start
    # A state without bounds could reach infinity in the steps past the end, and 0 x inf the
    # gradients; without cuts the walk is quicker in some transforms.
    if bidirectional or reset is not None or options["nonlinearity"] not in ("tanh", "sigmoid"):
        reset = rows.past if reset is None else reset | rows.past
    outputs, _ = rnn(
        rows.zeroed(input),
        start,
        weights,
        reset=reset,
        reset_state=reset_state,
        **{**options, "return_all_layers": True},
    )
    hx = input.new_zeros(shape) if hx is None else hx
    of_layers = hx.chunk(options["num_layers"])
    ends = [rows.last(h, h0) for h, h0 in zip(outputs, of_layers, strict=True)]
    wanted = outputs if options["return_all_layers"] else outputs[-1:]
    return [rows.zeroed(h) for h in wanted], torch.cat(ends)


def _autocast(tensor: Tensor) -> Tensor:
    """As autocast treats the operands of ``F.linear``, of which nn.RNN is made: double is kept."""
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _check_reset(reset: Tensor, input: Tensor | PackedSequence, reset_state: Tensor | None) -> None:
    data = input.data if isinstance(input, PackedSequence) else input
    if reset.dtype != torch.bool:
        raise ValueError(f"reset: expected dtype torch.bool, got {reset.dtype}")
    if reset.shape != data.shape[:-1]:
        raise ValueError(
            f"reset: expected shape {list(data.shape[:-1])}, one for each step of input, "
            f"got {list(reset.shape)}"
        )
    autocast = torch._C._is_any_autocast_enabled()
    if reset_state is not None and reset_state.dtype != data.dtype and not autocast:
        raise ValueError(
            f"reset_state: expected dtype {data.dtype} (that of input), got {reset_state.dtype}"
        )
    for name, tensor in (("reset", reset), ("reset_state", reset_state)):
        if tensor is not None and tensor.device != data.device:
            raise ValueError(
                f"{name}: expected on {data.device} (where input is), got {tensor.device}"
            )


def _check_options(
    weights: Sequence[Tensor],
    nonlinearity: str,
    bias: bool,
    num_layers: int,
    dropout: float,
    bidirectional: bool,
) -> int:
    if nonlinearity not in _NONLINEARITIES:
        names = ", ".join(f"'{name}'" for name in _NONLINEARITIES)
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from {names}.")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability in [0, 1], got {dropout}")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    expected = num_layers * (2 if bidirectional else 1) * (4 if bias else 2)
    if len(weights) != expected:
        raise ValueError(
            f"weights: expected {expected} tensors (num_layers={num_layers}, "
            f"bidirectional={bidirectional}, bias={bias}), got {len(weights)}"
        )
    return _NONLINEARITIES[nonlinearity]


def _check_clip(given: tuple[str, float], noise: StateNoise | None) -> _ops.Clip:
    """The operators' code and limit."""
    kind, limit = given if isinstance(given, (tuple, list)) and len(given) == 2 else (None, None)
    numeric = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not (isinstance(kind, str) and kind in _CLIPS and numeric):
        raise ValueError(
            f"clip_state_grad: expected ('norm', limit), ('value', limit) or None, got {given!r}"
        )
    if not 0 < limit < math.inf:
        raise ValueError(f"clip_state_grad: expected a finite limit above 0, got {limit}")
    if noise is not None:
        raise ValueError("clip_state_grad: expected no recurrent_dropout and no zoneout, got one")
    return _CLIPS[kind], float(limit)


def _check_checkpoint(every: int, packed: bool, bidirectional: bool) -> None:
    if every < 1:
        raise ValueError(f"checkpoint_every: expected a number of steps >= 1, got {every}")
    if packed:
        raise ValueError("checkpoint_every: expected a padded sequence, got a PackedSequence")
    if bidirectional:
        raise ValueError(
            "checkpoint_every: expected one direction, got bidirectional=True "
            "(the second direction reads each layer's whole output from its end)"
        )


def _check_tensors(
    data: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    directions: int,
    batch_sizes: Tensor | None,
    states: tuple[int, int, int],
) -> None:
    """Shapes, dtypes and devices; in the words of ``nn.RNN`` and its ATen, and in their order."""
    weight = weights[0]
    autocast = torch._C._is_any_autocast_enabled()
    if data.dtype != weight.dtype and not autocast:
        raise ValueError(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})"
        )
    expected_dim = 3 if batch_sizes is None else 2
    if data.dim() != expected_dim:
        raise RuntimeError(f"input must have {expected_dim} dimensions, got {data.dim()}")
    if weight.size(-1) != data.size(-1):
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {weight.size(-1)}, got {data.size(-1)}"
        )
    if hx.shape != states:
        raise RuntimeError(f"Expected hidden size {states}, got {list(hx.shape)}")
    if hx.device != data.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, found input tensor at "
            f"{data.device} and hidden tensor at {hx.device}"
        )
    dtype, device = data.dtype, data.device
    # Dynamo warns of a cache, and looks past it.
    weight_shapes = _weight_shapes if torch.compiler.is_dynamo_compiling() else _cached_shapes
    shapes = weight_shapes(data.size(-1), states[2], len(weights), bias, directions)
    for index, (tensor, shape) in enumerate(zip(weights, shapes, strict=True)):
        if tensor.device != device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{device} and parameter tensor at {tensor.device}"
            )
        if tensor.dtype != dtype and not autocast:
            raise RuntimeError(
                f"{'self' if bias else 'mat1'} and mat2 must have the same dtype, "
                f"but got {_scalar_type(dtype)} and {_scalar_type(tensor.dtype)}"
            )
        if tensor.shape != shape:
            raise RuntimeError(
                f"weights[{index}]: expected shape {list(shape)}, got {list(tensor.shape)}"
            )
    if hx.dtype != data.dtype and not autocast:
        raise RuntimeError(
            "mat1 and mat2 must have the same dtype, "
            f"but got {_scalar_type(hx.dtype)} and {_scalar_type(data.dtype)}"
        )


def _weight_shapes(
    input_size: int, hidden_size: int, count: int, bias: bool, directions: int
) -> list[tuple[int, ...]]:
    """The shapes of ``weights``."""
    biases = [(hidden_size,)] * 2 if bias else []
    first = [(hidden_size, input_size), (hidden_size, hidden_size), *biases] * directions
    above = [(hidden_size, directions * hidden_size), (hidden_size, hidden_size), *biases]
    return (first + above * count)[:count]


#: Making the shapes costs more than comparing them.
_cached_shapes = lru_cache(maxsize=256)(_weight_shapes)


def _scalar_type(dtype: torch.dtype) -> str:
    """The name that ATen's messages give a dtype."""
    names = {torch.float64: "Double", torch.float32: "Float", torch.float16: "Half"}
    return names.get(dtype, "BFloat16" if dtype == torch.bfloat16 else str(dtype))
