"""The derivatives of the two primitives: the table of docs/design.md, and nothing else.

Notation: h, s, q, v, u are sequences [T, B, G, H] (packed: [N, G, H]); W is weight [G, H, H].
Both primitives are closed under differentiation, so every order of reverse mode runs in the same
two kernels; what is left are dense products over all steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._steps import Steps


def recurrence(
    u: Tensor,
    weight: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
) -> Tensor:
    """:func:`fused_bptt._ops.recurrence`, differentiable in u, weight and h0."""
    if torch.is_grad_enabled():
        return Recurrence.apply(u, weight, h0, batch_sizes, reverse_groups, nonlinearity)
    return _ops.recurrence(u, weight, h0, batch_sizes, reverse_groups, nonlinearity)


def linear_recurrence(
    factor: Tensor,
    v: Tensor,
    weight: Tensor,
    s0: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    derivative: int,
    adjoint: bool,
) -> Tensor:
    """:func:`fused_bptt._ops.linear_recurrence`, differentiable in factor, v, weight and s0."""
    if torch.is_grad_enabled():
        return LinearRecurrence.apply(
            factor, v, weight, s0, batch_sizes, reverse_groups, derivative, adjoint
        )
    return _ops.linear_recurrence(
        factor, v, weight, s0, batch_sizes, reverse_groups, derivative, adjoint
    )


class Recurrence(torch.autograd.Function):
    """h_t = φ(u_t + W h_{t-1}). Backward is BPTT; it needs nothing saved but h."""

    @staticmethod
    def forward(
        u: Tensor,
        weight: Tensor,
        h0: Tensor,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        nonlinearity: int,
    ) -> Tensor:
        return _ops.recurrence(u, weight, h0, batch_sizes, reverse_groups, nonlinearity)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, h0, batch_sizes, ctx.reverse_groups, ctx.nonlinearity = inputs
        ctx.save_for_backward(output, weight, h0, batch_sizes)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 6
        h, weight, h0, batch_sizes = ctx.saved_tensors
        need_u, need_weight, need_h0, *_ = ctx.needs_input_grad
        # q_t = φ'(h_t) ⊙ (g_t + Wᵀ q_{t+1}) is the cotangent of u_t.
        q = linear_recurrence(
            h, g, weight, None, batch_sizes, ctx.reverse_groups, ctx.nonlinearity, True
        )
        steps = Steps(h, batch_sizes, ctx.reverse_groups, adjoint=False)
        return (
            q if need_u else None,
            steps.sum_of_products(q, h, h0) if need_weight else None,  # Σ_t q_t h_{t-1}ᵀ
            steps.first(q) @ weight if need_h0 else None,  # Wᵀ q_1
            None,
            None,
            None,
        )


class LinearRecurrence(torch.autograd.Function):
    """s_t = d_t ⊙ (v_t + W s_{t-1}), or its adjoint."""

    @staticmethod
    def forward(
        factor: Tensor,
        v: Tensor,
        weight: Tensor,
        s0: Tensor | None,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        derivative: int,
        adjoint: bool,
    ) -> Tensor:
        return _ops.linear_recurrence(
            factor, v, weight, s0, batch_sizes, reverse_groups, derivative, adjoint
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        factor, v, weight, s0, batch_sizes, ctx.reverse_groups, ctx.derivative, ctx.adjoint = inputs
        ctx.save_for_backward(output, factor, v, weight, s0, batch_sizes)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
        if c is None:
            return (None,) * 8
        s, factor, v, weight, s0, batch_sizes = ctx.saved_tensors
        need_factor, need_v, need_weight, need_s0, *_ = ctx.needs_input_grad
        p = linear_recurrence(
            factor,
            c,
            weight,
            None,
            batch_sizes,
            ctx.reverse_groups,
            ctx.derivative,
            not ctx.adjoint,
        )
        steps = Steps(s, batch_sizes, ctx.reverse_groups, adjoint=ctx.adjoint)
        # As row vectors, the walk multiplies by `ahead` and its adjoint by `back`.
        ahead, back = (weight, weight.mT) if ctx.adjoint else (weight.mT, weight)

        factor_bar = None
        if need_factor and ctx.derivative != _ops.RELU:  # [h > 0] has derivative zero
            other_way = Steps(s, batch_sizes, ctx.reverse_groups, adjoint=not ctx.adjoint)
            d_bar = (c + _multiply(other_way.previous(p, None), back)) * (
                v + _multiply(steps.previous(s, s0), ahead)
            )
            factor_bar = d_bar if ctx.derivative == _ops.GIVEN else -2 * factor * d_bar
        weight_bar = None
        if need_weight:
            weight_bar = steps.sum_of_products(p, s, s0)
            if ctx.adjoint:
                weight_bar = weight_bar.mT
        return (
            factor_bar,
            p if need_v else None,
            weight_bar,
            steps.first(p) @ back if need_s0 else None,
            None,
            None,
            None,
            None,
        )


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Each row of x [..., G, H] times its group's matrix [G, H, H]."""
    return (x.unsqueeze(-2) @ weight).squeeze(-2) if x.size(-2) != 1 else x @ weight[0]
