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
        model: a sequence [T, B, ...], or packed rows [N, ...].
        batch_sizes: int64 [T] on the CPU when packed, else None.
        groups: G.
        reverse_groups: the last so many groups walk backwards in time.
        reset, window: where the walks are cut, as in ``_ops.linear_recurrence``.
    """

    def __init__(
        self,
        model: Tensor,
        batch_sizes: Tensor | None,
        groups: int,
        reverse_groups: int,
        reset: Tensor | None = None,
        window: int = 0,
    ) -> None:
        self.batch_sizes = batch_sizes
        self.reset = reset
        self.window = window
        self.device = model.device
        self.groups = groups
        if batch_sizes is None:
            steps, self.batch = model.shape[:2]
            self.rows = steps * self.batch
        else:
            self.rows = model.size(0)
            self.batch = int(batch_sizes[0]) if batch_sizes.numel() else 0
        split = groups - reverse_groups
        # Groups [a, b), and whether they walk backwards in time.
        ways = ((0, split, False), (split, groups, True))
        self.ways = [way for way in ways if way[0] < way[1]]

    def sums_of_products(
        self,
        y: Tensor,
        x: Tensor,
        x0: Tensor | None,
        replacement: Tensor | None = None,
        keep: bool = False,
    ) -> list[Tensor]:
        """Σ_t y_t x_{t-1}ᵀ over each walk; for each group [H, H].

        Args:
            y: rows [N, G * H].
            x: rows [N, G * H].
            x0, replacement, keep: what x_{t-1} is at the ends, as in :meth:`previous`.
        """
        size = y.size(1) // self.groups
        if self.rows == 0:
            return [y.new_zeros(size, size) for _ in range(self.groups)]
        if self.reset is not None or self.window:
            before = self.previous(x, x0, replacement, keep)
            if self.groups == 1:
                return [_products(y, before, None, 1)]
            before = before.view(self.rows, self.groups, size).transpose(0, 1)
            return list(_products(y, before, None, self.groups).unbind())
        sums: list[Tensor] = []
        for a, b, backwards in self.ways:
            y_way, x_way = _columns(y, a * size, b * size), _columns(x, a * size, b * size)
            total = None
            if x0 is not None:
                start = self._start(y_way, backwards)
                total = _products(start, x0[a] if b - a == 1 else x0[a:b], None, b - a)
            if self.rows > self.batch or total is None:
                if backwards:
                    y_way, x_way = self._earlier(y_way), self._later(x_way)
                else:
                    y_way, x_way = self._later(y_way), self._earlier(x_way)
                if b - a > 1:
                    x_way = x_way.view(x_way.size(0), b - a, size).transpose(0, 1)
                total = _products(y_way, x_way, total, b - a)
            sums.extend([total] if b - a == 1 else total.unbind())
        return sums

    def previous(
        self,
        x: Tensor,
        x0: Tensor | None,
        replacement: Tensor | None = None,
        keep: bool = False,
    ) -> Tensor:
        """x_{t-1} in the order of each walk; of x's shape and dtype.

        Args:
            x: the sequence.
            x0: before the first step, [G, B, H]; or None for zero.
            replacement: where ``reset`` cuts, [G, B, H]; or None for zero.
            keep: the window cuts gradients alone: at its boundaries x_{t-1} is a constant. Else it
                is zero there.
        """
        found = self._shifted(x, x0, to_later=True)
        if self.rows == 0:
            return found
        rows = self._grouped(found)
        if self.window:
            cut = self._cut_before(self._in_window())
            rows = torch.where(cut, rows.detach() if keep else torch.zeros_like(rows), rows)
        if self.reset is not None:
            cut = self._cut_before(self._resets())
            other = torch.zeros_like(rows) if replacement is None else self.spread(replacement)
            rows = torch.where(cut, other, rows)
        return rows.view(x.shape)

    def following(self, r: Tensor, r_last: Tensor | None) -> Tensor:
        """r_{t+1} in the order of each walk, to r_T [G, B, H] or zero; of r's shape and dtype.

        Zero where the walk is cut between the two.
        """
        found = self._shifted(r, r_last, to_later=False)
        cut = self._cuts()
        if cut is None:
            return found
        after = self._shifted(cut, None, to_later=False)
        rows = self._grouped(found)
        return rows.masked_fill(after, 0).view(r.shape)

    def to_initial(self, x: Tensor) -> Tensor:
        """:meth:`first` where a walk begins with its initial state; zero where it is cut off it."""
        cut = self._cuts()
        if cut is not None:
            x = self._grouped(x).masked_fill(cut, 0)
        return self.first(x)

    def sums_after_resets(self, y: Tensor) -> Tensor:
        """Σ of y over each row's steps that begin with a replaced state, [G, B, H]."""
        rows = self._grouped(y)
        if self.rows == 0:
            return rows.new_zeros(self.groups, self.batch, rows.size(-1))
        rows = rows.masked_fill(~self._cut_before(self._resets()), 0)
        if self.batch_sizes is None:
            sums = rows.view(-1, self.batch, *rows.shape[1:]).sum(0)
        else:
            zero = rows.new_zeros(self.batch, *rows.shape[1:])
            sums = zero.index_add(0, batch_rows(self.batch_sizes).to(rows.device), rows)
        return sums.transpose(0, 1)

    def first(self, x: Tensor) -> Tensor:
        """Each sequence's row of x at the first step of its walk, [G, B, H]; zero if T = 0."""
        return self._ends(x, at_start=True)

    def last(self, x: Tensor) -> Tensor:
        """Each sequence's row of x at the last step of its walk, [G, B, H]; zero if T = 0."""
        return self._ends(x, at_start=False)

    def _grouped(self, x: Tensor) -> Tensor:
        """A sequence, or rows [N, G * H], as rows [N, G, H]."""
        size = x.size(-1) // self.groups if x.dim() == 2 else x.size(-1)
        return x.reshape(self.rows, self.groups, size)

    def _resets(self) -> Tensor:
        """``reset`` as rows, bool [N, G, 1]."""
        assert self.reset is not None
        rows = self.reset.reshape(self.rows, -1, 1)
        return rows.expand(self.rows, self.groups, 1)

    def _in_window(self) -> Tensor:
        """Whether each row's step is a multiple of the window but 0, bool [N, G, 1]."""
        if self.batch_sizes is None:
            # Made where it is needed: a copy from the host waits for the device, and no CUDA graph
            # takes one.
            steps = torch.arange(self.rows // self.batch, device=self.device)
            steps = steps[:, None].expand(-1, self.batch).reshape(-1)
        else:
            steps = torch.repeat_interleave(self.batch_sizes).to(self.device)
        inside = (steps > 0) & (steps % self.window == 0)
        return inside[:, None, None].expand(self.rows, self.groups, 1)

    def _cut_before(self, cut: Tensor) -> Tensor:
        """From cuts before each row in time [N, G, 1], those before it in the order of its walk."""
        later = self._shifted(cut, None, to_later=True)
        parts = [_columns(later if backwards else cut, a, b) for a, b, backwards in self.ways]
        return torch.cat(parts, dim=1)

    def _cuts(self) -> Tensor | None:
        """Whether anything cuts a row off the step before it in its walk, bool [N, G, 1]."""
        if self.rows == 0 or (self.reset is None and not self.window):
            return None
        if self.reset is None:
            return self._cut_before(self._in_window())
        cut = self._resets()
        return self._cut_before(cut | self._in_window() if self.window else cut)

    def spread(self, state: Tensor) -> Tensor:
        """Each row's own [G, H] of a state [G, B, H], as rows [N, G, H]."""
        state = state.transpose(0, 1)
        if self.batch_sizes is None:
            steps = self.rows // self.batch if self.batch else 0
            return state.expand(steps, *state.shape).reshape(self.rows, *state.shape[1:])
        return state.index_select(0, batch_rows(self.batch_sizes).to(state.device))

    def _ends(self, x: Tensor, at_start: bool) -> Tensor:
        rows = self._grouped(x)
        if self.rows == 0:
            return x.new_zeros(self.groups, self.batch, x.size(-1))
        parts = [
            self._start(_columns(rows, a, b), backwards == at_start)
            for a, b, backwards in self.ways
        ]
        return torch.cat(parts, dim=1).transpose(0, 1)

    def _shifted(self, x: Tensor, end: Tensor | None, to_later: bool) -> Tensor:
        if self.rows == 0:
            return x
        rows = self._grouped(x)
        parts = []
        for a, b, backwards in self.ways:
            way = _columns(rows, a, b)
            if end is None:
                filling = way.new_zeros(self.batch, *way.shape[1:])
            else:
                filling = _columns(end.transpose(0, 1), a, b)
            if to_later != backwards:
                parts.append(torch.cat([filling, self._earlier(way)]))
            elif self.batch_sizes is None:
                parts.append(torch.cat([self._later(way), filling]))
            else:
                order = torch.cat([earlier_rows(self.batch_sizes), last_rows(self.batch_sizes)])
                back = torch.argsort(order).to(x.device)
                parts.append(torch.cat([self._later(way), filling]).index_select(0, back))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).view(x.shape)

    def _later(self, x: Tensor) -> Tensor:
        """Rows that have an earlier step."""
        return x.narrow(0, self.batch, self.rows - self.batch)

    def _earlier(self, x: Tensor) -> Tensor:
        """The same sequence's row one step before each of the later rows."""
        if self.batch_sizes is None:
            return x.narrow(0, 0, self.rows - self.batch)
        return x.index_select(0, earlier_rows(self.batch_sizes).to(x.device))

    def _start(self, x: Tensor, backwards: bool) -> Tensor:
        """The row that each sequence's walk starts with."""
        if self.rows == self.batch:
            return x
        if not backwards:
            return x.narrow(0, 0, self.batch)
        if self.batch_sizes is None:
            return x.narrow(0, self.rows - self.batch, self.batch)
        return x.index_select(0, last_rows(self.batch_sizes).to(x.device))


