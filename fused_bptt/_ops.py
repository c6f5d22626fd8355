"""The operators of the compiled library: loading, thin wrappers, fake kernels.

The only file that names ``torch.ops.fused_bptt``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARY = Path(__file__).with_name("_C.abi3.so")

if not _LIBRARY.exists():
    raise ImportError(
        f"fused_bptt: the compiled library {_LIBRARY.name} is missing beside {__file__}. "
        "Build it with `pip install .` (or `make install` in a clone)."
    )
torch.ops.load_library(_LIBRARY)  # type: ignore[no-untyped-call]

_recurrence_ = torch.ops.fused_bptt.recurrence_.default
_linear_recurrence = torch.ops.fused_bptt.linear_recurrence.default
_leaky_recurrence = torch.ops.fused_bptt.leaky_recurrence.default
_leaky_linear = torch.ops.fused_bptt.leaky_linear.default
_normal = torch.ops.fused_bptt.normal.default
_flags = torch.ops.fused_bptt.flags.default
_leaky_layer = torch.ops.fused_bptt.leaky_layer.default
_leaky_layer_backward = torch.ops.fused_bptt.leaky_layer_backward.default
#: The operator itself of :func:`layer`, for those that translate graphs.
LAYER = torch.ops.fused_bptt.layer.default
_layer_backward = torch.ops.fused_bptt.layer_backward.default
_layer_backward_ = torch.ops.fused_bptt.layer_backward_.default

#: A tensor of another shape in the same memory that autograd does not take for a view.
unsafe_view = torch.ops.aten._unsafe_view.default

#: Codes of ``nonlinearity`` and ``derivative`` in the operators' schemas.
GIVEN, TANH, RELU, SIGMOID, SOFTPLUS, IDENTITY = range(6)

#: Codes of ``clip``.
CLIP_VALUE, CLIP_NORM = 1, 2

#: How BPTT is clipped at every step: a code and a limit; None where it is not.
Clip = tuple[int, float] | None

#: Codes of ``float32_products``: as they are; TF32 where it is quicker; three products in TF32,
#: which nothing chooses until its error has been measured on a GPU.
STRICT, TF32, TF32X3 = 0, 1, 2


def recurrence_(
    u: Tensor,
    weight: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> Tensor:
    """h_t = φ(u_t + W h_{t-1}) for every group, in the place of u; no autograd.

    Args:
        u: [T, B, G, H], or packed rows [N, G, H] with ``batch_sizes``; becomes h. Its last
            dimension is contiguous, and no other argument lies in its memory.
        weight: [G, H, H], ``weight_hh`` of each group; or [H, H] for one group, and then u is
            [T, B, H] or [N, H].
        h0: [G, B, H].
        batch_sizes: int64 [T] on the CPU, never increasing, as in ``PackedSequence``; or None.
        reverse_groups: the last so many groups walk time backwards.
        nonlinearity: ``TANH``, ``RELU``, ``SIGMOID``, ``SOFTPLUS`` or ``IDENTITY``.
        reset: bool [T, B], or [T, B, G] (packed: [N], [N, G]): where it is true, the state between
            the step before in time and this one is replaced, in either direction. A walk's own end
            is not: h_0 where it walks down from the last step.
        reset_state: what replaces it, [G, B, H]; or None for zero.

    float32 on CUDA: products are as :func:`float32_products` says.

    Returns:
        Each row's last h, [G, B, H].

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _recurrence_(  # type: ignore[no-any-return]
        u,
        weight,
        h0,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        float32_products(u),
        reset,
        reset_state,
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
    clip: Clip = None,
) -> tuple[Tensor, Tensor]:
    """The linear recurrence or its adjoint, for every group; no autograd.

    - s_t = d_t ⊙ (v_t + W s_{t-1}), from s_0 to s_T;
    - adjoint: q_t = d_t ⊙ (v_t + r_t), r_t = Wᵀ q_{t+1}, from r_T to r_0 = Wᵀ q_1: what the
      cotangents of s_t and s_T are to those of v_t and s_0.

    Args:
        factor: d itself (``derivative=GIVEN``), or h; [T, B, G, H], or packed rows [N, G, H].
        v: of factor's shape, or None for zero.
        weight: [G, H, H]; or [H, H] for one group, and then factor is [T, B, H] or [N, H].
        s0: s_0, or, adjoint, r_T; [G, B, H], or None for zero.
        batch_sizes: as in :func:`recurrence_`.
        reverse_groups: as in :func:`recurrence_`.
        derivative: ``GIVEN``, ``TANH`` (d = 1 - h²), ``RELU`` (d = [h > 0]), ``SIGMOID``
            (d = h (1 - h)), ``SOFTPLUS`` (d = 1 - e^-h) or ``IDENTITY`` (d = 1).
        adjoint: walk every group the other way in time, with Wᵀ.
        reset: as in :func:`recurrence_`; the adjoint is that of a walk which is cut there.
        reset_state: as in :func:`recurrence_`; None with ``adjoint``.
        window: zero takes the place of the state at the multiples of it in time, too; 0 for none.
        clip: of the adjoint: v_t + r_t is clipped before d_t multiplies it, each number
            to [-limit, limit] (``CLIP_VALUE``), or each row by limit / |v_t + r_t| where that is
            less than 1 (``CLIP_NORM``).

    float32 on CUDA: products are as :func:`float32_products` says.

    Returns:
        s (or q), contiguous, of factor's shape and dtype; and s_T (or r_0) [G, B, H].

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _linear_recurrence(  # type: ignore[no-any-return]
        factor,
        v,
        weight,
        s0,
        batch_sizes,
        reverse_groups,
        derivative,
        adjoint,
        float32_products(factor),
        reset,
        reset_state,
        window,
        *(clip or ()),
    )


def leaky_recurrence(
    u: Tensor,
    keep: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    initial: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A recurrence with a leak, for every group; no autograd.

    - with gain: h_t = keep_t ⊙ h_{t-1} + gain_t ⊙ r_t, r_t = φ(u_t + W h_{t-1});
    - without: v_t = keep_t ⊙ v_{t-1} + u_t + W r_{t-1}, r_t = φ(v_t).

    Args:
        u: [T, B, G, H], or packed rows [N, G, H] with ``batch_sizes``.
        keep, gain: of u's shape, any strides, 0 included.
        weight: [G, H, H]; or [H, H] for one group, and then u is [T, B, H] or [N, H].
        initial: h_0 or v_0, [G, B, H].
        batch_sizes, reverse_groups, nonlinearity, reset, reset_state: as in :func:`recurrence_`.

    float32 on CUDA: products are as :func:`float32_products` says.

    Returns:
        h or v, and r, contiguous, of u's shape and dtype.

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _leaky_recurrence(  # type: ignore[no-any-return]
        u,
        keep,
        gain,
        weight,
        initial,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        float32_products(u),
        reset,
        reset_state,
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
    reset: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """The linear walks that the derivatives of :func:`leaky_recurrence` are made of; no autograd.

    With d = ``factor``, from zero:

    - outer: m_t = w_t + keep_t ⊙ m_{t-1} + d_t ⊙ (W m_{t-1});
    - inner: m_t = w_t + keep_t ⊙ m_{t-1} + W (d_{t-1} ⊙ m_{t-1});
    - adjoint of outer: y_t = w_t + keep_{t+1} ⊙ y_{t+1} + Wᵀ (d_{t+1} ⊙ y_{t+1});
    - adjoint of inner: y_t = w_t + keep_{t+1} ⊙ y_{t+1} + d_t ⊙ (Wᵀ y_{t+1}).

    Args:
        w: [T, B, G, H], or packed rows [N, G, H] with ``batch_sizes``.
        keep, factor: of w's shape, any strides, 0 included.
        weight: [G, H, H]; or [H, H] for one group, and then w is [T, B, H] or [N, H].
        batch_sizes, reverse_groups: as in :func:`recurrence_`.
        inner: inner; else outer.
        adjoint: the adjoint.
        reset, window: nothing is carried across; as in :func:`linear_recurrence`.

    float32 on CUDA: products are as :func:`float32_products` says.

    Returns:
        m (or y), contiguous, of w's shape and dtype.

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _leaky_linear(  # type: ignore[no-any-return]
        w,
        keep,
        factor,
        weight,
        batch_sizes,
        reverse_groups,
        inner,
        adjoint,
        float32_products(w),
        reset,
        window,
    )


