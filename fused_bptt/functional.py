"""The stateless RNN: ``torch.nn.RNN``'s semantics, weights as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _ops
from ._autograd import layer

_NONLINEARITIES = {"tanh": _ops.TANH, "relu": _ops.RELU}


@overload
def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = ...,
    bias: bool = ...,
    num_layers: int = ...,
    dropout: float = ...,
    training: bool = ...,
    bidirectional: bool = ...,
    batch_first: bool = ...,
    reset: Tensor | None = ...,
    reset_state: Tensor | None = ...,
    bptt_window: int = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def rnn(
    input: PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = ...,
    bias: bool = ...,
    num_layers: int = ...,
    dropout: float = ...,
    training: bool = ...,
    bidirectional: bool = ...,
    batch_first: bool = ...,
    reset: Tensor | None = ...,
    reset_state: Tensor | None = ...,
    bptt_window: int = ...,
) -> tuple[PackedSequence, Tensor]: ...


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
) -> tuple[Tensor | PackedSequence, Tensor]:
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
        nonlinearity: φ, ``"tanh"`` or ``"relu"``. Default ``"tanh"``.
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

    Returns:
        ``(output, h_n)``: output [T, B, D * H] (shaped as ``input``, packed if it was) holds the
        last layer's h_t; h_n [num_layers * D, B, H] holds each layer's and direction's last h.

    Raises:
        ValueError, RuntimeError: an argument does not fit, in ``nn.RNN``'s words where it has some.
    """
    if bptt_window < 0:
        raise ValueError(f"bptt_window: expected 0 (none) or more steps, got {bptt_window}")
    if reset_state is not None and reset is None:
        raise ValueError("reset_state: expected with reset, got it alone")
    if reset is not None:
        _check_reset(reset, input, reset_state)
    phi = _check_options(weights, nonlinearity, bias, num_layers, dropout, bidirectional)
    if isinstance(input, PackedSequence):
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and torch.compiler.is_compiling():
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
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(data.device.type):
        data, hx, *weights = (_autocast(tensor) for tensor in (data, hx, *weights))
        reset_state = reset_state if reset_state is None else _autocast(reset_state)

    per_direction = 4 if bias else 2
    last_states = []
    for depth in range(num_layers):
        begin, end = depth * directions, (depth + 1) * directions
        data, last = layer(
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
        last_states.append(last)
        if dropout > 0 and training and depth < num_layers - 1:
            data = F.dropout(data, dropout, training=True)
    h_n = last_states[0] if num_layers == 1 else torch.cat(last_states)

    if batch_sizes is not None:
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
        return PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices), h_n
    if not batched:
        return data.squeeze(1), h_n.squeeze(1)
    return data.transpose(0, 1) if batch_first else data, h_n


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
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
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
    if tuple(hx.shape) != states:
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
