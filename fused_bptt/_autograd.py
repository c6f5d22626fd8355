"""The derivatives of the two primitives: the table of docs/design.md, and nothing else.

Notation: h, s, q, v, u are sequences [T, B, G, H] (packed: [N, G, H]); W is weight [G, H, H].
Both primitives are closed under differentiation, so every order of reverse mode runs in the same
two kernels; what is left are dense products over all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._steps import Steps


def layer(
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    phi: int,
    directions: int,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """One layer of the RNN, differentiable in x, h0 and the parameters.

    Args:
        x: [T, B, I], contiguous, or packed rows [N, I] with ``batch_sizes``.
        h0: [D, B, H].
        batch_sizes: int64 [T] on the CPU, or None.
        phi: ``_ops.TANH`` or ``_ops.RELU``.
        directions: D; the second direction walks time backwards.
        parameters: of each direction: weight_ih, weight_hh[, bias_ih, bias_hh].

    Returns:
        h [T, B, D * H] or [N, D * H], which is saved for backward; and the last h of each
        direction [D, B, H]. All tensors are of one dtype and device.

    Raises:
        RuntimeError: a shape, dtype or device is not as above.
    """
    if torch.is_grad_enabled():
        return _apply(Layer, x, h0, batch_sizes, phi, directions, *parameters)  # type: ignore[no-any-return]
    return Layer.forward(x, h0, batch_sizes, phi, directions, *parameters)


def linear_recurrence(
    factor: Tensor,
    v: Tensor | None,
    weight: Tensor,
    s0: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    derivative: int,
    adjoint: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._ops.linear_recurrence`, differentiable in factor, v, weight and s0."""
    args = (factor, v, weight, s0, batch_sizes, reverse_groups, derivative, adjoint)
    if torch.is_grad_enabled():
        return _apply(LinearRecurrence, *args)  # type: ignore[no-any-return]
    return _ops.linear_recurrence(*args)


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply``, without binding default arguments in an eager call: ours have none."""
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


class Layer(torch.autograd.Function):
    """One layer, all its directions: u_t = W_ih x_t + b_ih + b_hh, h_t = φ(u_t + W_hh h_{t-1}).

    The input projection is in the same node of the graph as the recurrence: six nodes instead of
    one would cost a short sequence more than its arithmetic does, and u need not be kept.
    Backward is BPTT; it needs nothing saved but x and h. Where the library has a whole layer in one
    operator, that is used; where it has not, and for a graph of the gradients, the recurrence and
    its adjoint are, with torch's own products around them.
    """

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        batch_sizes: Tensor | None,
        phi: int,
        directions: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh = _stack(parameters, directions)
        if _ops.has_layer(x):
            return _ops.layer(
                x, weight_ih, weight_hh, bias_ih, bias_hh, h0, batch_sizes, directions - 1, phi
            )
        transposed = weight_ih.t()
        if bias_ih is None or bias_hh is None:
            rows = torch.mm(_rows(x), transposed)
        else:
            rows = torch.addmm(bias_ih + bias_hh, _rows(x), transposed)
        # u, until the recurrence overwrites it. Not a view of rows, as F.linear would give:
        # autograd refuses every change in place of a view that a node returns.
        h = _ops.unsafe_view(rows, [*x.shape[:-1], weight_ih.size(0)])
        u = _split(h, directions)
        return h, _ops.recurrence_(u, weight_hh, h0, batch_sizes, directions - 1, phi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, h0, batch_sizes, ctx.phi, ctx.directions, *parameters = inputs
        weights = [weight for weight in parameters if weight.dim() == 2]
        ctx.save_for_backward(output[0], x, h0, batch_sizes, *weights)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Tensor | None, ...]:
        h, x, h0, batch_sizes, *weights = ctx.saved_tensors
        need_x, _, _, _, _, *need = ctx.needs_input_grad
        step = len(need) // ctx.directions
        weight_ih, weight_hh, _, _ = _stack(weights, ctx.directions)
        gradients = layer_backward(
            g,
            g_n,
            h,
            x,
            weight_ih,
            weight_hh,
            h0,
            batch_sizes,
            ctx.directions - 1,
            ctx.phi,
            need_x,
            any(need[0::step]),
            any(need[1::step]),
            step == 4 and any(need[2::step] + need[3::step]),
        )
        x_bar, h0_bar, *bars = gradients
        ways = [bars] if ctx.directions == 1 else zip(*map(_halves, bars), strict=True)
        # The two biases have one gradient, and the very same tensor: only then does torch see that
        # each parameter needs a copy of its own.
        of_parameters = [
            bar
            for weight_ih_bar, weight_hh_bar, bias_bar in ways
            for bar in (weight_ih_bar, weight_hh_bar, bias_bar, bias_bar)[:step]
        ]
        return x_bar, h0_bar, None, None, None, *of_parameters


def layer_backward(
    g: Tensor | None,
    g_n: Tensor | None,
    h: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    phi: int,
    need_x: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_bias: bool,
) -> tuple[Tensor | None, ...]:
    """:func:`fused_bptt._ops.layer_backward`, differentiable, on every device and dtype."""
    if _ops.has_layer(x) and not torch.is_grad_enabled():
        return _ops.layer_backward(
            g,
            g_n,
            h,
            x,
            weight_ih,
            weight_hh,
            h0,
            batch_sizes,
            reverse_groups,
            phi,
            need_x,
            need_weight_ih,
            need_weight_hh,
            need_bias,
        )
    directions = reverse_groups + 1
    # q_t = φ'(h_t) ⊙ (g_t + W_hhᵀ q_{t+1}) is the cotangent of u_t, W_hhᵀ q_1 that of h_0.
    q, h0_bar = linear_recurrence(
        _split(h, directions),
        None if g is None else _split(g, directions),
        weight_hh,
        g_n,
        batch_sizes,
        reverse_groups,
        phi,
        True,
    )
    rows = _rows(q.flatten(-2) if directions > 1 else q)
    weight_hh_bar = None
    if need_weight_hh:  # Σ_t q_t h_{t-1}ᵀ
        steps = Steps(x, batch_sizes, directions, reverse_groups)
        sums = steps.sums_of_products(rows, _rows(h), h0)
        weight_hh_bar = sums[0] if directions == 1 else torch.stack(sums)
    return (
        torch.mm(rows, weight_ih).view(*x.shape) if need_x else None,
        h0_bar,
        torch.mm(rows.t(), _rows(x)) if need_weight_ih else None,  # Σ_t q_t x_tᵀ
        weight_hh_bar,
        rows.sum(0) if need_bias else None,  # Σ_t q_t
    )


class LinearRecurrence(torch.autograd.Function):
    """s_t = d_t ⊙ (v_t + W s_{t-1}), or its adjoint. Each is the other's backward."""

    @staticmethod
    def forward(
        factor: Tensor,
        v: Tensor | None,
        weight: Tensor,
        s0: Tensor | None,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        derivative: int,
        adjoint: bool,
    ) -> tuple[Tensor, Tensor]:
        return _ops.linear_recurrence(
            factor, v, weight, s0, batch_sizes, reverse_groups, derivative, adjoint
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        factor, v, weight, s0, batch_sizes, ctx.reverse_groups, ctx.derivative, ctx.adjoint = inputs
        ctx.save_for_backward(output[0], factor, v, weight, s0, batch_sizes)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, c_last: Tensor | None) -> tuple[Tensor | None, ...]:
        s, factor, v, weight, s0, batch_sizes = ctx.saved_tensors
        need_factor, need_v, need_weight, need_s0, *_ = ctx.needs_input_grad
        reverse = ctx.reverse_groups
        p, s0_bar = linear_recurrence(
            factor, c, weight, c_last, batch_sizes, reverse, ctx.derivative, not ctx.adjoint
        )
        # Of the pair s and p one is the walk x_t = d_t ⊙ (. + W x_{t-1}) from x_0, the other its
        # adjoint y_t = d_t ⊙ (. + r_t), r_t = Wᵀ y_{t+1} from r_T.
        x, y, x_in, y_in = (p, s, c, v) if ctx.adjoint else (s, p, v, c)
        x_0, r_last = (c_last, s0) if ctx.adjoint else (s0, c_last)
        groups = weight.size(0) if weight.dim() == 3 else 1
        steps = Steps(s, batch_sizes, groups, reverse)

        factor_bar = None
        if need_factor and ctx.derivative != _ops.RELU:  # [h > 0] has derivative zero
            before = _multiply(steps.previous(x, x_0), weight.mT)
            r = steps.following(_multiply(y, weight), r_last)
            d_bar = (before if x_in is None else before + x_in) * (r if y_in is None else r + y_in)
            factor_bar = d_bar if ctx.derivative == _ops.GIVEN else -2 * factor * d_bar
        weight_bar = None
        if need_weight:  # Σ_t y_t x_{t-1}ᵀ
            rows = (steps.rows, groups * weight.size(-1))
            sums = steps.sums_of_products(y.reshape(rows), x.reshape(rows), x_0)
            weight_bar = torch.stack(sums) if weight.dim() == 3 else sums[0]
        return (
            factor_bar,
            p if need_v else None,
            weight_bar,
            s0_bar if need_s0 else None,
            None,
            None,
            None,
            None,
        )


