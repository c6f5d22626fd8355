"""The derivatives of the two primitives: the table of docs/design.md, and nothing else.

Notation: h, s, q, v, u are sequences [T, B, G, H] (packed: [N, G, H]); W is weight [G, H, H].
Both primitives are closed under differentiation, so derivatives of every order, in both modes, run
in the same two kernels; what is left are dense products over all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops
from ._batching import batched
from ._steps import Steps


def layer(
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    phi: int,
    directions: int,
    parameters: Sequence[Tensor],
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """One layer of the RNN, differentiable in x, h0, the parameters and reset_state.

    Args:
        x: [T, B, I], contiguous, or packed rows [N, I] with ``batch_sizes``.
        h0: [D, B, H].
        batch_sizes: int64 [T] on the CPU, or None.
        phi: ``_ops.TANH`` or ``_ops.RELU``.
        directions: D; the second direction walks time backwards.
        parameters: of each direction: weight_ih, weight_hh[, bias_ih, bias_hh].
        reset, reset_state: where the state is replaced, [T, B] or [N], and by what, [D, B, H]; as
            in ``_ops.recurrence_``.
        window: no gradient is carried over its multiples in time; 0 for none.

    Returns:
        h [T, B, D * H] or [N, D * H], which is saved for backward; and the last h of each
        direction [D, B, H]. All tensors are of one dtype and device.

    Raises:
        RuntimeError: a shape, dtype or device is not as above.
    """
    if torch.compiler.is_dynamo_compiling():
        from . import _compiled

        return _compiled.layer(  # type: ignore[no-any-return]
            x, h0, batch_sizes, phi, directions, parameters, reset, reset_state, window
        )
    if _transformed():  # one node fewer is not worth a second set of rules
        weight_ih, weight_hh, bias_ih, bias_hh = _stack(parameters, directions)
        bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
        u = _split(F.linear(x, weight_ih, bias), directions)
        cuts = (reset, reset_state, window)
        h, h_n = recurrence(u, weight_hh, h0, batch_sizes, directions - 1, phi, *cuts)
        return h if directions == 1 else h.flatten(-2), h_n
    if torch.is_grad_enabled():
        # Layer.apply without what it does for functorch and for default arguments: 3 us of Python.
        apply = super(torch.autograd.Function, Layer).apply
        return apply(  # type: ignore[no-any-return, no-untyped-call]
            x, h0, batch_sizes, phi, directions, reset, reset_state, window, *parameters
        )
    return Layer.forward(
        x, h0, batch_sizes, phi, directions, reset, reset_state, window, *parameters
    )


def recurrence(
    u: Tensor,
    weight: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    phi: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._ops.recurrence_` on a copy of u.

    Differentiable in u, weight, h0 and reset_state; over the multiples of ``window`` in time no
    derivative is carried.
    """
    return Recurrence.apply(  # type: ignore[no-untyped-call, no-any-return]
        u, weight, h0, batch_sizes, reverse_groups, phi, reset, reset_state, window
    )


