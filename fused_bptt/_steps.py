"""Which row of a sequence follows which: padded or packed, in both directions of time."""

from __future__ import annotations

import torch
from torch import Tensor


class Steps:
    """The order in which a walk x_t = d_t ⊙ (. + W x_{t-1}) visits the rows of a sequence.

    A sequence is seen as rows [N, G, H], step after step: a padded one, [T, B, G, H], has B rows at
    each step, a packed one has ``batch_sizes``. Each group walks either forwards or backwards in
    time; the methods return all groups in order.

    Args:
        model: a sequence [T, B, G, H], or packed rows [N, G, H].
        batch_sizes: int64 [T] on the CPU when packed, else None.
        reverse_groups: the last so many groups walk backwards in time.
    """

    def __init__(self, model: Tensor, batch_sizes: Tensor | None, reverse_groups: int) -> None:
        self.shape = model.shape
        self.device = model.device
        self.batch_sizes = batch_sizes
        if batch_sizes is None:
            self.rows, self.batch = model.size(0) * model.size(1), model.size(1)
        else:
            self.rows = model.size(0)
            self.batch = int(batch_sizes[0]) if batch_sizes.numel() else 0
        split = model.size(-2) - reverse_groups
        # Groups [a, b), and whether they walk backwards in time.
        ways = ((0, split, False), (split, model.size(-2), True))
        self.ways = [way for way in ways if way[0] < way[1]]

    def sum_of_products(self, y: Tensor, x: Tensor, x0: Tensor | None) -> Tensor:
        """Σ_t y_t x_{t-1}ᵀ over each walk, with x_0 [G, B, H] before its first step, [G, H, H]."""
        y, x = self._rows(y), self._rows(x)
        parts = []
        for a, b, backwards in self.ways:
            y_way, x_way = _groups(y, a, b), _groups(x, a, b)
            if backwards:
                total = _outer(self._earlier(y_way), self._later(x_way))
            else:
                total = _outer(self._later(y_way), self._earlier(x_way))
            if x0 is not None and self.rows > 0:
                total = total + _outer(self._start(y_way, backwards), x0[a:b].transpose(0, 1))
            parts.append(total)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def previous(self, x: Tensor, x0: Tensor | None) -> Tensor:
        """x_{t-1} in the order of each walk, with x_0 [G, B, H] (or zero) before its first step."""
        return self._shifted(x, x0, to_later=True)

    def following(self, r: Tensor, r_last: Tensor | None) -> Tensor:
        """r_{t+1} in the order of each walk, with r_T [G, B, H] (or zero) after its last step."""
        return self._shifted(r, r_last, to_later=False)

    def _shifted(self, x: Tensor, end: Tensor | None, to_later: bool) -> Tensor:
        if self.rows == 0:
            return x
        rows = self._rows(x)
        parts = []
        for a, b, backwards in self.ways:
            way = _groups(rows, a, b)
            if end is None:
                filling = way.new_zeros(self.batch, *way.shape[1:])
            else:
                filling = end[a:b].transpose(0, 1)
            if to_later != backwards:
                parts.append(torch.cat([filling, self._earlier(way)]))
            elif self.batch_sizes is None:
                parts.append(torch.cat([self._later(way), filling]))
            else:
                order = torch.cat([earlier_rows(self.batch_sizes), last_rows(self.batch_sizes)])
                back = torch.argsort(order).to(self.device)
                parts.append(torch.cat([self._later(way), filling]).index_select(0, back))
        return torch.cat(parts, dim=1).view(self.shape)

    def _rows(self, x: Tensor) -> Tensor:
        return x if self.batch_sizes is not None else x.reshape(self.rows, *self.shape[-2:])

    def _later(self, x: Tensor) -> Tensor:
        """Rows that have an earlier step."""
        return x[self.batch :]

    def _earlier(self, x: Tensor) -> Tensor:
        """The same sequence's row one step before each of the later rows."""
        if self.batch_sizes is None:
            return x[: self.rows - self.batch]
        return x.index_select(0, earlier_rows(self.batch_sizes).to(self.device))

    def _start(self, x: Tensor, backwards: bool) -> Tensor:
        """The row that each sequence's walk starts with."""
        if not backwards:
            return x[: self.batch]
        if self.batch_sizes is None:
            return x[self.rows - self.batch :]
        return x.index_select(0, last_rows(self.batch_sizes).to(self.device))


def earlier_rows(batch_sizes: Tensor) -> Tensor:
    """Packed data: for each row from the second step on, the row one step before; on the CPU."""
    if batch_sizes.numel() == 0:
        return batch_sizes
    first = int(batch_sizes[0])
    before = torch.repeat_interleave(batch_sizes[:-1], batch_sizes[1:])
    return torch.arange(first, first + before.numel()) - before


def last_rows(batch_sizes: Tensor) -> Tensor:
    """Packed data: the row of each sequence's last step, [B], on the CPU."""
    following = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
    first_row = batch_sizes.cumsum(0) - batch_sizes
    # Sequences end in the order of their rows, the last of the batch first.
    ends = torch.repeat_interleave(first_row.flip(0), (batch_sizes - following).flip(0))
    return ends + torch.arange(ends.numel())


def _groups(x: Tensor, a: int, b: int) -> Tensor:
    return x if b - a == x.size(1) else x[:, a:b]


def _outer(y: Tensor, x: Tensor) -> Tensor:
    """Σ over rows of y xᵀ, [G, H, H], for y and x [rows, G, H]."""
    if y.size(1) == 1:
        return (y[:, 0].t() @ x[:, 0]).unsqueeze(0)
    return y.permute(1, 2, 0) @ x.transpose(0, 1)