def _stack(
    parameters: Sequence[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """weight_ih [D * H, I], weight_hh [D, H, H] ([H, H] if D = 1), and the biases [D * H] if any."""
    step = len(parameters) // directions
    bias_ih = bias_hh = None
    if directions == 1:
        if step == 4:
            bias_ih, bias_hh = parameters[2], parameters[3]
        return parameters[0], parameters[1], bias_ih, bias_hh
    weight_ih, weight_hh, *biases = (tuple(parameters[i::step]) for i in range(step))
    if biases:
        bias_ih, bias_hh = torch.cat(biases[0]), torch.cat(biases[1])
    return torch.cat(weight_ih), torch.stack(weight_hh), bias_ih, bias_hh


def _split(x: Tensor, directions: int) -> Tensor:
    """[..., D * H] as [..., D, H]; one direction is not told apart."""
    if directions == 1:
        return x
    return x.view(*x.shape[:-1], directions, x.size(-1) // directions)


def _halves(x: Tensor | None) -> Sequence[Tensor | None]:
    """[2, H, H] or [2 * H, ...] as two tensors [H, ...]; of nothing, nothing twice."""
    if x is None:
        return None, None
    return x.unbind() if x.dim() == 3 else x.chunk(2)


def _rows(x: Tensor) -> Tensor:
    """[..., N] as [rows, N]."""
    return x if x.dim() == 2 else x.flatten(0, -2)


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Each row of x [..., G, H] times its group's matrix [G, H, H]; G may be left out."""
    if weight.dim() == 2:
        return x @ weight
    rows = x.reshape(-1, *weight.shape[:2]).transpose(0, 1)
    return torch.bmm(rows, weight).transpose(0, 1).reshape(x.shape)
