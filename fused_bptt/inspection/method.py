"""Ways to compute BPTT, right and wrong: the pieces that a mistake can change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .trace import Trace

#: The gradients that sum one share of each step, and the sequences that have a row for each.
SUMS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
SEQUENCES = ("input", "delta", "q")
NAMES = (*SUMS, *SEQUENCES, "hx")

#: From (case, slope, g) to (δ, q), all [T, B, H].
Sweep = Callable[["Case", Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A pass whose forward is known, in float64 on the CPU; shapes are those of the trace."""

    nonlinearity: str
    W_ih: Tensor
    W_hh: Tensor
    h0: Tensor
    x: Tensor
    z: Tensor
    h: Tensor
    slope: Tensor
    g: Tensor

    @classmethod
    def of(cls, trace: Trace) -> Case:
        """The forward pass and the loss's part g of a trace."""
        names = ("W_ih", "W_hh", "h0", "x", "z", "h", "slope", "g")
        wide = {name: getattr(trace, name).double().cpu() for name in names}
        return cls(trace.nonlinearity, **wide)

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        return self.h.size(0)

    @property
    def h_prev(self) -> Tensor:
        """[T, B, H] h_{t-1}, with h_0 first."""
        return torch.cat([self.h0[None], self.h[:-1]])


def carried(
    case: Case, slope: Tensor, g: Tensor, W: Tensor | None = None, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The right sweep: δ_t = g_t + W_hhᵀ q_{t+1}, q_t = φ'(z_t) ⊙ δ_t.

    ``W`` takes the place of W_hh; where ``keep`` [T] is False, nothing comes from the later step.
    """
    matrix = case.W_hh if W is None else W
    delta, q = torch.empty_like(g), torch.empty_like(g)
    later = torch.zeros_like(g[0])
    for t in range(case.T - 1, -1, -1):
        delta[t] = g[t] if keep is not None and not keep[t] else g[t] + later
        q[t] = slope[t] * delta[t]
        later = q[t] @ matrix
    return delta, q


@dataclass(frozen=True)
class Method:
    """The pieces that make the gradients; :meth:`right` has every one right."""

    case: Case
    slope: Tensor
    """[T, B, H] what is taken for φ'(z_t)."""
    g: Tensor
    """[T, B, H] what is taken for the loss's own part."""
    inputs: Tensor
    """[T, B, I] what q_t meets in dW_ih."""
    states: Tensor
    """[T, B, H] what q_t meets in dW_hh."""
    times: Tensor
    """[T] how often step t's share is added."""
    sweep: Sweep = carried
    delta_for_q: bool = False
    """δ_t is taken for q_t in the shares."""
    transposed: bool = False
    """dW_hh is Σ_t h_{t-1} q_tᵀ."""
    bias_ih: float = 1.0
    bias_hh: float = 1.0
    """What db_ih and db_hh are multiplied by."""
    scale: float = 1.0
    """What every gradient is multiplied by."""

    @classmethod
    def right(cls, case: Case) -> Method:
        """BPTT."""
        return cls(case, case.slope, case.g, case.x, case.h_prev, torch.ones(case.T).double())

    def changed(self, **changes: Any) -> Method:
        """With some pieces in place of others."""
        return replace(self, **changes)

    def results(self) -> Results:
        """What comes out."""
        delta, q = self.sweep(self.case, self.slope, self.g)
        return Results(self, self.scale * delta, self.scale * q)


@dataclass(frozen=True)
class Results:
    """What a method comes to, by name; shares are made when asked for."""

    method: Method
    delta: Tensor
    q: Tensor

    def steps(self, name: str) -> Tensor:
        """[T, ...] one row or share for each step."""
        if name == "delta":
            return self.delta
        if name == "q":
            return self.q
        method, used = self.method, self.delta if self.method.delta_for_q else self.q
        if name == "input":
            return used @ method.case.W_ih
        times = method.times
        if name == "weight_ih":
            return torch.einsum("t,tbh,tbi->thi", times, used, method.inputs)
        if name == "weight_hh":
            order = "t,tbh,tbk->tkh" if method.transposed else "t,tbh,tbk->thk"
            return torch.einsum(order, times, used, method.states)
        factor = method.bias_ih if name == "bias_ih" else method.bias_hh
        return factor * times[:, None] * used.sum(1)

    def total(self, name: str) -> Tensor:
        """The gradient: the sum of the steps where there is one, else all rows."""
        if name == "hx":
            return self.q[0] @ self.method.case.W_hh
        if name in SEQUENCES:
            return self.steps(name)
        return self.steps(name).sum(0)
