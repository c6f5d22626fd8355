"""What torch.compile sees of a layer: one call, whose derivatives it does not look into.

Dynamo's own account of an ``autograd.Function`` is not good enough: it refuses one with a ``jvp``,
and inside a transform of ``torch.func`` it drops the backward and differentiates through the
operators, which gives wrong gradients without a word. So the call goes into the graph as it is, and
AOTAutograd, which runs it with torch's own autograd and transforms, sees the operators.

Imported when Dynamo first traces a layer: it needs ``torch._dynamo``, which takes a second to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _leaky, _leaky_layer, _lengths


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def layer(
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    phi: int,
    directions: int,
    parameters: Sequence[Tensor],
    reset: Tensor | None,
    reset_state: Tensor | None,
    window: int,
    clip: tuple[int, float] | None,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._autograd.layer`."""
    options = (reset, reset_state, window, clip)
    return _autograd.layer(x, h0, batch_sizes, phi, directions, parameters, *options)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def leaky_layer(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`fused_bptt._leaky_layer.leaky_layer`."""
    return _leaky_layer.leaky_layer(*arguments)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def leaky_recurrence(*arguments: Any) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._leaky.leaky_recurrence`."""
    return _leaky.leaky_recurrence(*arguments)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def asserted_lengths(lengths: Tensor, T: int) -> Tensor:
    """:func:`fused_bptt._lengths.asserted`."""
    return _lengths.asserted(lengths, T)
