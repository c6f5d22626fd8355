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
from torch._functorch.autograd_function import custom_function_call
from torch.autograd import forward_ad

from . import _ops
from ._algebra import add, curvature, groups_of, multiply, primals, sum_of_products
from ._batching import Places, batched, into_rows, unfold
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
    clip: _ops.Clip = None,
) -> tuple[Tensor, Tensor]:
    """One layer of the RNN, differentiable in x, h0, the parameters and reset_state.

    Args:
        x: [T, B, I], contiguous, or packed rows [N, I] with ``batch_sizes``.
        h0: [D, B, H].
        batch_sizes: int64 [T] on the CPU, or None.
        phi: ``_ops.TANH``, ``RELU``, ``SIGMOID``, ``SOFTPLUS`` or ``IDENTITY``.
        directions: D; the second direction walks time backwards.
        parameters: of each direction: weight_ih, weight_hh[, bias_ih, bias_hh].
        reset, reset_state: where the state is replaced, [T, B] or [N], and by what, [D, B, H]; as
            in ``_ops.recurrence_``.
        window: no gradient is carried over its multiples in time; 0 for none.
        clip: of the gradient of every state; as in ``_ops.linear_recurrence``.

    Returns:
        h [T, B, D * H] or [N, D * H], which is saved for backward; and the last h of each
        direction [D, B, H]. All tensors are of one dtype and device.

    Raises:
        RuntimeError: a shape, dtype or device is not as above.
    """
    if torch.compiler.is_dynamo_compiling():
        from . import _compiled

        return _compiled.layer(  # type: ignore[no-any-return]
            x, h0, batch_sizes, phi, directions, parameters, reset, reset_state, window, clip
        )
    if _transformed():
        walk = (x, h0, batch_sizes, phi, directions, reset, reset_state, window, clip)
        if reset is None and window == 0 and clip is None and _of_first_order():
            return _apply(Layer, *walk, *parameters)  # type: ignore[no-any-return]
        return _composed_layer(*walk, *parameters)
    if torch.is_grad_enabled():
        # Layer.apply without what it does for functorch and for default arguments: 3 us of Python.
        apply = super(torch.autograd.Function, Layer).apply
        return apply(  # type: ignore[no-any-return, no-untyped-call]
            x, h0, batch_sizes, phi, directions, reset, reset_state, window, clip, *parameters
        )
    return Layer.forward(
        x, h0, batch_sizes, phi, directions, reset, reset_state, window, clip, *parameters
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
    clip: _ops.Clip = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._ops.recurrence_` on a copy of u.

    Differentiable in u, weight, h0 and reset_state; over the multiples of ``window`` in time no
    derivative is carried; ``clip`` as in :func:`layer`.
    """
    return Recurrence.apply(  # type: ignore[no-untyped-call, no-any-return]
        u, weight, h0, batch_sizes, reverse_groups, phi, reset, reset_state, window, clip
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
    clip: _ops.Clip = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._ops.linear_recurrence`.

    Differentiable in factor, v, weight, s0 and reset_state; with ``clip`` in nothing.
    """
    walk = (batch_sizes, reverse_groups, derivative, adjoint, reset, reset_state, window)
    args = (factor, v, weight, s0, *walk)
    if _transformed() or _recorded(factor, v, weight, s0, reset_state):
        if clip is not None:
            return _apply(ClippedRecurrence, *args, clip)  # type: ignore[no-any-return]
        return _apply(LinearRecurrence, *args)  # type: ignore[no-any-return]
    return _ops.linear_recurrence(*args, clip)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``; under a transform without reading the signature anew: 30 us a call.

    What ``apply`` calls then has no public name.
    """
    if torch._C._are_functorch_transforms_active():
        return custom_function_call(function, *arguments)
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _composed_layer(
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    phi: int,
    directions: int,
    reset: Tensor | None,
    reset_state: Tensor | None,
    window: int,
    clip: _ops.Clip,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """:func:`layer` of the recurrence and torch's products: for derivatives of every kind."""
    weight_ih, weight_hh, bias_ih, bias_hh = _stack(parameters, directions)
    bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    u = _split(F.linear(x, weight_ih, bias), directions)
    cuts = (reset, reset_state, window)
    h, h_n = recurrence(u, weight_hh, h0, batch_sizes, directions - 1, phi, *cuts, clip)
    return h if directions == 1 else h.flatten(-2), h_n


def _of_first_order() -> bool:
    """Whether the transforms at work are vmaps and at most one of reverse mode, all of torch.func.

    Then a whole layer is one node, as it is without them: half of the time of the small products
    between, and of torch.func's own.
    """
    stack = torch._C._functorch.get_interpreter_stack() or []
    kinds = [level.key() for level in stack]
    reverse = kinds.count(torch._C._functorch.TransformType.Grad)
    vmaps = kinds.count(torch._C._functorch.TransformType.Vmap)
    return reverse <= 1 and 0 < reverse + vmaps == len(kinds) and forward_ad._current_level < 0


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with any of these."""
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _transformed(*cotangents: Tensor | None) -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work.

    Or whether the cotangents are many at once, as ``torch.autograd.grad(is_grads_batched=True)``
    gives them.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level >= 0:
        return True
    for value in cotangents:
        if value is not None and torch._C._functorch.is_legacy_batchedtensor(value):
            return True
    return False


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
        _clip: _ops.Clip,
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
        ctx.window, ctx.clip, *parameters = others
        weights = [weight for weight in parameters if weight.dim() == 2]
        ctx.save_for_backward(output[0], x, h0, batch_sizes, reset, reset_state, *weights)
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        h0: Tensor,
        batch_sizes: Tensor | None,
        phi: int,
        directions: int,
        _reset: None,
        _reset_state: None,
        _window: int,
        _clip: None,
        *parameters: Tensor,
    ) -> Any:
        size, dims = info.batch_size, in_dims[9:]
        if any(dim is not None for dim in dims):  # members have weights of their own

            def of_member(x: Tensor, h0: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
                uncut = (None, None, 0, None)
                return _composed_layer(x, h0, batch_sizes, phi, directions, *uncut, *parameters)

            results = torch.func.vmap(of_member, (*in_dims[:2], *dims))(x, h0, *parameters)
            return results, (0, 0)
        rows = x.dim() - (in_dims[0] is not None) - 1
        h, h_n = layer(
            into_rows(x, in_dims[0], size, rows).contiguous(),
            into_rows(h0, in_dims[1], size, 2),
            None if batch_sizes is None else batch_sizes * size,
            phi,
            directions,
            parameters,
        )
        return (unfold(h, rows - 1, size), unfold(h_n, 1, size)), (0, 0)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Tensor | None, ...]:
        h, x, h0, batch_sizes, reset, reset_state, *weights = ctx.saved_tensors
        need_x, _, _, _, _, _, need_reset_state, _, _, *need = ctx.needs_input_grad
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
            0,
            reset,
            reset_state,
            ctx.window,
            need_reset_state,
            ctx.clip,
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
        return x_bar, h0_bar, None, None, None, None, reset_state_bar, None, None, *of_parameters


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
    members: int = 0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    need_reset_state: bool = False,
    clip: _ops.Clip = None,
) -> tuple[Tensor | None, ...]:
    """:func:`fused_bptt._ops.layer_backward`, differentiable, on every device and dtype.

    Last comes the gradient of reset_state.
    """
    tensors = (g, g_n, h, x, weight_ih, weight_hh, h0)
    needed = (need_x, need_weight_ih, need_weight_hh, need_bias)
    asked = (*tensors, batch_sizes, reverse_groups, phi, *needed)
    cuts = (reset, reset_state, window)
    if _transformed(g, g_n):
        if reset is None and window == 0 and clip is None and _of_first_order():
            bars = iter(_apply(LayerBackward, *asked, members))
            given = (need_x, True, need_weight_ih, need_weight_hh, need_bias, False)
            return tuple([next(bars) if is_given else None for is_given in given])
    elif _ops.has_layer(x) and not _recorded(*tensors, reset_state):
        found = _ops.layer_backward(*asked, *cuts, clip, members, need_reset_state)
        if not need_reset_state:
            return found
        *bars, replaced = found
        assert replaced is not None
        return *bars, _ops.carried_back(replaced, weight_hh, x.dtype)
    return _composed_layer_backward(*asked, members, *cuts, need_reset_state, clip)


def _composed_layer_backward(
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
    members: int = 0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    need_reset_state: bool = False,
    clip: _ops.Clip = None,
) -> tuple[Tensor | None, ...]:
    """:func:`layer_backward` of the adjoint and torch's products."""
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
        clip,
    )
    rows, x_rows = _rows(q.reshape(h.shape)), _rows(x)
    steps = Steps(x, batch_sizes, directions, reverse_groups, reset, window)
    weight_ih_bar = weight_hh_bar = bias_bar = None
    if members:
        q_of_each = _of_each(rows, members)
        if need_weight_ih:
            weight_ih_bar = torch.bmm(q_of_each.mT, _of_each(x_rows, members))
        if need_weight_hh:
            before = steps.previous(_split(h, directions), h0, reset_state, keep=True)
            before = _of_each(_rows(before.reshape(h.shape)), members)
            ways = zip(q_of_each.chunk(directions, -1), before.chunk(directions, -1), strict=True)
            sums = [torch.bmm(q_way.mT, h_way) for q_way, h_way in ways]
            weight_hh_bar = sums[0] if directions == 1 else torch.stack(sums, 1)
        if need_bias:
            bias_bar = q_of_each.sum(1)
    else:
        if need_weight_ih:  # Σ_t q_t x_tᵀ
            weight_ih_bar = torch.mm(rows.t(), x_rows)
        if need_weight_hh:  # Σ_t q_t h_{t-1}ᵀ
            sums = steps.sums_of_products(rows, _rows(h), h0, reset_state, keep=True)
            weight_hh_bar = sums[0] if directions == 1 else torch.stack(sums)
        if need_bias:  # Σ_t q_t
            bias_bar = rows.sum(0)
    return (
        torch.mm(rows, weight_ih).view(*x.shape) if need_x else None,
        h0_bar,
        weight_ih_bar,
        weight_hh_bar,
        bias_bar,
        steps.sums_after_resets(q) @ weight_hh if need_reset_state else None,
    )


class LayerBackward(torch.autograd.Function):
    """:func:`layer_backward` as one node, under the transforms of :func:`_of_first_order`.

    Its results are those that are needed.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _given(layer_backward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:8])
        ctx.options = inputs[8:]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # For autograd from outside of the transform: the composition, made anew.
        *tensors, batch_sizes = ctx.saved_tensors
        places = [place for place, tensor in enumerate(tensors) if tensor is not None]

        def composed(*values: Tensor) -> tuple[Tensor, ...]:
            arguments: list[Any] = [None] * len(tensors) + [batch_sizes, *ctx.options]
            for place, value in zip(places, values, strict=True):
                arguments[place] = value
            return _given(_composed_layer_backward(*arguments))

        pull = torch.func.vjp(composed, *_given(tensors))[1]
        bars = dict(zip(places, pull(cotangents), strict=True))
        return tuple(bars.get(place) for place in range(len(tensors) + 1 + len(ctx.options)))

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
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
        members: int,
    ) -> Any:
        size = info.batch_size
        needed = (need_x, need_weight_ih, need_weight_hh, need_bias)
        if in_dims[4] is not None or in_dims[5] is not None:  # members have weights of their own

            def of_member(*tensors: Tensor | None) -> tuple[Tensor, ...]:
                others = (batch_sizes, reverse_groups, phi, *needed, members)
                arguments: list[Any] = [*tensors, *others]
                return _given(_composed_layer_backward(*arguments))

            tensors = (g, g_n, h, x, weight_ih, weight_hh, h0)
            bars = torch.func.vmap(of_member, in_dims[:7])(*tensors)
            return bars, (0,) * len(bars)

        rows = x.dim() - (in_dims[3] is not None) - 1
        x_bar, h0_bar, *sums = layer_backward(
            None if g is None else into_rows(g, in_dims[0], size, rows),
            None if g_n is None else into_rows(g_n, in_dims[1], size, 2),
            into_rows(h, in_dims[2], size, rows),
            into_rows(x, in_dims[3], size, rows),
            weight_ih,
            weight_hh,
            into_rows(h0, in_dims[6], size, 2),
            None if batch_sizes is None else batch_sizes * size,
            reverse_groups,
            phi,
            *needed,
            # Without a sum, no sum of each.
            max(members, 1) * size if any(needed[1:]) else 0,
        )
        assert h0_bar is not None
        found = [None if x_bar is None else unfold(x_bar, rows - 1, size), unfold(h0_bar, 1, size)]
        # Members of members: those of the inner ones have been in front.
        found += [unfold(bar, 0, size) if members and bar is not None else bar for bar in sums]
        bars = _given(found)
        return bars, (0,) * len(bars)


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
        _clip: _ops.Clip,
    ) -> tuple[Tensor, Tensor]:
        h = u.clone(memory_format=torch.contiguous_format)
        walk = (batch_sizes, reverse_groups, phi, reset, reset_state)
        return h, _ops.recurrence_(h, weight, h0, *walk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, weight, h0, batch_sizes, ctx.reverse_groups, ctx.phi, *cuts = inputs
        reset, reset_state, ctx.window, ctx.clip = cuts
        saved = (output[0], weight, h0, batch_sizes, reset, reset_state)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Tensor | None, ...]:
        h, weight, h0, batch_sizes, reset, reset_state = ctx.saved_tensors
        _, need_weight, *_, need_reset_state, _, _ = ctx.needs_input_grad
        walk = (batch_sizes, ctx.reverse_groups, ctx.phi, True, reset, None, ctx.window, ctx.clip)
        q, h0_bar = linear_recurrence(h, g, weight, g_n, *walk)
        steps = Steps(h, batch_sizes, groups_of(weight), ctx.reverse_groups, reset, ctx.window)
        weight_bar = None
        if need_weight:
            weight_bar = sum_of_products(steps, weight, q, h, h0, reset_state, keep=True)
        reset_state_bar = steps.sums_after_resets(q) @ weight if need_reset_state else None
        return q, weight_bar, h0_bar, None, None, None, None, reset_state_bar, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        places = Places((0,), weight=1, states=(2, 7), reset=6, batch_sizes=3, states_found=1)
        return batched(recurrence, places, info.batch_size, in_dims, arguments)

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
        _clip: None,
    ) -> tuple[Tensor, Tensor]:
        with forward_ad._set_fwd_grad_enabled(True):
            h, weight, h0, batch_sizes, reset, reset_state = primals(ctx.saved_tensors)
            v = u_dot
            if weight_dot is not None:
                walk = (batch_sizes, groups_of(weight), ctx.reverse_groups, reset, ctx.window)
                before = Steps(h, *walk).previous(h, h0, reset_state, keep=True)
                v = add(v, multiply(before, weight_dot.mT))
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
        steps = Steps(s, batch_sizes, groups_of(weight), ctx.reverse_groups, reset, ctx.window)

        factor_bar = None
        if need_factor and ctx.derivative not in (_ops.RELU, _ops.IDENTITY):  # their d is flat
            before = multiply(steps.previous(x, x_0, reset_state), weight.mT)
            r = steps.following(multiply(y, weight), r_last)
            d_bar = (before if x_in is None else before + x_in) * (r if y_in is None else r + y_in)
            factor_bar = d_bar * curvature(factor, ctx.derivative)
        weight_bar = None
        if need_weight:
            weight_bar = sum_of_products(steps, weight, y, x, x_0, reset_state)
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
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        places = Places((0, 1), weight=2, states=(3, 9), reset=8, batch_sizes=4, states_found=1)
        return batched(linear_recurrence, places, info.batch_size, in_dims, arguments)

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
            s, factor, v, weight, s0, batch_sizes, reset, reset_state = primals(ctx.saved_tensors)
            derivative, adjoint = ctx.derivative, ctx.adjoint
            walk = (batch_sizes, groups_of(weight), ctx.reverse_groups, reset, ctx.window)
            steps = Steps(s, *walk)

            def carried(
                matrix: Tensor, x: Tensor, end: Tensor | None, replacement: Tensor | None
            ) -> Tensor:
                """What each step is handed: W x_{t-1}; or Wᵀ x_{t+1}, `end` after the last."""
                if adjoint:
                    return steps.following(multiply(x, matrix), end)
                return multiply(steps.previous(x, end, replacement), matrix.mT)

            e = None
            if factor_dot is not None and derivative not in (_ops.RELU, _ops.IDENTITY):
                d_dot = factor_dot * curvature(factor, derivative)
                e = d_dot * add(v, carried(weight, s, s0, reset_state))
            drive = v_dot
            if weight_dot is not None:
                none = None if adjoint else s0  # s0 of the adjoint has been multiplied already
                drive = add(drive, carried(weight_dot, s, none, reset_state))
            if e is not None:
                drive = add(drive, carried(weight, e, None, None))
            walked = (batch_sizes, ctx.reverse_groups, derivative, adjoint)
            cuts = (reset, reset_state_dot, ctx.window)
            s_dot, last_dot = linear_recurrence(factor, drive, weight, s0_dot, *walked, *cuts)
            if adjoint and weight_dot is not None:
                last_dot = last_dot + steps.to_initial(multiply(s, weight_dot))
            if e is not None:
                last_dot = last_dot + (
                    steps.to_initial(multiply(e, weight)) if adjoint else steps.last(e)
                )
            return add(e, s_dot), last_dot


class ClippedRecurrence(torch.autograd.Function):
    """The adjoint walk of BPTT that is clipped at every step: not a derivative, and without one."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _ops.linear_recurrence(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:
        refuse_clip()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        refuse_clip()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        places = Places((0, 1), weight=2, states=(3, 9), reset=8, batch_sizes=4, states_found=1)
        return batched(linear_recurrence, places, info.batch_size, in_dims, arguments)


def refuse_clip() -> None:
    """Raises where a clipped gradient would be differentiated."""
    raise RuntimeError(
        "clip_state_grad: expected None where the gradients are differentiated again, got a limit "
        "(clipped gradients are not the derivative of any function, and have none that means "
        "anything; take the second derivative of a call without it)"
    )


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


def _given(tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Those that are not None."""
    return tuple(tensor for tensor in tensors if tensor is not None)


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


def _of_each(rows: Tensor, members: int) -> Tensor:
    """Rows [N * members, ...], those of the members side by side, as [members, N, ...]."""
    return rows.view(rows.size(0) // members, members, rows.size(1)).transpose(0, 1)


def _rows(x: Tensor) -> Tensor:
    """[..., N] as [rows, N]."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.size(-1))
