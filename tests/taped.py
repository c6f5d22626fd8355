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
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    bptt_window: int = 0,
) -> tuple[Tensor, Tensor]:
    """What `fused_bptt.rnn` computes; data [T, B, I], or packed rows [N, I] with `batch_sizes`."""

    def per_step(rows: Tensor) -> list[Tensor]:
        return list(rows.split(list(batch_sizes)) if batch_sizes is not None else rows.unbind(0))

    resets = None if reset is None else per_step(reset)
    sizes = [data.size(1)] * data.size(0) if batch_sizes is None else list(batch_sizes)
    count = len(sizes)

    def cut(h: Tensor, boundary: int, backwards: bool, state: int) -> Tensor:
        """What is carried over the boundary before step `boundary` in time."""
        if boundary == count or (boundary == 0 and backwards):
            return h
        rows = sizes[boundary]  # the others end or begin here
        carried, others = h[:rows], h[rows:]
        if bptt_window and boundary > 0 and boundary % bptt_window == 0:
            carried = carried.detach()
        if resets is not None:
            other = torch.zeros_like(h) if reset_state is None else reset_state[state]
            carried = torch.where(resets[boundary][:, None], other[:rows], carried)
        return torch.cat([carried, others])

    phi = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    directions = 2 if bidirectional else 1
    steps = per_step(data)
    last_states = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            state = layer * directions + direction
            weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * state : 4 * state + 4]
            h = hx[state]
            found: list[Tensor] = []
            for t in range(count)[:: -1 if direction else 1]:
                x, h = steps[t], cut(h, t + direction, direction == 1, state)
                rows = x.size(0)  # sequences that have ended, or not begun, keep their state
                z = x @ weight_ih.mT + bias_ih + h[:rows] @ weight_hh.mT + bias_hh
                h = torch.cat([phi(z), h[rows:]])
                found.append(h[:rows])
            last_states.append(h)
            outputs.append(found[::-1] if direction else found)
        steps = [torch.cat(of_step, dim=-1) for of_step in zip(*outputs, strict=True)]
    output = torch.cat(steps) if batch_sizes is not None else torch.stack(steps)
    return output, torch.stack(last_states)
