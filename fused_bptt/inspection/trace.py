"""``fused_bptt.trace``: one backward pass laid open, factor by factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _ops
from .._algebra import activate, slope
from ..functional import _NONLINEARITIES
from ..functional import rnn as run
from ..module import RNN
from .passes import nonlinearity_of

#: Takes what ``rnn(x, hx)`` returns, ``(output, h_n)``, and gives a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]

#: What has a gradient with one share for each step.
SHARED = ("W_ih", "W_hh", "b", "x")


def sum_of_last(output: Tensor, h_n: Tensor) -> Tensor:
    """The default loss: the sum of all entries of h_n."""
    return h_n.sum()


@dataclass(frozen=True, repr=False)
class Trace:
    """One layer and direction of one pass: the states, the factors and every step's share.

    Letters are those of docs/design.md. Sequences are in the order of the walk, so that row 0 is
    step 1: for a reverse direction that is the last input. Methods that take ``t`` count as the
    equations do: step t is 1 to T, and t = 0 is the initial state. All tensors have the module's
    dtype and device. What would take T · H · H numbers is computed when it is asked for.
    """

    nonlinearity: str
    """``"tanh"`` or ``"relu"``."""
    W_ih: Tensor
    """[H, I]."""
    W_hh: Tensor
    """[H, H], the row receives."""
    b: Tensor
    """[H] b_ih + b_hh, zero without biases."""
    h0: Tensor
    """[B, H]."""
    x: Tensor
    """[T, B, I] this layer's input."""
    z: Tensor
    """[T, B, H] z_t = W_ih x_t + b + W_hh h_{t-1}."""
    h: Tensor
    """[T, B, H] h_t = φ(z_t)."""
    slope: Tensor
    """[T, B, H] φ'(z_t): 1 - h_t² of tanh, [h_t > 0] of relu."""
    g: Tensor
    """[T, B, H] what the loss asks of h_t directly, the other states held fixed."""
    delta: Tensor
    """[T, B, H] δ_t = ∂L/∂h_t = g_t + W_hhᵀ q_{t+1}."""
    q: Tensor
    """[T, B, H] q_t = ∂L/∂z_t = φ'(z_t) ⊙ δ_t."""

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        return self.h.size(0)

    @property
    def h_prev(self) -> Tensor:
        """[T, B, H] h_{t-1}, with h_0 first."""
        return torch.cat([self.h0[None], self.h[:-1]])

    @property
    def dh0(self) -> Tensor:
        """[B, H] ∂L/∂h_0 = W_hhᵀ q_1."""
        return self.q[0] @ self.W_hh

    def share(self, name: str, t: int) -> Tensor:
        """What step t gives to one gradient.

        Args:
            name: ``"W_ih"``: Σ_b q_t x_tᵀ [H, I]; ``"W_hh"``: Σ_b q_t h_{t-1}ᵀ [H, H]; ``"b"``:
                Σ_b q_t [H]; ``"x"``: W_ihᵀ q_t [B, I], which is all of x_t's gradient.
            t: 1 to T.

        Raises:
            ValueError: no such name or step.
        """
        self._check(t, first=1)
        q = self.q[t - 1]
        if name == "W_ih":
            return q.T @ self.x[t - 1]
        if name == "W_hh":
            return q.T @ (self.h[t - 2] if t > 1 else self.h0)
        if name == "b":
            return q.sum(0)
        if name == "x":
            return q @ self.W_ih
        raise ValueError(f"name: expected one of {', '.join(SHARED)}, got {name!r}")

    def shares(self, name: str) -> Tensor:
        """Every step's :meth:`share`, [T, ...]: T · H · H numbers for ``"W_hh"``."""
        return torch.stack([self.share(name, t) for t in range(1, self.T + 1)])

    def gradient(self, name: str) -> Tensor:
        """The sum of the shares, which is the gradient; [T, B, I] for ``"x"``.

        The products over all steps are taken at once; no share is kept.
        """
        rows = self.q.flatten(0, 1)
        if name == "W_ih":
            return rows.T @ self.x.flatten(0, 1)
        if name == "W_hh":
            return rows.T @ self.h_prev.flatten(0, 1)
        if name == "b":
            return rows.sum(0)
        if name == "x":
            return self.q @ self.W_ih
        raise ValueError(f"name: expected one of {', '.join(SHARED)}, got {name!r}")

    def share_norms(self, name: str) -> Tensor:
        """[T] Frobenius norm of every step's :meth:`share`.

        A share of a single row of the batch is an outer product, and its norm the product of two
        norms. Shares of more rows are made, some 64 MiB of them at a time.
        """
        first = self.share(name, 1)
        if name in ("W_ih", "W_hh") and self.h.size(1) == 1:
            met = self.x if name == "W_ih" else self.h_prev
            norms: Tensor = self.q[:, 0].norm(dim=1) * met[:, 0].norm(dim=1)
            return norms
        norms = self.q.new_empty(self.T)
        count = max(1, (64 << 20) // max(1, first.nbytes))
        for begin in range(0, self.T, count):
            end = min(begin + count, self.T)
            shares = torch.stack([self.share(name, t) for t in range(begin + 1, end + 1)])
            norms[begin:end] = shares.flatten(1).norm(dim=1)
        return norms

    def jacobian(self, t: int) -> Tensor:
        """[B, H, H] ∂h_t/∂h_{t-1} = diag(φ'(z_t)) W_hh, for t from 1 to T."""
        self._check(t, first=1)
        return self.slope[t - 1][:, :, None] * self.W_hh

    def jacobians(self) -> Tensor:
        """[T, B, H, H] every step's :meth:`jacobian`."""
        return self.slope[..., None] * self.W_hh

    def to_last(self, t: int) -> Tensor:
        """[B, H, H] ∂h_T/∂h_t = J_T J_{T-1} ... J_{t+1}, for t from 0 to T (the identity)."""
        self._check(t, first=0)
        product = self._identity()
        for step in range(self.T, t, -1):
            product = self._one_step_back(product, step)
        return product

    def log10_norms_to_last(self) -> Tensor:
        """[T + 1, B] log10 of ‖∂h_T/∂h_t‖ (Frobenius) for t from 0 to T; float64.

        One product [B, H, H] is carried and rescaled at every step, so neither memory nor the range
        of the dtype limits T. It costs T products of two H × H matrices for each batch row, and
        ends where the Jacobian has become zero.
        """
        product, exponent = self._identity(), self.h.new_zeros(self.h.size(1), dtype=torch.float64)
        norms = exponent.new_full((self.T + 1, len(exponent)), -math.inf)
        for t in range(self.T, -1, -1):
            size = torch.linalg.vector_norm(product, dim=(1, 2)).double()
            exponent = exponent + size.log10()
            norms[t] = exponent
            if t == 0 or not (size > 0).any():
                break
            product = product / size.where(size > 0, 1).to(product.dtype)[:, None, None]
            product = self._one_step_back(product, t)
        return norms

    def spectral_radius(self, t: int) -> Tensor:
        """[B] largest |eigenvalue| of ∂h_t/∂h_{t-1}; float64."""
        radius: Tensor = torch.linalg.eigvals(self.jacobian(t).double()).abs().amax(1)
        return radius

    def spectral_radii(self) -> Tensor:
        """[T, B] every step's :meth:`spectral_radius`: T eigenvalue problems of size H."""
        return torch.stack([self.spectral_radius(t) for t in range(1, self.T + 1)])

    def flow(self, small: float = 1e-3, large: float = 1e3) -> str:
        """In a sentence: from which step back the gradient of h_T has vanished or exploded.

        Measured by ‖∂h_T/∂h_t‖ against that of the identity, the largest over the batch.
        """
        norms = self.log10_norms_to_last().amax(1)
        relative = norms - norms[-1]
        gain = 10 ** (relative[0].item() / self.T)
        said = f"(on average {gain:.3g} times a step)."
        start = f"From step {self.T} back"
        for verb, reached in (
            (f"vanishes: below {small:g}", relative < math.log10(small)),
            (f"explodes: above {large:g}", relative > math.log10(large)),
        ):
            steps = reached.nonzero()
            if len(steps):
                return f"{start}, ∂h_T/∂h_t {verb} at t = {steps[-1].item()} {said}"
        return f"{start} to h_0, ∂h_T/∂h_t neither vanishes nor explodes {said}"

    def __repr__(self) -> str:
        """Name, shape and dtype of every array."""
        lines = [f"Trace of {self.nonlinearity}, {self.T} steps, {self.h.dtype}:"]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                lines.append(f"  {field.name:<6}{list(value.shape)}")
        return "\n".join(lines)

    def _check(self, t: int, first: int) -> None:
        if not first <= t <= self.T:
            raise ValueError(f"t: expected a step from {first} to {self.T}, got {t}")

    def _identity(self) -> Tensor:
        size = self.h.size(2)
        identity = torch.eye(size, dtype=self.h.dtype, device=self.h.device)
        return identity.expand(self.h.size(1), size, size)

    def _one_step_back(self, product: Tensor, t: int) -> Tensor:
        """[B, H, H] times J_t, without making J_t."""
        return (product * self.slope[t - 1][:, None, :]) @ self.W_hh


def trace(
    rnn: nn.RNNBase,
    x: Tensor,
    hx: Tensor | None = None,
    loss: Loss = sum_of_last,
    *,
    layer: int = 0,
    reverse: bool = False,
) -> Trace:
    """Runs ``rnn`` forward and backward and lays one layer and direction of the pass open.

    The equations are those of Werbos, "Backpropagation through time: what it does and how to do
    it" (1990), in the notation of docs/design.md. Before it is returned, the trace is checked: that
    each step's equations hold, and that the shares add up to autograd's gradients.

    Args:
        rnn: a :class:`fused_bptt.RNN` or :class:`torch.nn.RNN`; nothing of it is changed, and
            no ``.grad`` is touched.
        x: [T, B, I]; [B, T, I] if ``rnn.batch_first``; or [T, I] unbatched, then B is 1.
        hx: initial state, shaped as ``rnn`` takes it. Default: zero.
        loss: ``loss(output, h_n)``, a scalar. Default: the sum of h_n.
        layer: which layer, from 0. Default 0.
        reverse: the direction that walks time backwards. Default False.

    Returns:
        The :class:`Trace`.

    Raises:
        TypeError: ``rnn`` or ``x`` is of another kind.
        ValueError: no such layer or direction, no steps, dropout in training mode, or the loss is
            not a scalar that depends on the states.
        RuntimeError, ValueError: shapes or dtypes do not fit, in ``nn.RNN``'s words.
    """
    _check_arguments(rnn, x, hx, layer, reverse)
    directions = 2 if rnn.bidirectional else 1
    weights = [getattr(rnn, name).detach().requires_grad_() for name in rnn._flat_weights_names]
    per_layer = len(weights) // rnn.num_layers
    nonlinearity = nonlinearity_of(rnn)

    batched = x.dim() == 3
    start, states = x.detach(), None if hx is None else hx.detach()
    if batched and rnn.batch_first:
        start = start.transpose(0, 1)
    if not batched:
        start = start.unsqueeze(1)
        states = None if states is None else states.unsqueeze(1)
    if states is None:
        states = start.new_zeros(rnn.num_layers * directions, start.size(1), rnn.hidden_size)
    start.requires_grad_()

    inputs, outputs, lasts = [start], [], []
    with torch.enable_grad():
        for depth in range(rnn.num_layers):
            output, last = run(
                inputs[-1],
                states[depth * directions : (depth + 1) * directions],
                weights[depth * per_layer : (depth + 1) * per_layer],
                nonlinearity=nonlinearity,
                bias=rnn.bias,
                bidirectional=rnn.bidirectional,
            )
            outputs.append(output)
            lasts.append(last)
            inputs.append(output)
        value = _loss_of(loss, outputs[-1], torch.cat(lasts), batched, rnn.batch_first)
    first = layer * per_layer + int(reverse) * (per_layer // directions)
    own = weights[first : first + per_layer // directions]
    g_all, g_n, dx, *dW = torch.autograd.grad(
        value, [outputs[layer], lasts[layer], inputs[layer], *own], allow_unused=True
    )

    direction = int(reverse)
    found = _walk(
        x=inputs[layer].detach(),
        h=outputs[layer].detach().chunk(directions, 2)[direction],
        h0=states[layer * directions + direction],
        g=None if g_all is None else g_all.chunk(directions, 2)[direction],
        g_n=None if g_n is None else g_n[direction],
        parameters=[parameter.detach() for parameter in own],
        nonlinearity=nonlinearity,
        reverse=reverse,
    )
    names: dict[str, Tensor | None] = dict(zip(("W_ih", "W_hh", "b"), dW, strict=False))
    if directions == 1:  # else x has a gradient from both
        names["x"] = dx
    _check_sums(found, names)
    return found


def _walk(
    *,
    x: Tensor,
    h: Tensor,
    h0: Tensor,
    g: Tensor | None,
    g_n: Tensor | None,
    parameters: list[Tensor],
    nonlinearity: str,
    reverse: bool,
) -> Trace:
    """All factors of one direction, in the order of its walk."""
    W_ih, W_hh, *biases = parameters
    b = biases[0] + biases[1] if biases else W_ih.new_zeros(len(W_hh))
    asked = torch.zeros_like(h) if g is None else g.clone()
    if reverse:
        x, h, asked = x.flip(0), h.flip(0), asked.flip(0)
    if g_n is not None:
        asked[-1] += g_n
    h = h.contiguous()
    phi = _NONLINEARITIES[nonlinearity]
    q, _ = _ops.linear_recurrence(
        h, asked.contiguous(), W_hh.contiguous(), None, None, 0, phi, True
    )
    delta = asked.clone()
    delta[:-1] += q[1:] @ W_hh
    z = x @ W_ih.T + b + torch.cat([h0[None], h[:-1]]) @ W_hh.T
    d = slope(h, phi)
    _require_equal("h_t = φ(z_t)", h, activate(z, phi))
    _require_equal("q_t = φ'(z_t) ⊙ δ_t", q, d * delta)
    return Trace(nonlinearity, W_ih, W_hh, b, h0, x, z, h, d, asked, delta, q)


def _check_sums(found: Trace, autograd: dict[str, Tensor | None]) -> None:
    for name, gradient in autograd.items():
        if gradient is not None:
            _require_equal(f"the sum of the shares of {name}", found.gradient(name), gradient)


def _require_equal(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Equal but for rounding, which sums in another order have; NaN where NaN is."""
    finite = ours.isfinite() & theirs.isfinite()
    scale = theirs[finite].abs().max() if finite.any() else theirs.new_zeros(())
    apart = (ours - theirs)[finite].abs().max() if finite.any() else theirs.new_zeros(())
    if not apart <= math.sqrt(torch.finfo(ours.dtype).eps) * scale:
        raise AssertionError(f"trace: {what} fails by {apart:g} of {scale:g}; this is a bug")


def _loss_of(loss: Loss, output: Tensor, h_n: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        output, h_n = output.squeeze(1), h_n.squeeze(1)
    elif batch_first:
        output = output.transpose(0, 1)
    value = loss(output, h_n)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar tensor, got {got}")
    if not value.requires_grad:
        raise ValueError("loss: expected a function of (output, h_n), got one that uses neither")
    return value.reshape(())


def check_module(rnn: object) -> None:
    """Raises where ``rnn`` is not one that can be traced (name, expected, got)."""
    if not isinstance(rnn, RNN | nn.RNN):
        raise TypeError(
            f"rnn: expected a fused_bptt.RNN or torch.nn.RNN, got {type(rnn).__qualname__}"
        )
    if rnn.nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got '{rnn.nonlinearity}'")


def _check_arguments(
    rnn: nn.RNNBase, x: Tensor, hx: Tensor | None, layer: int, reverse: bool
) -> None:
    check_module(rnn)
    if isinstance(x, PackedSequence):
        raise TypeError("x: expected a Tensor, got PackedSequence; trace its rows one by one")
    for name, given in (("x", x), ("hx", hx)):
        if not isinstance(given, Tensor) and not (name == "hx" and given is None):
            raise TypeError(f"{name}: expected a Tensor, got {type(given).__qualname__}")
    if not 0 <= layer < rnn.num_layers:
        raise ValueError(f"layer: expected 0 to {rnn.num_layers - 1}, got {layer}")
    if reverse and not rnn.bidirectional:
        raise ValueError("reverse: expected False, as rnn is not bidirectional, got True")
    if rnn.dropout and rnn.training and rnn.num_layers > 1:
        raise ValueError("rnn: expected no dropout while tracing; call rnn.eval() first")
    if x.dim() in (2, 3) and 0 in x.shape[: x.dim() - 1]:
        raise ValueError(f"x: expected at least one step and one row, got {list(x.shape)}")
