"""Which row of a sequence follows which: padded or packed, in both directions of time."""

from __future__ import annotations

import torch
from torch import Tensor


def last_rows(batch_sizes: Tensor) -> Tensor:
    """Row index of each sequence's last step in packed data, int64 [B], on the CPU."""
    if batch_sizes.numel() == 0:
        return batch_sizes
    following = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
    first_row = batch_sizes.cumsum(0) - batch_sizes
    # Sequences end in the order of their rows, the last of the batch first.
    ends = torch.repeat_interleave(first_row.flip(0), (batch_sizes - following).flip(0))
    return ends + torch.arange(ends.numel())


class Steps:
    """The order in which one walk over a sequence visits its rows.

    Each group walks either forwards or backwards in time; the methods treat the groups of one
    way together and return all groups in order.

    Args:
        model: a sequence [T, B, G, H], or packed rows [N, G, H].
        batch_sizes: int64 [T] on the CPU when packed, else None.
        reverse_groups: the last so many groups walk backwards in time.
        adjoint: every group walks the other way.
    """

    def __init__(
        self, model: Tensor, batch_sizes: Tensor | None, reverse_groups: int, adjoint: bool
    ) -> None:
        self.batch_sizes = batch_sizes
        self.device = model.device
        self.empty = model.size(0) == 0
        groups = model.size(-2)
        split = groups - reverse_groups
        # Slices of groups, and whether they walk backwards in time.
        self.ways = [
            (slice(a, b), backwards != adjoint)
            for a, b, backwards in ((0, split, False), (split, groups, True))
            if a < b
        ]

    def first(self, x: Tensor) -> Tensor:
        """The rows that each walk starts with, [G, B, H]."""
        if self.empty:  # the number of rows is that of a padded sequence; a packed one has none
            rows = x.size(1) if self.batch_sizes is None else 0
            return x.new_zeros(x.size(-2), rows, x.size(-1))
        return _join([self._end(x, way, backwards).transpose(0, 1) for way, backwards in self.ways])

    def last(self, x: Tensor) -> Tensor:
        """The rows that each walk ends with, [G, B, H]."""
        return _join(
            [self._end(x, way, not backwards).transpose(0, 1) for way, backwards in self.ways]
        )

    def sum_of_products(self, p: Tensor, s: Tensor, s0: Tensor | None) -> Tensor:
        """Σ_t p_t s_{t-1}ᵀ over each walk, with s_0 before its first step, [G, H, H]."""
        if self.empty:
            return s.new_zeros(s.size(-2), s.size(-1), s.size(-1))
        parts = []
        for way, backwards in self.ways:
            p_way, s_way = p[..., way, :], s[..., way, :]
            if backwards:
                total = _outer(self._earlier(p_way), self._later(s_way))
            else:
                total = _outer(self._later(p_way), self._earlier(s_way))
            if s0 is not None:
                total = total + _outer(self._end(p, way, backwards), s0[way].transpose(0, 1))
            parts.append(total)
        return _join(parts)

    def previous(self, x: Tensor, x0: Tensor | None) -> Tensor:
        """x_{t-1} in the order of each walk, with x_0 (or zero) before its first step."""
        if self.empty:
            return x
        parts = []
        for way, backwards in self.ways:
            x_way = x[..., way, :]
            begin = torch.zeros_like(self._end(x, way, True))
            if x0 is not None:
                begin = x0[way].transpose(0, 1)
            if self.batch_sizes is None:
                order = [x_way[1:], begin[None]] if backwards else [begin[None], x_way[:-1]]
                parts.append(torch.cat(order))
            elif backwards:
                rows = torch.cat([self._earlier_rows(), last_rows(self.batch_sizes)])
                to_later = torch.cat([self._later(x_way), begin])
                parts.append(torch.empty_like(x_way).index_copy(0, rows.to(self.device), to_later))
            else:
                parts.append(torch.cat([begin, self._earlier(x_way)]))
        return torch.cat(parts, dim=-2)

    # Rows that have an earlier step, [rows, G, H], and the rows of that earlier step.

    def _later(self, x: Tensor) -> Tensor:
        if self.batch_sizes is None:
            return x[1:].flatten(0, 1)
        return x[int(self.batch_sizes[0]) :]

    def _earlier(self, x: Tensor) -> Tensor:
        if self.batch_sizes is None:
            return x[:-1].flatten(0, 1)
        return x.index_select(0, self._earlier_rows().to(self.device))

    def _earlier_rows(self) -> Tensor:
        sizes = self.batch_sizes
        assert sizes is not None
        before = torch.repeat_interleave(sizes[:-1], sizes[1:])
        first = int(sizes[0])
        return torch.arange(first, first + before.numel()) - before

    def _end(self, x: Tensor, way: slice, latest: bool) -> Tensor:
        """Each sequence's first or latest row in time, for some groups, [B, G, H]."""
        if self.batch_sizes is None:
            return x[-1 if latest else 0, :, way]
        if not latest:
            return x[: int(self.batch_sizes[0]), way]
        return x[:, way].index_select(0, last_rows(self.batch_sizes).to(self.device))


def _outer(p: Tensor, s: Tensor) -> Tensor:
    """Σ over rows of p sᵀ, [G, H, H], for p and s [rows, G, H]."""
    if p.size(1) == 1:
        return (p[:, 0].t() @ s[:, 0])[None]
    return p.permute(1, 2, 0) @ s.transpose(0, 1)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