_LAYER_DTYPES = (torch.float32, torch.float64)


def has_layer(x: Tensor) -> bool:
    """Whether :func:`layer` and :func:`layer_backward` exist for the device and dtype of x."""
    return x.is_cpu and x.dtype in _LAYER_DTYPES


def layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """u_t = W_ih x_t + b_ih + b_hh, then the recurrence; CPU, float32 and float64; no autograd.

    Args:
        x: [T, B, I], or packed rows [N, I] with ``batch_sizes``.
        weight_ih: [G * H, I].
        weight_hh: [G, H, H]; or [H, H] for one group.
        bias_ih, bias_hh: [G * H] both, or None both.
        h0: [G, B, H].
        batch_sizes, reverse_groups, nonlinearity, reset, reset_state: as in :func:`recurrence_`.

    Returns:
        h [T, B, G * H] or [N, G * H]; and each row's last h, [G, B, H].

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return LAYER(  # type: ignore[no-any-return]
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        reset,
        reset_state,
    )


def layer_backward(
    g: Tensor | None,
    g_last: Tensor | None,
    h: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    need_x: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_bias: bool,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    clip: Clip = None,
    members: int = 0,
    need_reset_state: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """BPTT of :func:`layer`; no autograd.

    Args:
        g: cotangent of h, of its shape, any strides; or None for zero.
        g_last: cotangent of the last h, [G, B, H]; or None for zero.
        h: what :func:`layer` returned first; the arguments after it are those it was given.
        need_x, need_weight_ih, need_weight_hh, need_bias: which gradients to compute.
        window: no gradient is carried over the multiples of it in time; 0 for none.
        clip: as in :func:`linear_recurrence`.
        members: n > 0: the rows of each step are those of n members, row by row side by side (row b
            of member m is row b * n + m), and each has gradients of the weights and biases of its
            own: those that it would have alone, to the bit. 0: one sum over all rows.
        need_reset_state: whether the last result is wanted.

    Returns:
        The gradients of x, h0, weight_ih, weight_hh and of either bias (it is the same), each of
        the shape of its tensor; None where it is not needed. With ``members``, the last three have
        n in front. And the sum of q over the steps that each row began with ``reset_state``,
        float64 [G, B, H]: :func:`carried_back` makes its gradient of it.

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _layer_backward(  # type: ignore[no-any-return]
        g,
        g_last,
        h,
        x,
        weight_ih,
        weight_hh,
        h0,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        need_x,
        need_weight_ih,
        need_weight_hh,
        need_bias,
        reset,
        reset_state,
        window,
        *(clip or (0, 0.0)),
        members,
        need_reset_state,
    )