def earlier_rows(batch_sizes: Tensor) -> Tensor:
    """Packed data: the row one step before each from the second on, int64 [N - B], on the CPU."""
    if batch_sizes.numel() == 0:
        return batch_sizes
    first = int(batch_sizes[0])
    before = torch.repeat_interleave(batch_sizes[:-1], batch_sizes[1:])
    return torch.arange(first, first + before.numel()) - before


def batch_rows(batch_sizes: Tensor) -> Tensor:
    """Packed data: the sequence that each row belongs to, int64 [N], on the CPU."""
    first_row = batch_sizes.cumsum(0) - batch_sizes
    starts = torch.repeat_interleave(first_row, batch_sizes)
    return torch.arange(starts.numel()) - starts


def last_rows(batch_sizes: Tensor) -> Tensor:
    """Packed data: the row of each sequence's last step, int64 [B], on the CPU."""
    following = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
    first_row = batch_sizes.cumsum(0) - batch_sizes
    # Sequences end in the order of their rows, the last of the batch first.
    ends = torch.repeat_interleave(first_row.flip(0), (batch_sizes - following).flip(0))
    return ends + torch.arange(ends.numel())


def _columns(x: Tensor, a: int, b: int) -> Tensor:
    """x[:, a:b]; x itself where that is all: of a slice of everything torch makes an alias, which
    the cotangents of ``is_grads_batched`` do not have."""
    return x if b - a == x.size(1) else x.narrow(1, a, b - a)


def _products(y: Tensor, x: Tensor, total: Tensor | None, groups: int) -> Tensor:
    """yᵀ x of each group, added to ``total`` if there is one.

    One group: y and x [rows, H] give [H, H]. More: y [rows, G * H] and x [G, rows, H] give
    [G, H, H].
    """
    if groups == 1:
        return torch.mm(y.t(), x) if total is None else torch.addmm(total, y.t(), x)
    y = y.view(y.size(0), groups, y.size(1) // groups).permute(1, 2, 0)
    return torch.bmm(y, x) if total is None else torch.baddbmm(total, y, x)
