"""The RNN as a loop over time in plain torch, out of place: what every transform can go through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def taped_rnn(
    data: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_sizes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """What `fused_bptt.rnn` computes; data [T, B, I], or packed rows [N, I] with `batch_sizes`."""
    phi = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    directions = 2 if bidirectional else 1
    steps = list(data.split(list(batch_sizes)) if batch_sizes is not None else data.unbind(0))
    last_states = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            state = layer * directions + direction
            weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * state : 4 * state + 4]
            h = hx[state]
            found: list[Tensor] = []
            for x in reversed(steps) if direction else steps:
                rows = x.size(0)  # sequences that have ended, or not begun, keep their state
                z = x @ weight_ih.mT + bias_ih + h[:rows] @ weight_hh.mT + bias_hh
                h = torch.cat([phi(z), h[rows:]])
                found.append(h[:rows])
            last_states.append(h)
            outputs.append(found[::-1] if direction else found)
        steps = [torch.cat(of_step, dim=-1) for of_step in zip(*outputs, strict=True)]
    output = torch.cat(steps) if batch_sizes is not None else torch.stack(steps)
    return output, torch.stack(last_states)
