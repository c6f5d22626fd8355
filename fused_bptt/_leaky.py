"""The derivatives of the recurrences with a leak: the second table of docs/design.md.

Notation: x is the state that leaks, h or v; r = φ(.); k = keep, a = gain, d a slope. Sequences are
[T, B, G, H] (packed: [N, G, H]); W is weight [G, H, H].

As in _autograd.py every derivative, of any order and in both modes, is made of walks over time, of
dense products over all steps, and of operations entry by entry. The walks are four: outer and inner
and the adjoint of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops
from ._algebra import activate, add, groups_of, multiply, primals, slope, sum_of_products
from ._batching import Places, batched
from ._steps import Steps


def leaky_recurrence(
    u: Tensor,
    keep: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    initial: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    phi: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._ops.leaky_recurrence`.

    Differentiable in u, keep, gain, weight, initial and reset_state; over the multiples of
    ``window`` in time no derivative is carried.
    """
    if gain is None and reset is not None and reset_state is None:
        reset_state = torch.zeros_like(initial)  # φ(0) need not be zero
    return LeakyRecurrence.apply(  # type: ignore[no-untyped-call, no-any-return]
        u,
        keep,
        gain,
        weight,
        initial,
        batch_sizes,
        reverse_groups,
        phi,
        reset,
        reset_state,
        window,
    )


def leaky_linear(
    w: Tensor,
    keep: Tensor,
    factor: Tensor,
    weight: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    inner: bool,
    adjoint: bool,
    reset: Tensor | None,
    window: int,
) -> Tensor:
    """:func:`fused_bptt._ops.leaky_linear`, differentiable in w, keep, factor and weight."""
    walk = (batch_sizes, reverse_groups, inner, adjoint, reset, window)
    return LeakyLinear.apply(w, keep, factor, weight, *walk)  # type: ignore[no-untyped-call, no-any-return]