def carried_back(sums: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Wᵀ of each row of ``sums`` [G, B, H], in this dtype and with the bits of every product here.

    As one step of the adjoint walk.
    """
    rows = sums.to(dtype)
    step = rows if weight.dim() == 2 else rows.transpose(0, 1).unsqueeze(0)
    return linear_recurrence(step, step, weight, None, None, 0, IDENTITY, True)[1]


def layer_backward_(
    g: Tensor | None,
    g_last: Tensor | None,
    h: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    x_bar: Tensor | None,
    weight_ih_bar: Tensor | None,
    weight_hh_bar: Tensor | None,
    bias_bar: Tensor | None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    before: int = 0,
    clip: Clip = None,
    replaced: Tensor | None = None,
) -> Tensor:
    """:func:`layer_backward` of a part of the steps; adds to the gradients of the weights.

    A sequence in one direction may be cut into parts of whole chunks of :func:`chunk_steps`,
    counted from its last step. Taken from the last part to the first, each with the gradient of
    the part's h0 as the ``g_last`` of the one before it, they give the bits of one call.

    Args:
        g, g_last, h, x, weight_ih, weight_hh, h0, batch_sizes, reverse_groups, nonlinearity: as in
            :func:`layer_backward`.
        x_bar: is written; contiguous, of x's shape; None if it is not needed.
        weight_ih_bar, weight_hh_bar, bias_bar: are added to; contiguous, of the shapes of the
            gradients; what is not needed is None.
        reset: as in :func:`recurrence_`, of these steps.
        reset_state, window: as in :func:`layer_backward`, of the whole sequence.
        before: steps of it that come before these. Between the parts the caller cuts.
        clip: as in :func:`linear_recurrence`.
        replaced: is added to, float64 [G, B, H]: what :func:`layer_backward` gives last.

    Returns:
        The gradient of h0.

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _layer_backward_(  # type: ignore[no-any-return]
        g,
        g_last,
        h,
        x,
        weight_ih,
        weight_hh,
        h0,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        x_bar,
        weight_ih_bar,
        weight_hh_bar,
        bias_bar,
        reset,
        reset_state,
        window,
        before,
        *(clip or (0, 0.0)),
        replaced,
    )


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
    nonlinearity: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """u_t = W_ih x_t + b + s ⊙ ξ_t, then :func:`leaky_recurrence`; as :func:`layer`.

    Args:
        x, weight_ih, weight_hh: as in :func:`layer`.
        bias: [G * H], or None.
        keep, gain: k and a, each [G * H], or of each step: [T, B, G * H] or [N, G * H], any
            strides. No gain is for the voltage form; or where keep is bool and of each step: then k
            is 1 or 0, and a is 1 - k.
        initial: h_0 or v_0, [G, B, H].
        noise: ξ, [T, B, G * H] or [N, G * H]; or None.
        noise_scale: s, [G * H]; None for 1.
        seed: of :func:`normal`, for ξ; or None.
        batch_sizes, reverse_groups, nonlinearity, reset, reset_state: as in :func:`recurrence_`.

    Returns:
        h or v, and r, [T, B, G * H] or [N, G * H]; and each row's last h or v, [G, B, H].

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _leaky_layer(  # type: ignore[no-any-return]
        x,
        weight_ih,
        weight_hh,
        bias,
        keep,
        gain,
        initial,
        noise,
        noise_scale,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        reset,
        reset_state,
        seed,
    )


def normal(like: Tensor, groups: int, seed: int) -> Tensor:
    """Standard normal numbers, each a function of the seed and of its place alone; no autograd.

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and Box and
    Muller's method, in float32: tails end at 5.9.

    Args:
        like: [..., G * H], float32 or float64, on the CPU; its values are not read.
        groups: G.
        seed: 64 bits.

    Returns:
        A tensor as ``like``.

    Raises:
        RuntimeError: a dtype or number is not as above (name, expected, got).
    """
    return _normal(like, groups, seed)  # type: ignore[no-any-return]


def flags(like: Tensor, groups: int, probability: float, seed: Tensor) -> Tensor:
    """True with this probability, from the words that make the numbers of :func:`normal`.

    Args:
        like: [..., G * H], on the CPU; its values are not read.
        groups: G.
        probability: above 0, to 1.
        seed: int64 [], on the CPU.

    Returns:
        bool, of the shape of ``like``.

    Raises:
        RuntimeError: a dtype or number is not as above (name, expected, got).
    """
    return _flags(like, groups, probability, seed)  # type: ignore[no-any-return]


def leaky_layer_backward(
    g: Tensor | None,
    g_rate: Tensor | None,
    g_last: Tensor | None,
    state: Tensor,
    rate: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    keep: Tensor,
    gain: Tensor | None,
    initial: Tensor,
    sent_initial: Tensor,
    noise: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    need_x: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_bias: bool,
    need_leak: bool,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    sent_reset_state: Tensor | None = None,
    window: int = 0,
    clip: Clip = None,
) -> tuple[Any, ...]:
    """BPTT of :func:`leaky_layer`; no autograd.

    Args:
        g, g_rate, g_last: cotangents of the three results, any strides; or None for zero.
        state, rate: the first two results; the arguments after them are those that were given.
        sent_initial, sent_reset_state: what W multiplies of ``initial`` and ``reset_state``: they
            themselves, or, without gain, φ of them.
        need_x, need_weight_ih, need_weight_hh, need_bias: which gradients to compute.
        need_leak: those of keep, gain and noise_scale; not where keep or gain is of each step.
        window: no gradient is carried over the multiples of it in time; 0 for none.
        clip: as in :func:`linear_recurrence`, of the cotangent of the state; not where keep is
            bool.

    Returns:
        The gradients of x, weight_ih, weight_hh, bias, keep, gain and noise_scale, each None where
        it is not needed or has no tensor; and, [2, G, B, H], the cotangents of W h_0 and of keep ⊙
        h_0; and with ``reset``, float64 [2, G, B, H], the sums of both over the steps that began
        with a replaced state.

    Raises:
        RuntimeError: a shape, dtype, device or code is not as above (name, expected, got).
    """
    return _leaky_layer_backward(  # type: ignore[no-any-return]
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
        sent_initial,
        noise,
        batch_sizes,
        reverse_groups,
        nonlinearity,
        need_x,
        need_weight_ih,
        need_weight_hh,
        need_bias,
        need_leak,
        reset,
        reset_state,
        sent_reset_state,
        window,
        *(clip or ()),
    )


def chunk_steps(B: int) -> int:
    """Steps that the CPU's layer takes at a time for B rows: a sum over time is cut there."""
    return torch.ops.fused_bptt.chunk_steps(B)  # type: ignore[no-any-return]


def float32_products(tensor: Tensor) -> int:
    """``TF32`` if PyTorch lets a recurrence over ``tensor`` multiply in TF32 now, else ``STRICT``.

    The switch is ``torch.backends.cudnn.rnn.fp32_precision``, which
    ``torch.backends.cudnn.allow_tf32`` sets too: what ATen asks when it hands ``nn.RNN`` to cuDNN
    (``Context::allowTF32CuDNN(Float32Op::RNN)`` in aten/src/ATen/native/cudnn/RNN.cpp), forward and
    again backward. It is an argument of the operators, so a compiled graph is guarded by it.
    """
    if not tensor.is_cuda or tensor.dtype != torch.float32:
        return STRICT
    allowed = torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return TF32 if allowed else STRICT


@torch.library.register_fake("fused_bptt::recurrence_")  # type: ignore[untyped-decorator]
def _(
    u: Tensor,
    weight: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    float32_products: int = 0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> Tensor:
    _check_devices(u, weight, h0, reset, reset_state)
    return h0.new_empty(h0.shape)


@torch.library.register_fake("fused_bptt::linear_recurrence")  # type: ignore[untyped-decorator]
def _(
    factor: Tensor,
    v: Tensor | None,
    weight: Tensor,
    s0: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    derivative: int,
    adjoint: bool,
    float32_products: int = 0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    clip: int = 0,
    clip_limit: float = 0.0,
) -> tuple[Tensor, Tensor]:
    _check_devices(factor, v, weight, s0, reset, reset_state)
    if s0 is not None:
        batch = s0.size(1)
    elif batch_sizes is None:
        batch = factor.size(1)
    else:  # batch_sizes[0], which a fake tensor does not know
        batch = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
    groups = weight.size(0) if weight.dim() == 3 else 1
    return factor.new_empty(factor.shape), factor.new_empty(groups, batch, factor.size(-1))


@torch.library.register_fake("fused_bptt::leaky_recurrence")  # type: ignore[untyped-decorator]
def _(
    u: Tensor,
    keep: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    initial: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    float32_products: int = 0,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_devices(u, keep, gain, weight, initial, reset, reset_state)
    return u.new_empty(u.shape), u.new_empty(u.shape)


@torch.library.register_fake("fused_bptt::leaky_linear")  # type: ignore[untyped-decorator]
def _(
    w: Tensor,
    keep: Tensor,
    factor: Tensor,
    weight: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    inner: bool,
    adjoint: bool,
    float32_products: int = 0,
    reset: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    _check_devices(w, keep, factor, weight, reset)
    return w.new_empty(w.shape)


@torch.library.register_fake("fused_bptt::layer")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_devices(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, reset, reset_state)
    return x.new_empty(*x.shape[:-1], weight_ih.size(0)), h0.new_empty(h0.shape)


@torch.library.register_fake("fused_bptt::layer_backward")  # type: ignore[untyped-decorator]
def _(
    g: Tensor | None,
    g_last: Tensor | None,
    h: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    need_x: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_bias: bool,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    clip: int = 0,
    clip_limit: float = 0.0,
    members: int = 0,
    need_reset_state: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    _check_devices(g, g_last, h, x, weight_ih, weight_hh, h0, reset, reset_state)
    n = (members,) if members else ()
    return (
        x.new_empty(x.shape) if need_x else None,
        h0.new_empty(h0.shape),
        x.new_empty(n + weight_ih.shape) if need_weight_ih else None,
        x.new_empty(n + weight_hh.shape) if need_weight_hh else None,
        x.new_empty((*n, weight_ih.size(0))) if need_bias else None,
        h0.new_empty(h0.shape, dtype=torch.float64) if need_reset_state else None,
    )


@torch.library.register_fake("fused_bptt::layer_backward_")  # type: ignore[untyped-decorator]
def _(
    g: Tensor | None,
    g_last: Tensor | None,
    h: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    x_bar: Tensor | None,
    weight_ih_bar: Tensor | None,
    weight_hh_bar: Tensor | None,
    bias_bar: Tensor | None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
    before: int = 0,
    clip: int = 0,
    clip_limit: float = 0.0,
    replaced: Tensor | None = None,
) -> Tensor:
    written = (x_bar, weight_ih_bar, weight_hh_bar, bias_bar, replaced)
    _check_devices(g, g_last, h, x, weight_ih, weight_hh, h0, *written, reset, reset_state)
    return h0.new_empty(h0.shape)


@torch.library.register_fake("fused_bptt::normal")  # type: ignore[untyped-decorator]
def _(like: Tensor, groups: int, seed: int) -> Tensor:
    return like.new_empty(like.shape)


@torch.library.register_fake("fused_bptt::flags")  # type: ignore[untyped-decorator]
def _(like: Tensor, groups: int, probability: float, seed: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.bool)


@torch.library.register_vmap("fused_bptt::flags")  # type: ignore[untyped-decorator]
def _(
    info: object,
    in_dims: tuple[int | None, ...],
    like: Tensor,
    groups: int,
    probability: float,
    seeds: Tensor,
) -> tuple[Tensor, int]:
    """A seed of each member, which is all that can differ between them."""
    dim = in_dims[3]
    assert dim is not None
    return torch.stack([flags(like, groups, probability, seed) for seed in seeds.unbind(dim)]), 0


@torch.library.register_fake("fused_bptt::leaky_layer")  # type: ignore[untyped-decorator]
def _(
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
    nonlinearity: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    leak = (keep, gain, noise, noise_scale)
    _check_devices(x, weight_ih, weight_hh, bias, initial, *leak, reset, reset_state)
    shape = (*x.shape[:-1], weight_ih.size(0))
    return x.new_empty(shape), x.new_empty(shape), initial.new_empty(initial.shape)


@torch.library.register_fake("fused_bptt::leaky_layer_backward")  # type: ignore[untyped-decorator]
def _(
    g: Tensor | None,
    g_rate: Tensor | None,
    g_last: Tensor | None,
    state: Tensor,
    rate: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    keep: Tensor,
    gain: Tensor | None,
    initial: Tensor,
    sent_initial: Tensor,
    noise: Tensor | None,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
    need_x: bool,
    need_weight_ih: bool,
    need_weight_hh: bool,
    need_bias: bool,
    need_leak: bool,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    sent_reset_state: Tensor | None = None,
    window: int = 0,
    clip: int = 0,
    clip_limit: float = 0.0,
) -> tuple[Any, ...]:
    _check_devices(g, g_rate, g_last, state, rate, x, weight_ih, weight_hh, keep, initial, noise)

    def like(model: Tensor | None, need: bool) -> Tensor | None:
        return x.new_empty(model.shape) if need and model is not None else None

    return (
        like(x, need_x),
        like(weight_ih, need_weight_ih),
        like(weight_hh, need_weight_hh),
        x.new_empty(weight_ih.size(0)) if need_bias else None,
        like(keep, need_leak),
        like(gain, need_leak),
        x.new_empty(weight_ih.size(0)) if need_leak and noise is not None else None,
        initial.new_empty(2, *initial.shape),
        None if reset is None else initial.new_empty(2, *initial.shape, dtype=torch.float64),
    )


def _check_devices(*tensors: Tensor | None) -> None:
    """Of a mixture of devices one kernel is chosen, which cannot tell; a fake one least of all."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise RuntimeError(f"operands: expected to be on one device, got {names}")


def compiled_isas() -> list[str]:
    """CPU instruction sets that this build contains, widest last."""
    return torch.ops.fused_bptt.compiled_isas().split()  # type: ignore[no-any-return]


def cpu_isas() -> list[str]:
    """Those of :func:`compiled_isas` that this machine has."""
    return torch.ops.fused_bptt.cpu_isas().split()  # type: ignore[no-any-return]


def cpu_isa() -> str:
    """The instruction set in use: the widest, or the one that ``FUSED_BPTT_CPU`` names.

    Raises:
        RuntimeError: ``FUSED_BPTT_CPU`` names one that is not in :func:`cpu_isas`.
    """
    return torch.ops.fused_bptt.cpu_isa()  # type: ignore[no-any-return]


def cuda_archs() -> list[str]:
    """CUDA architectures that this build contains; empty if it is for the CPU alone."""
    return torch.ops.fused_bptt.cuda_archs().split()  # type: ignore[no-any-return]


def explain_plan(
    B: int, G: int, H: int, products: str, device_limits: str, step: str = "plain"
) -> str:
    """How CUDA would compute G recurrences of H units over B batch rows, and what else was weighed.

    Args:
        B: batch rows.
        G: groups.
        H: hidden units.
        products: ``"float64"``, ``"float32"`` (strict), ``"float32 tf32"`` (TF32 is allowed),
            ``"bfloat16"``, ``"float16"``; or one way to multiply: ``"fp64"``, ``"fp32"``,
            ``"tf32x3"``, ``"tf32"``, ``"bf16"``, ``"fp16"``.
        device_limits: one of :func:`named_limits`, or what :func:`cuda_limits` returns.
        step: ``"leaky"``, of :func:`leaky_recurrence` and :func:`leaky_linear`; ``"clipped"`` or
            ``"norm-clipped"``, of an adjoint with ``CLIP_VALUE`` or ``CLIP_NORM``; else
            ``"plain"``, the default.

    Returns:
        A line for the limits, one for the plan that is chosen (none if nothing can be), and one for
        each way to multiply, to exchange and to keep W: ``chosen``, ``priced`` or ``refused``, then
        ``name=value`` words; ``why=`` takes the rest of its line.

    Raises:
        RuntimeError: an unknown name.
    """
    return torch.ops.fused_bptt.explain_plan(B, G, H, products, device_limits, step)  # type: ignore[no-any-return]


def named_limits() -> list[str]:
    """Devices whose limits are known without having one."""
    return torch.ops.fused_bptt.named_limits().split(", ")  # type: ignore[no-any-return]


def cuda_limits(device: int) -> str:
    """The limits of a CUDA device of this machine, for :func:`explain_plan`.

    Raises:
        RuntimeError: this build has no CUDA kernels, or there is no such device.
    """
    return torch.ops.fused_bptt.cuda_limits(device)  # type: ignore[no-any-return]


#: When a monitor reads: a key means a clock, or nothing any more; a pass is counted, is it to be
#: read? See csrc/library.cpp.
watch = torch.ops.fused_bptt.watch.default
is_due = torch.ops.fused_bptt.is_due.default

_library = torch.library.Library("fused_bptt", "FRAGMENT")  # type: ignore[no-untyped-call]
_OBSERVED = (
    "(int key, Tensor? g, Tensor h, Tensor weight, Tensor?[]? rest=None, "
    "int outputs=1, int window=0) -> ()"
)


def _define_observe(name: str, schema: str) -> Callable[..., None]:
    """``read`` of what it is given, if :func:`is_due`; its kernel is in C++, for every device.

    It takes tensors of any strides. A compiler does not look inside, and neither leaves it out nor
    computes g twice: with any other tag, or none, Inductor does, once for each operator that reads
    it.
    """
    _library.define(name + schema, tags=(torch.Tag.flexible_layout,))  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"fused_bptt::{name}", lambda *args: None, lib=_library)
    operator: Callable[..., None] = getattr(torch.ops.fused_bptt, name).default
    torch.fx.node.has_side_effect(operator)
    return operator


#: Every argument costs a compiled step some time, so what most steps ask with has no more of them.
observe = _define_observe("observe", "(int key, Tensor g, Tensor h, Tensor weight) -> ()")
observe_more = _define_observe("observe_more", _OBSERVED)


def define_read(kernel: Callable[..., None]) -> None:
    """Says what ``read`` is: a kernel in Python, of the arguments of ``observe_more``."""
    _library.define(f"read{_OBSERVED}")  # type: ignore[no-untyped-call]
    _library.impl("read", kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
