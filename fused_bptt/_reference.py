"""The two primitives and BPTT by hand in plain torch, for tests and benchmarks.

Never a runtime path.

Notation: T steps, B batch rows, G groups (independent recurrences), I inputs, H hidden units.

    recurrence         h_t = φ(u_t + W h_{t-1})
    linear recurrence  s_t = d_t ⊙ (v_t + W s_{t-1})
    its adjoint        q_t = d_t ⊙ (v_t + r_t),  r_t = Wᵀ q_{t+1}

Tensors hold row vectors, so `W h` is written `h @ W.T` and `Wᵀ q` is written `q @ W`.

A sequence is [T, B, G, H], or packed rows [N, G, H] with the number of rows of every step in
`batch_sizes` [T], as in `torch.nn.utils.rnn.PackedSequence`. The last `reverse_groups` groups walk
from the last step to the first; packed, each row then starts at its own end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

GIVEN, TANH, RELU = 0, 1, 2


def recurrence(
    u: Tensor,
    weight: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    nonlinearity: int,
) -> tuple[Tensor, Tensor]:
    """h_t = φ(u_t + W h_{t-1}), and each row's last h: step by step, so that autograd can tape it.

    Arguments and results are those of the operator of the same name.
    """
    phi = {TANH: torch.tanh, RELU: torch.relu}[nonlinearity]
    drive, matrix = _rows(_wide(u), batch_sizes), _wide(weight)

    def step(group: int, rows: slice, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        z = drive[rows, group]
        h = phi(z if carried is None else z + carried @ matrix[group].T)
        return h, h

    h, last = _walk(step, drive, _sizes(u, batch_sizes), _wide(h0), reverse_groups, adjoint=False)
    return h.reshape(u.shape).to(u.dtype), last.to(u.dtype)


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
    """The linear recurrence or its adjoint, step by step, and what it carried last.

    - s_t = d_t ⊙ (v_t + W s_{t-1}), from s_0 to s_T;
    - adjoint, every group the other way in time: q_t = d_t ⊙ (v_t + r_t) with r_t = Wᵀ q_{t+1},
      from r_T, which `s0` then is, to r_0.

    Arguments and results are those of the operator of the same name. `derivative` says what
    `factor` is: d itself (0), or h with d = 1 - h² (1) or d = [h > 0] (2). No `v` is zero; no `s0`
    is zero too, and then the first step of a row takes no product.
    """
    drive = _rows(torch.zeros_like(_wide(factor)) if v is None else _wide(v), batch_sizes)
    factors, matrix = _rows(_wide(factor), batch_sizes), _wide(weight)

    def step(group: int, rows: slice, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        z = drive[rows, group]
        if carried is not None:
            z = z + (carried if adjoint else carried @ matrix[group].T)
        s = _times_derivative(z, factors[rows, group], derivative)
        return s, s @ matrix[group] if adjoint else s

    start = None if s0 is None else _wide(s0)
    s, last = _walk(step, drive, _sizes(factor, batch_sizes), start, reverse_groups, adjoint)
    return s.reshape(factor.shape).to(factor.dtype), last.to(factor.dtype)


class Gradients(NamedTuple):
    """What `bptt_by_hand` gives: every quantity of the backward pass, one row per step."""

    h: Tensor
    """[T, B, H] the states that the forward pass computed."""
    dh: Tensor
    """[T, B, H] ∂L/∂h_t along every path: g_t + Wᵀ q_{t+1}."""
    q: Tensor
    """[T, B, H] q_t = φ'(h_t) ⊙ ∂L/∂h_t."""
    du: Tensor
    """[T, B, H] ∂L/∂u_t, which is q_t: u_t and W h_{t-1} are added, so φ' is all between."""
    dx: Tensor
    """[T, B, I] W_ihᵀ q_t."""
    dW_ih: Tensor  # noqa: N815
    """[H, I] Σ_t q_t x_tᵀ."""
    dW_hh: Tensor  # noqa: N815
    """[H, H] Σ_t q_t h_{t-1}ᵀ."""
    db: Tensor
    """[H] Σ_t q_t: the gradient of b_ih and of b_hh alike."""
    dh0: Tensor
    """[B, H] Wᵀ q_1."""


