"""vmap of the two primitives: an additional dimension becomes batch rows or groups.

Where the weights are the same for all, the dimension is more rows of the batch; where each has its
own, as in an ensemble, it is more groups. Either way it is one call of the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

#: (sequences, weight, states, reset, batch_sizes, reverse_groups) to (sequence, state).
Walk = Callable[
    [
        Sequence[Tensor | None],
        Tensor,
        Sequence[Tensor | None],
        Tensor | None,
        Tensor | None,
        int,
    ],
    tuple[Tensor, Tensor],
]


def batched(
    walk: Walk,
    size: int,
    sequences: Sequence[Tensor | None],
    weight: Tensor,
    states: Sequence[Tensor | None],
    reset: Tensor | None,
    dims: Sequence[int | None],
    batch_sizes: Tensor | None,
    reverse_groups: int,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """``walk`` over one more dimension of ``size``, in the way of ``autograd.Function.vmap``.

    Args:
        walk: a primitive, on [T, B, G, H] or [N, G, H], weight [G, H, H], states [G, B, H], and
            reset [T, B(, G)] or [N(, G)].
        size: length of the additional dimension.
        sequences, weight, states, reset: with the additional dimension where ``dims`` says.
        dims: of each sequence, the weight, each state and reset; None where there is none.
        batch_sizes: int64 [T] when packed, of one member; the same for all.
        reverse_groups: of one member.

    Returns:
        The sequence and the state with the additional dimension in front, and (0, 0).
    """
    count = len(sequences)
    sequence_dims, weight_dim, state_dims = dims[:count], dims[count], dims[count + 1 : -1]
    reset_dim = dims[-1]
    grouped = weight.dim() - (weight_dim is not None) == 3
    rows = 2 if batch_sizes is None else 1  # dimensions that count rows: T and B, or N
    into_groups = weight_dim is not None
    of_member = weight if weight_dim is None else weight.select(weight_dim, 0)
    groups = of_member.size(0) if grouped else 1

    def fold_sequence(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        if not grouped:
            x = x.unsqueeze(-2)
        if into_groups:  # [n, ..., G, H] to [..., G * n, H]
            return x.movedim(0, -2).flatten(-3, -2)
        return x.movedim(0, rows).flatten(rows - 1, rows)

    def fold_state(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        if into_groups:  # [n, G, B, H] to [G * n, B, H]
            return x.transpose(0, 1).flatten(0, 1)
        return x.movedim(0, 2).flatten(1, 2)

    def fold_reset(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        of_groups = x.dim() - (dim is not None) > rows
        if dim is None and into_groups and not of_groups:
            return x
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        if not into_groups:
            return x.movedim(0, rows).flatten(rows - 1, rows)
        if not of_groups:  # one for all groups of a member
            x = x.unsqueeze(-1).expand(*x.shape, groups)
        return x.movedim(0, -1).flatten(-2)

    if weight_dim is not None:
        members = weight.movedim(weight_dim, 0)
        folded = members.transpose(0, 1).flatten(0, 1) if grouped else members
        reverse_groups *= size
    else:
        folded = weight if grouped else weight.unsqueeze(0)
        batch_sizes = None if batch_sizes is None else batch_sizes * size
    h, last = walk(
        [fold_sequence(x, dim) for x, dim in zip(sequences, sequence_dims, strict=True)],
        folded,
        [fold_state(x, dim) for x, dim in zip(states, state_dims, strict=True)],
        fold_reset(reset, reset_dim),
        batch_sizes,
        reverse_groups,
    )
    if into_groups:
        h, last = _unfold(h, h.dim() - 2, size), _unfold(last, 0, size)
    else:
        h, last = _unfold(h, rows - 1, size), _unfold(last, 1, size)
    return (h if grouped else h.squeeze(-2), last), (0, 0)


def _unfold(x: Tensor, dim: int, size: int) -> Tensor:
    """[..., n * size, ...] as [size, ..., n, ...]."""
    shape = x.shape
    return x.view(*shape[:dim], shape[dim] // size, size, *shape[dim + 1 :]).movedim(dim + 1, 0)
