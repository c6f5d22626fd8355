"""Padded rows of different lengths as a packed sequence, and back."""

from __future__ import annotations

import torch
from torch import Tensor


class Ragged:
    """Where the steps of padded rows [T, B] lie when packed; rows of no steps are left out.

    Args:
        lengths: integers [B], from 0 to T.
        T: steps.
    """

    def __init__(self, lengths: Tensor, T: int) -> None:
        ordered, order = lengths.cpu().sort(descending=True, stable=True)
        count = int((ordered > 0).sum())
        here = torch.arange(T).unsqueeze(1) < ordered[:count]  # [T, count]
        sizes = here.sum(1)
        self.batch_sizes = sizes[: int((sizes > 0).sum())]
        self.order = order[:count].to(lengths.device)
        t, place = here.nonzero(as_tuple=True)  # step by step, in the order of the rows
        self._places = (t * lengths.numel() + order[place]).to(lengths.device)
        self._shape = (T, lengths.numel())

    def pack(self, x: Tensor) -> Tensor:
        """[T, B, ...] as [N, ...]."""
        return x.flatten(0, 1).index_select(0, self._places)

    def pad(self, x: Tensor) -> Tensor:
        """[N, ...] as [T, B, ...], zero past the end of a row."""
        T, B = self._shape
        padded = x.new_zeros(T * B, *x.shape[1:]).index_copy(0, self._places, x)
        return padded.view(T, B, *x.shape[1:])


def check_lengths(lengths: Tensor, T: int, B: int, device: torch.device) -> None:
    """Raises ValueError where ``lengths`` does not fit (name, expected, got)."""
    kind = lengths.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise ValueError(f"lengths: expected integers, got {kind}")
    if lengths.shape != (B,):
        raise ValueError(f"lengths: expected shape [{B}], one a row, got {list(lengths.shape)}")
    if lengths.device != device:
        raise ValueError(f"lengths: expected on {device} (where input is), got {lengths.device}")
    if B > 0 and not 0 <= int(lengths.min()) <= int(lengths.max()) <= T:
        raise ValueError(f"lengths: expected numbers from 0 to {T} steps, got {lengths.tolist()}")
