"""A layer with a leak as one node: the input projection, the noise and the walk in one operator.

Where there is no such operator, and for what it cannot be differentiated by, the layer is composed
of the recurrence of _leaky.py and of torch's products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _ops
from ._algebra import activate, groups_of, slope
from ._autograd import _transformed, recurrence, refuse_clip
from ._leaky import leaky_recurrence
from ._steps import Steps


def leaky_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    gain: Tensor | None,
    initial: Tensor,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    phi: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    seed: int | None = None,
    plain: bool = False,
    clip: _ops.Clip = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`fused_bptt._ops.leaky_layer`, on every dtype, differentiable in all that is a number.

    The operator has no gradient of a ``keep`` or ``gain`` that is a sequence: that is composed.
    Over the multiples of ``window`` in time no derivative is carried. ``plain``: keep is zero and
    gain one, so it is the recurrence without a leak, whose kernels on CUDA are the quicker ones.
    ``clip``: of the gradient of every state, as in ``_ops.leaky_layer_backward``: in the operator
    alone, and elsewhere an error.
    """
    if torch.compiler.is_dynamo_compiling():
        from . import _compiled

        operands = (x, weight_ih, weight_hh, bias, keep, gain, initial, noise, noise_scale)
        others = (batch_sizes, reverse_groups, phi, reset, reset_state, window, seed, plain, clip)
        return _compiled.leaky_layer(*operands, *others)  # type: ignore[no-any-return]
    if is_voltage(keep, gain) and reset is not None and reset_state is None:
        reset_state = torch.zeros_like(initial)  # φ(0) need not be zero
    tensors = (x, weight_ih, weight_hh, bias, keep, gain, initial, noise, noise_scale, reset_state)
    walk = (batch_sizes, reverse_groups, phi, reset, window)
    if not _ops.has_layer(x) or _transformed():
        if clip is not None:
            raise ValueError(
                "clip_state_grad: expected None under a transform of torch.func and on "
                f"{x.device.type} in {x.dtype}, got a limit (a leak is clipped on the CPU, in "
                "float32 and float64, by plain autograd)"
            )
        return _composed(tensors, *walk, seed, plain)
    state, rate, last = LeakyLayer.apply(*walk, seed, clip, *tensors)  # type: ignore[no-untyped-call]
    return state, state if plain else rate, last  # one cotangent, and so one that is clipped


def is_voltage(keep: Tensor, gain: Tensor | None) -> bool:
    """Whether W multiplies r: no gain, and none that a bool keep says."""
    return gain is None and keep.dtype != torch.bool


