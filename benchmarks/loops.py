"""The Python loops over time that users write, taped by autograd: the rivals of the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, SIGMA, LIMIT = 0.2, 0.05, 1.0

#: A call, and the leaves that its gradients are taken of.
Prepared = tuple[Callable[[], Tensor], list[Tensor]]


@dataclass(frozen=True)
class Inputs:
    """What every loop gets: weights, x [T, B, I], h_0 [B, H], reset [T, B]."""

    weights: Mapping[str, Tensor]
    x: Tensor
    h_0: Tensor
    reset: Tensor

    @classmethod
    def draw(cls, T: int, B: int, INPUTS: int, H: int, resets: float) -> Inputs:
        torch.manual_seed(0)
        names = torch.nn.RNN(INPUTS, H).named_parameters()
        weights = {name.removesuffix("_l0"): p.detach().requires_grad_() for name, p in names}
        x, h_0 = torch.randn(T, B, INPUTS), torch.zeros(B, H)
        return cls(weights, x.requires_grad_(), h_0.requires_grad_(), torch.rand(T, B) < resets)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.h_0, *self.weights.values()]


def _driven(i: Inputs, x: Tensor) -> Tensor:
    return F.linear(x, i.weights["weight_ih"], i.weights["bias_ih"])


def _carried(i: Inputs, h: Tensor) -> Tensor:
    return F.linear(h, i.weights["weight_hh"], i.weights["bias_hh"])


def plain(i: Inputs) -> Tensor:
    """h = tanh(W_ih x + W_hh h)."""
    h, outputs = i.h_0, []
    for x in i.x:
        h = torch.tanh(_driven(i, x) + _carried(i, h))
        outputs.append(h)
    return torch.stack(outputs)


def with_resets(i: Inputs) -> Tensor:
    """The state is zero before a step that begins an episode."""
    h, outputs = i.h_0, []
    for x, reset in zip(i.x, i.reset, strict=True):
        h = h * (~reset).unsqueeze(1)
        h = torch.tanh(_driven(i, x) + _carried(i, h))
        outputs.append(h)
    return torch.stack(outputs)


def leaky(i: Inputs) -> Tensor:
    """h = (1 - a) h + a tanh(W_ih x + W_hh h)."""
    h, outputs = i.h_0, []
    for x in i.x:
        h = (1 - ALPHA) * h + ALPHA * torch.tanh(_driven(i, x) + _carried(i, h))
        outputs.append(h)
    return torch.stack(outputs)


def clipped(i: Inputs) -> Tensor:
    """The plain one; a hook of each state clips the norm of its gradient's rows."""

    def clip(a: Tensor) -> Tensor:
        return a * (LIMIT / a.norm(dim=1, keepdim=True)).clamp(max=1)

    h, outputs = i.h_0, []
    for x in i.x:
        h = torch.tanh(_driven(i, x) + _carried(i, h))
        if h.requires_grad:
            h.register_hook(clip)
        outputs.append(h)
    return torch.stack(outputs)


def voltage(i: Inputs) -> Tensor:
    """v = (1 - a) v + a (W_hh tanh(v) + W_ih x) + noise; gives tanh(v)."""
    v, outputs = i.h_0, []
    for x in i.x:
        v = v + ALPHA * (-v + _carried(i, torch.tanh(v)) + _driven(i, x))
        v = v + SIGMA * torch.randn_like(v)
        outputs.append(torch.tanh(v))
    return torch.stack(outputs)


LOOPS: dict[str, Callable[[Inputs], Tensor]] = {
    "plain": plain,
    "reset": with_resets,
    "leaky": leaky,
    "voltage": voltage,
    "clip": clipped,
}