class LeakyRecurrence(torch.autograd.Function):
    """h_t = k_t ⊙ h_{t-1} + a_t ⊙ r_t, r_t = φ(u_t + W h_{t-1}); or, where there is no a,
    v_t = k_t ⊙ v_{t-1} + u_t + W r_{t-1}, r_t = φ(v_t)."""

    @staticmethod
    def forward(
        u: Tensor,
        keep: Tensor,
        gain: Tensor | None,
        weight: Tensor,
        initial: Tensor,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        phi: int,
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
    ) -> tuple[Tensor, Tensor]:
        walk = (batch_sizes, reverse_groups, phi, reset, reset_state)
        return _ops.leaky_recurrence(u, keep, gain, weight, initial, *walk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, keep, gain, weight, initial, batch_sizes, ctx.reverse_groups, ctx.phi, *cuts = inputs
        reset, reset_state, ctx.window = cuts
        saved = (*output, keep, gain, weight, initial, batch_sizes, reset, reset_state)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_rate: Tensor | None) -> tuple[Tensor | None, ...]:
        x, r, keep, gain, weight, initial, batch_sizes, reset, reset_state = ctx.saved_tensors
        _, need_keep, need_gain, need_weight, need_initial, *_, need_other, _ = ctx.needs_input_grad
        phi, reverse = ctx.phi, ctx.reverse_groups
        steps = Steps(x, batch_sizes, groups_of(weight), reverse, reset, ctx.window)
        of_rate = None if g_rate is None else slope(r, phi) * g_rate
        if gain is None:
            # y_t is the cotangent of v_t: g_t + k_{t+1} ⊙ y_{t+1} + φ' ⊙ (Wᵀ y_{t+1}).
            given, factor, inner = _plus(g, of_rate), slope(r, phi), True
        else:
            # y_t is the cotangent of h_t: g_t + k_{t+1} ⊙ y_{t+1} + Wᵀ q_{t+1}, where q is that of
            # u, q_t = a_t ⊙ φ' ⊙ y_t and what the cotangent of r adds.
            through = None if of_rate is None else steps.following(multiply(of_rate, weight), None)
            given, factor, inner = _plus(g, through), gain * slope(r, phi), False
        if given is None:
            given = torch.zeros_like(x)
        walk = (batch_sizes, reverse, inner, True, reset, ctx.window)
        y = leaky_linear(given, keep, factor, weight, *walk)
        if gain is None:
            q, sent = y, r
            states = (initial, reset_state)
            start, other = (None if state is None else activate(state, phi) for state in states)
        else:
            q, sent, start, other = _plus(factor * y, of_rate), x, initial, reset_state

        weight_bar = None
        if need_weight:
            weight_bar = sum_of_products(steps, weight, q, sent, start, other, keep=True)
        kept = keep * y if need_initial or need_other else None

        def of_state(state: Tensor | None, sums: Any) -> Tensor | None:
            """The cotangent of a state that a walk begins or goes on with."""
            of_product = sums(q) @ weight
            if gain is None:
                assert state is not None
                of_product = slope(activate(state, phi), phi) * of_product
            return sums(kept) + of_product  # type: ignore[no-any-return]

        return (
            q,
            y * steps.previous(x, initial, reset_state, keep=True) if need_keep else None,
            y * r if need_gain else None,
            weight_bar,
            of_state(initial, steps.to_initial) if need_initial else None,
            None,
            None,
            None,
            None,
            of_state(reset_state, steps.sums_after_resets) if need_other else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        places = Places(sequences=(0, 1, 2), weight=3, states=(4, 9), reset=8, batch_sizes=5)
        return batched(leaky_recurrence, places, info.batch_size, in_dims, arguments)

    @staticmethod
    def jvp(
        ctx: Any,
        u_dot: Tensor | None,
        keep_dot: Tensor | None,
        gain_dot: Tensor | None,
        weight_dot: Tensor | None,
        initial_dot: Tensor | None,
        _batch_sizes: None,
        _reverse_groups: None,
        _phi: None,
        _reset: None,
        reset_state_dot: Tensor | None,
        _window: None,
    ) -> tuple[Tensor, Tensor]:
        with forward_ad._set_fwd_grad_enabled(True):
            x, r, keep, gain, weight, initial, batch_sizes, reset, reset_state = primals(
                ctx.saved_tensors
            )
            phi, reverse = ctx.phi, ctx.reverse_groups
            steps = Steps(x, batch_sizes, groups_of(weight), reverse, reset, ctx.window)
            d = slope(r, phi)
            ends, ends_dot = (initial, reset_state), (initial_dot, reset_state_dot)
            # Of what W multiplies: the states, or their rates.
            sent, sent_ends, sent_dot = x, list(ends), list(ends_dot)
            if gain is None:
                sent, sent_ends = r, [None if end is None else activate(end, phi) for end in ends]
                sent_dot = [
                    None if dot is None else slope(rate, phi) * dot
                    for rate, dot in zip(sent_ends, ends_dot, strict=True)
                ]
            # What a step is handed without the tangent of the step before.
            drive = u_dot
            if weight_dot is not None:
                before = steps.previous(sent, sent_ends[0], sent_ends[1], keep=True)
                drive = add(drive, multiply(before, weight_dot.mT))
            kept = None
            if keep_dot is not None:
                kept = keep_dot * steps.previous(x, initial, reset_state, keep=True)
            if any(dot is not None for dot in ends_dot):
                none = torch.zeros_like(x)
                begun = steps.previous(none, sent_dot[0], sent_dot[1])
                drive = add(drive, multiply(begun, weight.mT))
                kept = add(kept, keep * steps.previous(none, initial_dot, reset_state_dot))
            if gain is None:
                given, factor = _plus(drive, kept), d
            else:
                given = None if drive is None else gain * d * drive
                given, factor = _plus(given, kept), gain * d
                if gain_dot is not None:
                    given = add(given, gain_dot * r)
            if given is None:
                given = torch.zeros_like(x)
            walk = (batch_sizes, reverse, gain is None, False, reset, ctx.window)
            x_dot = leaky_linear(given, keep, factor, weight, *walk)
            if gain is None:
                return x_dot, d * x_dot
            return x_dot, d * add(drive, multiply(steps.previous(x_dot, None), weight.mT))


class LeakyLinear(torch.autograd.Function):
    """outer m_t = w_t + k_t ⊙ m_{t-1} + d_t ⊙ (W m_{t-1}), inner m_t = w_t + k_t ⊙ m_{t-1} +
    W (d_{t-1} ⊙ m_{t-1}), or the adjoint of one. Each is its adjoint's backward."""

    @staticmethod
    def forward(
        w: Tensor,
        keep: Tensor,
        factor: Tensor,
        weight: Tensor,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        inner: bool,
        adjoint: bool,
        reset: Tensor | None,
        window: int,
    ) -> Tensor:
        walk = (batch_sizes, reverse_groups, inner, adjoint, reset, window)
        return _ops.leaky_linear(w, keep, factor, weight, *walk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, keep, factor, weight, batch_sizes, ctx.reverse_groups, *others = inputs
        ctx.inner, ctx.adjoint, reset, ctx.window = others
        saved = (output, keep, factor, weight, batch_sizes, reset)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        m, keep, factor, weight, batch_sizes, reset = ctx.saved_tensors
        _, need_keep, need_factor, need_weight, *_ = ctx.needs_input_grad
        walk = (batch_sizes, ctx.reverse_groups, ctx.inner, not ctx.adjoint, reset, ctx.window)
        p = leaky_linear(g, keep, factor, weight, *walk)
        # Of the pair m and p one is the walk x = A⁻¹ (.), the other its adjoint y = A⁻ᵀ (.).
        x, y = (p, m) if ctx.adjoint else (m, p)
        steps = Steps(m, batch_sizes, groups_of(weight), ctx.reverse_groups, reset, ctx.window)
        factor_bar = weight_bar = None
        if need_factor and ctx.inner:
            factor_bar = x * steps.following(multiply(y, weight), None)
        elif need_factor:
            factor_bar = y * multiply(steps.previous(x, None), weight.mT)
        if need_weight:
            left, right = (y, factor * x) if ctx.inner else (factor * y, x)
            weight_bar = sum_of_products(steps, weight, left, right, None, None)
        keep_bar = y * steps.previous(x, None) if need_keep else None
        return p, keep_bar, factor_bar, weight_bar, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        places = Places(sequences=(0, 1, 2), weight=3, states=(), reset=8, batch_sizes=4)
        return batched(leaky_linear, places, info.batch_size, in_dims, arguments)

    @staticmethod
    def jvp(
        ctx: Any,
        w_dot: Tensor | None,
        keep_dot: Tensor | None,
        factor_dot: Tensor | None,
        weight_dot: Tensor | None,
        *_: Any,
    ) -> Tensor:
        # m = A⁻¹ w has the tangent A⁻¹ (ẇ - Ȧ m): the same walk, and what the other tangents make
        # of m is one more drive.
        with forward_ad._set_fwd_grad_enabled(True):
            m, keep, factor, weight, batch_sizes, reset = primals(ctx.saved_tensors)
            steps = Steps(m, batch_sizes, groups_of(weight), ctx.reverse_groups, reset, ctx.window)
            matrix = weight if ctx.adjoint else weight.mT
            matrix_dot = None
            if weight_dot is not None:
                matrix_dot = weight_dot if ctx.adjoint else weight_dot.mT
            # The adjoint of outer multiplies by d before W, as inner does, and by k before it goes
            # on to the next step.
            before = ctx.inner != ctx.adjoint

            def handed_on(value: Tensor) -> Tensor:
                return steps.following(value, None) if ctx.adjoint else steps.previous(value, None)

            drive = w_dot
            if keep_dot is not None:
                leak = handed_on(keep_dot * m) if ctx.adjoint else keep_dot * handed_on(m)
                drive = add(drive, leak)
            if factor_dot is not None:
                if before:
                    drive = add(drive, handed_on(multiply(factor_dot * m, matrix)))
                else:
                    drive = add(drive, factor_dot * handed_on(multiply(m, matrix)))
            if matrix_dot is not None:
                if before:
                    drive = add(drive, handed_on(multiply(factor * m, matrix_dot)))
                else:
                    drive = add(drive, factor * handed_on(multiply(m, matrix_dot)))
            if drive is None:
                drive = torch.zeros_like(m)
            walk = (batch_sizes, ctx.reverse_groups, ctx.inner, ctx.adjoint, reset, ctx.window)
            return leaky_linear(drive, keep, factor, weight, *walk)


def _plus(x: Tensor | None, y: Tensor | None) -> Any:
    """x + y, where nothing is zero and may be on either side."""
    return x if y is None else add(x, y)