def _drawn(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, seed: int) -> Tensor:
    """The noise of a seed as a tensor of its own."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    like = x.new_empty(*x.shape[:-1], weight_ih.size(0), dtype=wide)
    return _ops.normal(like, groups_of(weight_hh), seed).to(x.dtype)


def _composed(
    tensors: tuple[Any, ...],
    batch_sizes: Tensor | None,
    reverse_groups: int,
    phi: int,
    reset: Tensor | None,
    window: int,
    seed: int | None,
    plain: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight_ih, weight_hh, bias, keep, gain, initial, noise, noise_scale, reset_state = tensors
    if keep.dtype == torch.bool:
        keep = keep.to(x.dtype)
        gain = 1 - keep
    u = F.linear(x, weight_ih, bias)
    noise = noise if seed is None else _drawn(x, weight_ih, weight_hh, seed)
    if noise is not None:
        u = u + (noise if noise_scale is None else noise_scale * noise)
    groups, flat = groups_of(weight_hh), u.shape

    def split(value: Tensor) -> Tensor:
        """[..., G * H] as [..., G, H]."""
        if weight_hh.dim() == 2:
            return value
        return value.reshape(*flat[:-1], groups, flat[-1] // groups)

    cuts = (reset, reset_state, window)
    if plain:
        h, last = recurrence(split(u), weight_hh, initial, batch_sizes, reverse_groups, phi, *cuts)
        return h.reshape(flat), h.reshape(flat), last
    gain = None if gain is None else split(gain.expand(flat))
    operands = (split(u), split(keep.expand(flat)), gain, weight_hh, initial)
    state, rate = leaky_recurrence(*operands, batch_sizes, reverse_groups, phi, *cuts)
    last = initial
    if flat.numel() > 0:
        last = Steps(x, batch_sizes, groups, reverse_groups).last(state)
    return state.reshape(flat), rate.reshape(flat), last


class LeakyLayer(torch.autograd.Function):
    """:func:`leaky_layer` in the CPU's operators, float32 and float64."""

    @staticmethod
    def forward(
        ctx: Any,
        batch_sizes: Tensor | None,
        reverse_groups: int,
        phi: int,
        reset: Tensor | None,
        window: int,
        seed: int | None,
        clip: _ops.Clip,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        *operands, reset_state = tensors
        walk: list[Any] = [batch_sizes, reverse_groups, phi, reset, reset_state, seed]
        state, rate, last = _ops.leaky_layer(*(operands + walk))
        ctx.save_for_backward(state, rate, batch_sizes, reset, *tensors)
        ctx.reverse_groups, ctx.phi, ctx.window, ctx.seed = reverse_groups, phi, window, seed
        ctx.clip = clip
        ctx.set_materialize_grads(False)
        return state, rate, last

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        state, rate, batch_sizes, reset, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[7:]
        x, weight_ih, weight_hh, _, keep, gain, initial, noise, scale, reset_state = tensors
        need_x, need_ih, need_hh, need_bias, need_keep, need_gain, need_initial = needed[:7]
        need_noise, need_scale, need_reset_state = needed[7:]
        sent, voltage = [initial, reset_state], is_voltage(keep, gain)
        if voltage:
            sent = [None if end is None else activate(end, ctx.phi) for end in sent]
        need_leak = need_keep or need_gain or need_scale
        of_steps = keep.dim() > 1 or (gain is not None and gain.dim() > 1)
        # The operator has no graph of its gradients, takes one cotangent at a time, and keeps that
        # of u, which is the noise's too, nowhere; a leak of each step has none.
        composed = torch.is_grad_enabled() or need_noise or (need_leak and of_steps)
        if composed or _transformed(*cotangents):
            if ctx.clip is not None:
                _refuse_clip(need_noise)
            walk = (batch_sizes, ctx.reverse_groups, ctx.phi, reset, ctx.window, ctx.seed)
            return (None,) * 7 + _composed_backward(tuple(tensors), walk, needed, cotangents)
        if need_scale and ctx.seed is not None:
            noise = _drawn(x, weight_ih, weight_hh, ctx.seed)
        g, g_rate, g_last = cotangents
        bars = _ops.leaky_layer_backward(
            g,
            g_rate,
            g_last,
            state,
            rate,
            x,
            weight_ih,
            weight_hh,
            keep,
            gain,
            initial,
            sent[0],
            noise,
            batch_sizes,
            ctx.reverse_groups,
            ctx.phi,
            need_x,
            need_ih,
            need_hh,
            need_bias,
            need_leak,
            reset,
            reset_state,
            sent[1],
            ctx.window,
            ctx.clip,
        )
        x_bar, ih_bar, hh_bar, bias_bar, keep_bar, gain_bar, scale_bar, ends, replaced = bars

        def of_state(rate: Tensor, product: Tensor, kept: Tensor) -> Tensor:
            """The cotangent of a state that a walk begins or goes on with."""
            of_sent = _ops.carried_back(product, weight_hh, x.dtype)
            return kept + (slope(rate, ctx.phi) * of_sent if voltage else of_sent)

        return (
            *(None,) * 7,
            x_bar,
            ih_bar,
            hh_bar,
            bias_bar,
            keep_bar,
            gain_bar,
            of_state(sent[0], ends[0], ends[1]) if need_initial else None,
            None,
            scale_bar if scale is not None else None,
            of_state(sent[1], *replaced.to(x.dtype)) if need_reset_state else None,
        )


def _refuse_clip(need_noise: bool) -> None:
    if need_noise:
        raise RuntimeError(
            "clip_state_grad: expected None where noise needs a gradient, got a limit"
        )
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "clip_state_grad: expected None with is_grads_batched, got a limit (take the gradient "
            "of one cotangent at a time)"
        )
    refuse_clip()


def _composed_backward(
    tensors: tuple[Tensor | None, ...],
    walk: tuple[Any, ...],
    needed: tuple[bool, ...],
    cotangents: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients by the composition, computed again, and with a graph where one is wanted."""
    create_graph = torch.is_grad_enabled()

    def own(x: Tensor | None, need: bool) -> Tensor | None:
        """x as an input of its own: one may be made of another, as keep of gain."""
        if x is None or not need:
            return x
        return x.view_as(x) if create_graph else x.detach().requires_grad_()

    with torch.enable_grad():
        tensors = tuple(own(x, need) for x, need in zip(tensors, needed, strict=True))
        results = _composed(tensors, *walk)
    given = [(y, g) for y, g in zip(results, cotangents, strict=True) if g is not None]
    leaves = [x for x, need in zip(tensors, needed, strict=True) if need]
    bars = iter(
        torch.autograd.grad(
            [y for y, _ in given],
            leaves,  # type: ignore[arg-type]
            [g for _, g in given],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return tuple(next(bars) if need else None for need in needed)
