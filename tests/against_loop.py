"""A case as `fused_bptt.rnn` and the taped loop take it, and the gradients of what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from cases import Case
from helpers import Named, cotangent, data_of
from taped import taped_rnn
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fused_bptt


class Setting(NamedTuple):
    """All tensors are leaves that require their gradients."""

    x: Tensor | PackedSequence
    hx: Tensor
    weights: list[Tensor]
    #: Like hx: what may replace a state.
    state: Tensor
    options: dict[str, Any]

    def leaves(self, *, learned: bool) -> Named:
        """What is differentiated in, `state` too where it is `learned`."""
        named = {"x": data_of(self.x), "hx": self.hx}
        if learned:
            named["state"] = self.state
        return named | {f"weight{i}": weight for i, weight in enumerate(self.weights)}

    def ours(self, **more: Any) -> Named:
        """Output and h_n of the library."""
        output, h_n = fused_bptt.rnn(self.x, self.hx, self.weights, **self.options, **more)
        return {"output": data_of(output), "h_n": h_n}

    def loop(self, **more: Any) -> Named:
        """Output and h_n of the loop."""
        x = self.x
        sizes = x.batch_sizes.tolist() if isinstance(x, PackedSequence) else None
        options = self.options | more
        output, h_n = taped_rnn(data_of(x), self.hx, self.weights, batch_sizes=sizes, **options)
        return {"output": output, "h_n": h_n}


def setting(case: Case, dtype: torch.dtype = torch.float64) -> Setting:
    """The loop knows the rows of a packed sequence in their packed order alone, and so do both."""
    x, hx = case.inputs(dtype)
    assert hx is not None
    if isinstance(x, PackedSequence):
        x = PackedSequence(x.data, x.batch_sizes)
    names = ("nonlinearity", "num_layers", "bidirectional")
    return Setting(
        x,
        hx,
        list(case.module(fused_bptt.RNN, dtype).parameters()),
        cotangent(hx, 5).requires_grad_(),
        {name: getattr(case, name) for name in names},
    )


def resets(case: Case, data: Tensor) -> Tensor:
    """True at three steps of ten."""
    return torch.rand(data.shape[:-1], generator=case.generator()) < 0.3


def cotangents_of(found: Named) -> list[Tensor]:
    """Of each result."""
    return [cotangent(value, seed) for seed, value in enumerate(found.values())]


def with_gradients(
    found: Named,
    leaves: Named,
    *,
    cotangents: Sequence[Tensor] | None = None,
    second: bool = False,
) -> Named:
    """The results, their gradients, and, if `second`, those of the gradients' squares."""
    cotangents = cotangents_of(found) if cotangents is None else cotangents
    points = list(leaves.values())
    bars = torch.autograd.grad(list(found.values()), points, cotangents, create_graph=second)
    found = found | {f"grad {name}": bar for name, bar in zip(leaves, bars, strict=True)}
    if second:
        again = torch.autograd.grad(sum(bar.square().sum() for bar in bars), points)
        found |= {f"again {name}": bar for name, bar in zip(leaves, again, strict=True)}
    return {name: value.detach() for name, value in found.items()}
