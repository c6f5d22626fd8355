"""Padded rows of different lengths, in two ways.

:class:`Ragged` walks them as a packed sequence: nothing past the end of a row is computed, but
where the rows lie must be known on the host. :class:`Masked` walks the padded batch and never looks
at the numbers: on an accelerator without waiting for it, in a compiled graph, under a transform.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._autograd import _transformed


def readable(lengths: Tensor) -> bool:
    """Whether the host may look at the numbers, now and for nothing."""
    return lengths.is_cpu and not torch.compiler.is_compiling() and not _transformed()


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
        padded = x.new_zeros(T * B, *x.shape[1:]).index_copy_(0, self._places, x)
        return padded.view(T, B, *x.shape[1:])


class Masked:
    """Which steps of padded rows [T, B] are there; the numbers are not looked at.

    ``past`` is also where a walk is to be cut that has a state without bounds, or goes backwards in
    time: a row then begins anew with every step past its end, from a state that is given. So
    nothing grows there, and the row's own last step begins with that state.

    Args:
        lengths: integers [B], from 0 to T; what is out of this range is an error, which a GPU
            raises when it comes to it.
        T: steps.
    """

    def __init__(self, lengths: Tensor, T: int) -> None:
        lengths = _asserted(lengths.long(), T)
        self.past = torch.arange(T, device=lengths.device).unsqueeze(1) >= lengths  # [T, B]
        self.empty = (lengths == 0).unsqueeze(-1)  # [B, 1]
        self._last_step = (lengths - 1).clamp(0, T - 1)

    def zeroed(self, x: Tensor) -> Tensor:
        """[T, B, ...], zero past the end of a row."""
        return x.masked_fill(self.past.unsqueeze(-1), 0)

    def last(self, h: Tensor, hx: Tensor) -> Tensor:
        """The state at the end of each row's walk, or hx where it has no step, [D, B, H].

        Args:
            h: a layer's output, [T, B, D * H].
            hx: its initial states, [D, B, H].
        """
        if h.size(0) == 0:
            return hx.to(h.dtype)
        ways = h.chunk(hx.size(0), -1)
        steps = self._last_step.view(1, -1, 1).expand(1, *hx.shape[1:])
        ends = [ways[0].gather(0, steps), *(backwards[:1] for backwards in ways[1:])]
        return torch.where(self.empty, hx.to(h.dtype), torch.cat(ends))


def _asserted(lengths: Tensor, T: int) -> Tensor:
    """``lengths``; an error, at some time, where a number is not from 0 to T."""
    if torch.compiler.is_dynamo_compiling():
        from . import _compiled

        return _compiled.asserted_lengths(lengths, T)  # type: ignore[no-any-return]
    return asserted(lengths, T)


def asserted(lengths: Tensor, T: int) -> Tensor:
    """:func:`_asserted`, outside of Dynamo."""
    every = lengths
    while torch._C._functorch.is_functorch_wrapped_tensor(every):  # vmap knows no assertion
        every = torch._C._functorch.get_unwrapped(every)
    inside = ((every >= 0) & (every <= T)).all()
    torch._assert_async(inside, "lengths: expected numbers from 0 to T, the steps of input")
    return lengths


def check_padded(input: Tensor | PackedSequence) -> None:
    """Raises ValueError where ``input`` is no padded batch, which alone has lengths."""
    if isinstance(input, PackedSequence) or input.dim() != 3:
        got = "a PackedSequence" if isinstance(input, PackedSequence) else f"{input.dim()}-D"
        raise ValueError(f"lengths: expected with a padded batch, 3-D, got them with {got}")


def check_lengths(lengths: Tensor, B: int, device: torch.device) -> None:
    """Raises ValueError where ``lengths`` is no such tensor (name, expected, got)."""
    kind = lengths.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise ValueError(f"lengths: expected integers, got {kind}")
    if lengths.shape != (B,):
        raise ValueError(f"lengths: expected shape [{B}], one a row, got {list(lengths.shape)}")
    if lengths.device != device:
        raise ValueError(f"lengths: expected on {device} (where input is), got {lengths.device}")


def check_range(lengths: Tensor, T: int) -> None:
    """Raises ValueError where a number is not from 0 to T."""
    if lengths.numel() > 0 and not 0 <= int(lengths.min()) <= int(lengths.max()) <= T:
        raise ValueError(f"lengths: expected numbers from 0 to {T} steps, got {lengths.tolist()}")