def linear_recurrence(
    factor: Tensor,
    v: Tensor | None,
    weight: Tensor,
    s0: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    derivative: int,
    adjoint: bool,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._ops.linear_recurrence`.

    Differentiable in factor, v, weight, s0 and reset_state.
    """
    walk = (batch_sizes, reverse_groups, derivative, adjoint, reset, reset_state, window)
    args = (factor, v, weight, s0, *walk)
    if torch.is_grad_enabled() or _transformed():
        return LinearRecurrence.apply(*args)  # type: ignore[no-untyped-call, no-any-return]
    return _ops.linear_recurrence(*args)


def _transformed(*cotangents: Tensor | None) -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work.

    Or whether the cotangents are many at once, as ``torch.autograd.grad(is_grads_batched=True)``
    gives them.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    many = any(is_batched(value) for value in cotangents if value is not None)
    return many or forward_ad._current_level >= 0


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
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh = _stack(parameters, directions)
        if _ops.has_layer(x):
            return _ops.layer(
                x,
                weight_ih,
                weight_hh,
                bias_ih,
                bias_hh,
                h0,
                batch_sizes,
                directions - 1,
                phi,
                reset,
                reset_state,
            )
        transposed = weight_ih.t()
        if bias_ih is None or bias_hh is None:
            rows = torch.mm(_rows(x), transposed)
        else:
            rows = torch.addmm(bias_ih + bias_hh, _rows(x), transposed)
        # u, until the recurrence overwrites it. Not a view of rows, as F.linear would give:
        # autograd refuses every change in place of a view that a node returns.
        h = _ops.unsafe_view(rows, [*x.shape[:-1], weight_ih.size(0)])
        walk = (batch_sizes, directions - 1, phi, reset, reset_state)
        return h, _ops.recurrence_(_split(h, directions), weight_hh, h0, *walk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, h0, batch_sizes, ctx.phi, ctx.directions, reset, reset_state, *others = inputs
        ctx.window, *parameters = others
        weights = [weight for weight in parameters if weight.dim() == 2]
        ctx.save_for_backward(output[0], x, h0, batch_sizes, reset, reset_state, *weights)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Tensor | None, ...]:
        h, x, h0, batch_sizes, reset, reset_state, *weights = ctx.saved_tensors
        need_x, _, _, _, _, _, need_reset_state, _, *need = ctx.needs_input_grad
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
            reset,
            reset_state,
            ctx.window,
            need_reset_state,
        )
        x_bar, h0_bar, *bars, reset_state_bar = gradients
        ways = [bars] if ctx.directions == 1 else zip(*map(_halves, bars), strict=True)
        # The two biases have one gradient, and the very same tensor: only then does torch see that
        # each parameter needs a copy of its own.
        of_parameters = [
            bar
            for weight_ih_bar, weight_hh_bar, bias_bar in ways
            for bar in (weight_ih_bar, weight_hh_bar, bias_bar, bias_bar)[:step]
        ]
        return x_bar, h0_bar, None, None, None, None, reset_state_bar, None, *of_parameters


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
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    need_reset_state: bool = False,
) -> tuple[Tensor | None, ...]:
    """:func:`fused_bptt._ops.layer_backward`, differentiable, on every device and dtype.

    And last the gradient of reset_state, which the operator does not give.
    """
    recorded = torch.is_grad_enabled() or _transformed(g, g_n)
    if _ops.has_layer(x) and not recorded and not need_reset_state:
        gradients = _ops.layer_backward(
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
            reset,
            reset_state,
            window,
        )
        return *gradients, None
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
        reset,
        None,
        window,
    )
    rows = _rows(q.reshape(h.shape))
    steps = Steps(x, batch_sizes, directions, reverse_groups, reset, window)
    weight_hh_bar = None
    if need_weight_hh:  # Σ_t q_t h_{t-1}ᵀ
        sums = steps.sums_of_products(rows, _rows(h), h0, reset_state, keep=True)
        weight_hh_bar = sums[0] if directions == 1 else torch.stack(sums)
    return (
        torch.mm(rows, weight_ih).view(*x.shape) if need_x else None,
        h0_bar,
        torch.mm(rows.t(), _rows(x)) if need_weight_ih else None,  # Σ_t q_t x_tᵀ
        weight_hh_bar,
        rows.sum(0) if need_bias else None,  # Σ_t q_t
        steps.sums_after_resets(q) @ weight_hh if need_reset_state else None,
    )


class Recurrence(torch.autograd.Function):
    """h_t = φ(u_t + W h_{t-1}) alone."""

    @staticmethod
    def forward(
        u: Tensor,
        weight: Tensor,
        h0: Tensor,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        phi: int,
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
    ) -> tuple[Tensor, Tensor]:
        h = u.clone(memory_format=torch.contiguous_format)
        walk = (batch_sizes, reverse_groups, phi, reset, reset_state)
        return h, _ops.recurrence_(h, weight, h0, *walk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, weight, h0, batch_sizes, ctx.reverse_groups, ctx.phi, *cuts = inputs
        reset, reset_state, ctx.window = cuts
        saved = (output[0], weight, h0, batch_sizes, reset, reset_state)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Tensor | None, ...]:
        h, weight, h0, batch_sizes, reset, reset_state = ctx.saved_tensors
        _, need_weight, *_, need_reset_state, _ = ctx.needs_input_grad
        walk = (batch_sizes, ctx.reverse_groups, ctx.phi, True, reset, None, ctx.window)
        q, h0_bar = linear_recurrence(h, g, weight, g_n, *walk)
        steps = Steps(h, batch_sizes, _groups(weight), ctx.reverse_groups, reset, ctx.window)
        weight_bar = None
        if need_weight:
            weight_bar = _sum_of_products(steps, weight, q, h, h0, reset_state, keep=True)
        reset_state_bar = steps.sums_after_resets(q) @ weight if need_reset_state else None
        return q, weight_bar, h0_bar, None, None, None, None, reset_state_bar, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        u: Tensor,
        weight: Tensor,
        h0: Tensor,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        phi: int,
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
    ) -> Any:
        def walk(
            sequences: Sequence[Tensor | None],
            weight: Tensor,
            states: Sequence[Tensor | None],
            reset: Tensor | None,
            batch_sizes: Tensor | None,
            reverse_groups: int,
        ) -> tuple[Tensor, Tensor]:
            (u,), (h0, reset_state) = sequences, states
            assert u is not None
            assert h0 is not None
            cuts = (reset, reset_state, window)
            return recurrence(u, weight, h0, batch_sizes, reverse_groups, phi, *cuts)

        states, dims = (h0, reset_state), (*in_dims[:3], in_dims[7], in_dims[6])
        walked = (batch_sizes, reverse_groups)
        return batched(walk, info.batch_size, (u,), weight, states, reset, dims, *walked)

    @staticmethod
    def jvp(
        ctx: Any,
        u_dot: Tensor | None,
        weight_dot: Tensor | None,
        h0_dot: Tensor | None,
        _batch_sizes: None,
        _reverse_groups: None,
        _phi: None,
        _reset: None,
        reset_state_dot: Tensor | None,
        _window: None,
    ) -> tuple[Tensor, Tensor]:
        with forward_ad._set_fwd_grad_enabled(True):
            h, weight, h0, batch_sizes, reset, reset_state = _primals(ctx.saved_tensors)
            v = u_dot
            if weight_dot is not None:
                walk = (batch_sizes, _groups(weight), ctx.reverse_groups, reset, ctx.window)
                before = Steps(h, *walk).previous(h, h0, reset_state, keep=True)
                v = _add(v, _multiply(before, weight_dot.mT))
            cuts = (reset, reset_state_dot, ctx.window)
            return linear_recurrence(
                h, v, weight, h0_dot, batch_sizes, ctx.reverse_groups, ctx.phi, False, *cuts
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
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
    ) -> tuple[Tensor, Tensor]:
        walk = (batch_sizes, reverse_groups, derivative, adjoint, reset, reset_state, window)
        return _ops.linear_recurrence(factor, v, weight, s0, *walk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        factor, v, weight, s0, batch_sizes, ctx.reverse_groups, *others = inputs
        ctx.derivative, ctx.adjoint, reset, reset_state, ctx.window = others
        saved = (output[0], factor, v, weight, s0, batch_sizes, reset, reset_state)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, c_last: Tensor | None) -> tuple[Tensor | None, ...]:
        s, factor, v, weight, s0, batch_sizes, reset, reset_state = ctx.saved_tensors
        need_factor, need_v, need_weight, need_s0, *_, need_reset_state, _ = ctx.needs_input_grad
        walk = (batch_sizes, ctx.reverse_groups, ctx.derivative, not ctx.adjoint)
        cuts = (reset, None, ctx.window)
        p, s0_bar = linear_recurrence(factor, c, weight, c_last, *walk, *cuts)
        # Of the pair s and p one is the walk x_t = d_t ⊙ (. + W x_{t-1}) from x_0, the other its
        # adjoint y_t = d_t ⊙ (. + r_t), r_t = Wᵀ y_{t+1} from r_T.
        x, y, x_in, y_in = (p, s, c, v) if ctx.adjoint else (s, p, v, c)
        x_0, r_last = (c_last, s0) if ctx.adjoint else (s0, c_last)
        steps = Steps(s, batch_sizes, _groups(weight), ctx.reverse_groups, reset, ctx.window)

        factor_bar = None
        if need_factor and ctx.derivative != _ops.RELU:  # [h > 0] has derivative zero
            before = _multiply(steps.previous(x, x_0, reset_state), weight.mT)
            r = steps.following(_multiply(y, weight), r_last)
            d_bar = (before if x_in is None else before + x_in) * (r if y_in is None else r + y_in)
            factor_bar = d_bar if ctx.derivative == _ops.GIVEN else -2 * factor * d_bar
        weight_bar = None
        if need_weight:
            weight_bar = _sum_of_products(steps, weight, y, x, x_0, reset_state)
        return (
            factor_bar,
            p if need_v else None,
            weight_bar,
            s0_bar if need_s0 else None,
            None,
            None,
            None,
            None,
            None,
            steps.sums_after_resets(p) @ weight if need_reset_state else None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        factor: Tensor,
        v: Tensor | None,
        weight: Tensor,
        s0: Tensor | None,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        derivative: int,
        adjoint: bool,
        reset: Tensor | None,
        reset_state: Tensor | None,
        window: int,
    ) -> Any:
        def walk(
            sequences: Sequence[Tensor | None],
            weight: Tensor,
            states: Sequence[Tensor | None],
            reset: Tensor | None,
            batch_sizes: Tensor | None,
            reverse_groups: int,
        ) -> tuple[Tensor, Tensor]:
            (factor, v), (s0, reset_state) = sequences, states
            assert factor is not None
            walked = (batch_sizes, reverse_groups, derivative, adjoint)
            cuts = (reset, reset_state, window)
            return linear_recurrence(factor, v, weight, s0, *walked, *cuts)

        sequences, states = (factor, v), (s0, reset_state)
        dims = (*in_dims[:4], in_dims[9], in_dims[8])
        walked = (batch_sizes, reverse_groups)
        return batched(walk, info.batch_size, sequences, weight, states, reset, dims, *walked)

    @staticmethod
    def jvp(
        ctx: Any,
        factor_dot: Tensor | None,
        v_dot: Tensor | None,
        weight_dot: Tensor | None,
        s0_dot: Tensor | None,
        _batch_sizes: None,
        _reverse_groups: None,
        _derivative: None,
        _adjoint: None,
        _reset: None,
        reset_state_dot: Tensor | None,
        _window: None,
    ) -> tuple[Tensor, Tensor]:
        # ṡ_t = e_t + d_t ⊙ (v̇_t + Ẇ s_{t-1} + W ṡ_{t-1}) with e_t = ḋ_t ⊙ (v_t + W s_{t-1}). So
        # ṡ - e is a linear recurrence with the same d and W, driven by v̇_t + Ẇ s_{t-1} + W e_{t-1}.
        # Likewise the adjoint, with Wᵀ and the step after in place of the step before.
        with forward_ad._set_fwd_grad_enabled(True):
            s, factor, v, weight, s0, batch_sizes, reset, reset_state = _primals(ctx.saved_tensors)
            derivative, adjoint = ctx.derivative, ctx.adjoint
            walk = (batch_sizes, _groups(weight), ctx.reverse_groups, reset, ctx.window)
            steps = Steps(s, *walk)

            def carried(
                matrix: Tensor, x: Tensor, end: Tensor | None, replacement: Tensor | None
            ) -> Tensor:
                """What each step is handed: W x_{t-1}; or Wᵀ x_{t+1}, `end` after the last."""
                if adjoint:
                    return steps.following(_multiply(x, matrix), end)
                return _multiply(steps.previous(x, end, replacement), matrix.mT)

            e = None
            if factor_dot is not None and derivative != _ops.RELU:
                d_dot = factor_dot if derivative == _ops.GIVEN else -2 * factor * factor_dot
                e = d_dot * _add(v, carried(weight, s, s0, reset_state))
            drive = v_dot
            if weight_dot is not None:
                none = None if adjoint else s0  # s0 of the adjoint has been multiplied already
                drive = _add(drive, carried(weight_dot, s, none, reset_state))
            if e is not None:
                drive = _add(drive, carried(weight, e, None, None))
            walked = (batch_sizes, ctx.reverse_groups, derivative, adjoint)
            cuts = (reset, reset_state_dot, ctx.window)
            s_dot, last_dot = linear_recurrence(factor, drive, weight, s0_dot, *walked, *cuts)
            if adjoint and weight_dot is not None:
                last_dot = last_dot + steps.to_initial(_multiply(s, weight_dot))
            if e is not None:
                last_dot = last_dot + (
                    steps.to_initial(_multiply(e, weight)) if adjoint else steps.last(e)
                )
            return _add(e, s_dot), last_dot


def _stack(
    parameters: Sequence[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """weight_ih [D * H, I], weight_hh [D, H, H] ([H, H] if D = 1), biases [D * H] or None."""
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


def _primals(saved: Sequence[Tensor | None]) -> list[Any]:
    """Of what ``jvp`` finds saved, the values without the tangents that ``jvp`` is to make.

    torch calls ``jvp`` with forward mode off, so tangents of tangents would be lost: zero instead
    of a second derivative. With forward mode on, the saved tensors' own tangents must not count.
    """
    return [
        x if x is None or not x.is_floating_point() else forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-untyped-call]
        for x in saved
    ]


def _groups(weight: Tensor) -> int:
    """G of weight [G, H, H]; 1 of [H, H]."""
    return weight.size(0) if weight.dim() == 3 else 1


def _add(x: Tensor | None, y: Tensor) -> Tensor:
    """x + y, where nothing is zero."""
    return y if x is None else x + y


def _sum_of_products(
    steps: Steps,
    weight: Tensor,
    y: Tensor,
    x: Tensor,
    x0: Tensor | None,
    replacement: Tensor | None,
    keep: bool = False,
) -> Tensor:
    """:meth:`Steps.sums_of_products` of sequences, of weight's shape."""
    rows = (steps.rows, _groups(weight) * weight.size(-1))
    sums = steps.sums_of_products(y.reshape(rows), x.reshape(rows), x0, replacement, keep)
    return torch.stack(sums) if weight.dim() == 3 else sums[0]


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
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.size(-1))


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Each row of x [..., G, H] times its group's matrix [G, H, H]; G may be left out."""
    if weight.dim() == 2:
        return x @ weight
    rows = x.reshape(-1, *weight.shape[:2]).transpose(0, 1)
    return torch.bmm(rows, weight).transpose(0, 1).reshape(x.shape)