def bptt_by_hand(
    x: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    b: Tensor,
    h0: Tensor,
    g: Tensor,
    nonlinearity: str = "tanh",
) -> Gradients:
    """Backpropagation through time of one layer, written from the equations, one step at a time.

    Forward, from t = 1 to T::

        u_t = W_ih x_t + b              b = b_ih + b_hh
        h_t = φ(u_t + W_hh h_{t-1})

    Backward, from t = T to 1, beginning with q_{T+1} = 0::

        ∂L/∂h_t = g_t + W_hhᵀ q_{t+1}   what the loss asks of h_t, and what step t + 1 asks of it
        q_t     = φ'(h_t) ⊙ ∂L/∂h_t     tanh' = 1 - h_t²,  relu' = [h_t > 0]

    and each step adds its share q_t x_tᵀ, q_t h_{t-1}ᵀ and q_t to the gradients of W_ih, W_hh, b.

    x is [T, B, I], h0 [B, H], and g [T, B, H] is the cotangent: ∂L/∂h_t along the paths that do not
    go through h_{t+1}. A loss of the last state alone has g_t = 0 before the last step.
    """
    T, B, _ = x.shape
    code = {"tanh": TANH, "relu": RELU}[nonlinearity]
    phi = {TANH: torch.tanh, RELU: torch.relu}[code]

    h = x.new_empty(T, B, W_hh.shape[0])
    previous = h0
    for t in range(T):
        u_t = x[t] @ W_ih.T + b
        h[t] = phi(u_t + previous @ W_hh.T)
        previous = h[t]

    dh, q, dx = torch.empty_like(h), torch.empty_like(h), torch.empty_like(x)
    dW_ih, dW_hh, db = torch.zeros_like(W_ih), torch.zeros_like(W_hh), torch.zeros_like(b)
    from_later = torch.zeros_like(h0)
    for t in reversed(range(T)):
        dh[t] = g[t] + from_later
        q[t] = _times_derivative(dh[t], h[t], code)
        dx[t] = q[t] @ W_ih
        dW_ih += q[t].T @ x[t]
        dW_hh += q[t].T @ (h[t - 1] if t > 0 else h0)
        db += q[t].sum(0)
        from_later = q[t] @ W_hh
    return Gradients(h, dh, q, q, dx, dW_ih, dW_hh, db, from_later)


def _times_derivative(z: Tensor, factor: Tensor, derivative: int) -> Tensor:
    """d ⊙ z. Relu chooses, as torch does, so that 0 stays 0 beside NaN and a NaN state passes z."""
    if derivative == TANH:
        return z * (1 - factor * factor)
    if derivative == RELU:
        return torch.where(factor <= 0, torch.zeros_like(z), z)
    return z * factor


def _wide(tensor: Tensor) -> Tensor:
    """In the type that is computed and carried in: float32 for the two 16-bit types."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _rows(sequence: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """[N, G, H], step after step, from either layout."""
    return sequence if batch_sizes is not None else sequence.flatten(0, 1)


def _sizes(sequence: Tensor, batch_sizes: Tensor | None) -> list[int]:
    """The number of rows of every step, in either layout."""
    if batch_sizes is not None:
        return [int(size) for size in batch_sizes]
    return [sequence.shape[1]] * sequence.shape[0]


def _steps(sizes: list[int], backwards: bool) -> Iterator[tuple[int, slice]]:
    """Step and its rows, in the order of the walk."""
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()
    order = reversed(range(len(sizes))) if backwards else range(len(sizes))
    for t in order:
        yield t, slice(ends[t] - sizes[t], ends[t])


def _walk(
    step: Callable[[int, slice, Tensor | None], tuple[Tensor, Tensor]],
    like: Tensor,
    sizes: list[int],
    start: Tensor | None,
    reverse_groups: int,
    adjoint: bool,
) -> tuple[Tensor, Tensor]:
    """Carry the state of every group through its steps: [N, G, H], and the last state [G, B, H].

    `step` is given a group, its rows and what they carry (None: they begin here, with no state);
    it returns what the rows become and what they carry on.
    """
    results, states = [], []
    for group in range(like.shape[1]):
        backwards = (group >= like.shape[1] - reverse_groups) != adjoint
        state = like.new_empty(0, like.shape[2]) if start is None else start[group]
        steps: list[Tensor] = [like[:0, group]] * len(sizes)
        for t, rows in _steps(sizes, backwards):
            # The first `known` rows carry a state, the others begin here.
            known = min(len(state), sizes[t])
            middle = rows.start + known
            parts = []
            if known > 0:
                parts.append(step(group, slice(rows.start, middle), state[:known]))
            if known < sizes[t]:
                parts.append(step(group, slice(middle, rows.stop), None))
            if parts:
                steps[t] = torch.cat([out for out, _ in parts])
                # A row that ended, or has not begun, keeps the state that it has.
                state = torch.cat([*(carried for _, carried in parts), state[sizes[t] :]])
        results.append(torch.cat([like[:0, group], *steps]))
        states.append(state)
    return torch.stack(results, 1), torch.stack(states)
