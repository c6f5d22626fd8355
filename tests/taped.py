"""The RNN as a loop over time in plain torch, out of place: what every transform can go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fused_bptt import _ops
from fused_bptt.functional import _NONLINEARITIES


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
    held: Sequence[Tensor] | None = None,
    dropped: Sequence[Tensor] | None = None,
    hook: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """What `fused_bptt.rnn` computes; data [T, B, I], or packed rows [N, I] with `batch_sizes`.

    `held`: zoneout's m of each layer, [T, B, D, H] or [N, D, H]; `dropped`: what each layer's state
    is multiplied by on its way through W_hh, [D, B, H]; `hook` gets the gradient of each state.
    """

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

    phi = ACTIVATIONS[_NONLINEARITIES[nonlinearity]]
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
                sent = h[:rows] if dropped is None else h[:rows] * dropped[layer][direction, :rows]
                after = phi(x @ weight_ih.mT + bias_ih + sent @ weight_hh.mT + bias_hh)
                if held is not None:
                    m = per_step(held[layer])[t][:, direction]
                    after = m * h[:rows] + (1 - m) * after
                if hook is not None:
                    after.register_hook(hook)
                h = torch.cat([after, h[rows:]])
                found.append(h[:rows])
            last_states.append(h)
            outputs.append(found[::-1] if direction else found)
        steps = [torch.cat(of_step, dim=-1) for of_step in zip(*outputs, strict=True)]
    output = torch.cat(steps) if batch_sizes is not None else torch.stack(steps)
    return output, torch.stack(last_states)


ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    _ops.TANH: torch.tanh,
    _ops.RELU: torch.relu,
    _ops.SIGMOID: torch.sigmoid,
    _ops.SOFTPLUS: lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    _ops.IDENTITY: lambda x: x,
}


def taped_leaky(
    u: Tensor,
    keep: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    initial: Tensor,
    batch_sizes: Tensor | None,
    reverse_groups: int,
    phi: int,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """What `leaky_recurrence` computes; sequences [T, B, G, H] or [N, G, H]."""
    sizes = [u.size(1)] * u.size(0) if batch_sizes is None else batch_sizes.tolist()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    flat = [
        None if x is None else x.reshape(sum(sizes), *x.shape[x.dim() - 2 :])
        for x in (u, keep, gain)
    ]
    mask = None if reset is None else reset.reshape(sum(sizes), -1).expand(-1, weight.size(0))
    states, rates = [], []
    for group in range(weight.size(0)):
        backwards = group >= weight.size(0) - reverse_groups
        x = initial[group]
        found: list[tuple[Tensor, Tensor]] = []
        for t in range(len(sizes))[:: -1 if backwards else 1]:
            boundary = t + backwards
            if boundary < len(sizes) and (boundary > 0 or not backwards):
                at, count = ends[boundary] - sizes[boundary], sizes[boundary]
                carried = x[:count]
                if window and boundary > 0 and boundary % window == 0:
                    carried = carried.detach()
                if mask is not None:
                    other = torch.zeros_like(x) if reset_state is None else reset_state[group]
                    cut = mask[at : at + count, group, None]
                    carried = torch.where(cut, other[:count], carried)
                x = torch.cat([carried, x[count:]])
            rows = slice(ends[t] - sizes[t], ends[t])
            drive, kept, share = (None if s is None else s[rows, group] for s in flat)
            assert drive is not None
            before = x[: sizes[t]]
            if share is None:
                after = kept * before + drive + ACTIVATIONS[phi](before) @ weight[group].mT
                rate = ACTIVATIONS[phi](after)
            else:
                rate = ACTIVATIONS[phi](drive + before @ weight[group].mT)
                after = kept * before + share * rate
            x = torch.cat([after, x[sizes[t] :]])
            found.append((after, rate))
        found = found[::-1] if backwards else found
        states.append(torch.cat([after for after, _ in found]))
        rates.append(torch.cat([rate for _, rate in found]))
    return torch.stack(states, 1).view(u.shape), torch.stack(rates, 1).view(u.shape)
