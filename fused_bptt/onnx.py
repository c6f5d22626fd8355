"""ONNX: a layer as ONNX's own RNN operator, for ``torch.onnx.export``.

Importing this module needs the optional extra ``fused-bptt[onnx]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
from onnxscript import opset18 as op

from . import _ops

_ACTIVATIONS = {
    _ops.TANH: "Tanh",
    _ops.RELU: "Relu",
    _ops.SIGMOID: "Sigmoid",
    _ops.SOFTPLUS: "Softplus",
    _ops.IDENTITY: "Affine",
}


def _layer(
    x: onnxscript.FLOAT,
    weight_ih: onnxscript.FLOAT,
    weight_hh: onnxscript.FLOAT,
    bias_ih: onnxscript.FLOAT | None,
    bias_hh: onnxscript.FLOAT | None,
    h0: onnxscript.FLOAT,
    batch_sizes: onnxscript.INT64 | None,
    reverse_groups: int,
    nonlinearity: int,
    reset: onnxscript.BOOL | None = None,
    reset_state: onnxscript.FLOAT | None = None,
) -> Any:
    if reset is not None:
        raise NotImplementedError("fused_bptt.onnx: reset has no counterpart in ONNX's RNN")
    if batch_sizes is not None:
        raise NotImplementedError(
            "fused_bptt.onnx: a PackedSequence has no counterpart in ONNX; export the module for "
            "padded input"
        )
    directions = reverse_groups + 1
    hidden_size = h0.shape[2]
    W = op.Reshape(weight_ih, op.Constant(value_ints=[directions, hidden_size, -1]))
    R = op.Reshape(weight_hh, op.Constant(value_ints=[directions, hidden_size, hidden_size]))
    B = None
    if bias_ih is not None:
        pair = op.Constant(value_ints=[directions, hidden_size])
        B = op.Concat(op.Reshape(bias_ih, pair), op.Reshape(bias_hh, pair), axis=1)
    affine = {}
    if nonlinearity == _ops.IDENTITY:  # alpha x + beta; ONNX gives them no defaults
        affine = {"activation_alpha": [1.0] * directions, "activation_beta": [0.0] * directions}
    Y, Y_h = op.RNN(
        x,
        W,
        R,
        B,
        None,
        h0,
        activations=[_ACTIVATIONS[nonlinearity]] * directions,
        direction="bidirectional" if directions == 2 else "forward",
        hidden_size=hidden_size,
        **affine,
    )
    # [T, D, B, H] to [T, B, D * H].
    Y = op.Transpose(Y, perm=[0, 2, 1, 3])
    return op.Reshape(Y, op.Constant(value_ints=[0, 0, directions * hidden_size])), Y_h


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {_ops.LAYER: _layer}
