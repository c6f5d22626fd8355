"""vmap of the two primitives: an additional dimension becomes batch rows or groups.

Where the weights are the same for all, the dimension is more rows of the batch; where each has its
own, as in an ensemble, it is more groups. Either way it is one call of the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where the operands of a primitive stand among its arguments.

    ``sequences`` [T, B, G, H] or [N, G, H], ``weight`` [G, H, H] (or without G), ``states``
    [G, B, H], ``reset`` [T, B(, G)] or [N(, G)], and ``batch_sizes`` [T], after which
    ``reverse_groups`` comes. Of the results the last ``states_found`` are states, the others
    sequences.
    """

    sequences: tuple[int, ...]
    weight: int
    states: tuple[int, ...]
    reset: int
    batch_sizes: int
    states_found: int = 0


def batched(
    primitive: Callable[..., Any],
    places: Places,
    size: int,
    in_dims: Sequence[int | None],
    arguments: Sequence[Any],
) -> tuple[Any, Any]:
    """A primitive over one more dimension of ``size``, in the way of ``autograd.Function.vmap``.

    Args:
        primitive: what is called, with its arguments changed at their places.
        places: where they stand.
        size: length of the additional dimension.
        in_dims: where it is, of each argument; None where there is none. batch_sizes has none.
        arguments: of the primitive.

    Returns:
        What the primitive gives with the additional dimension in front, and a zero for each.
    """
    weight, weight_dim = arguments[places.weight], in_dims[places.weight]
    batch_sizes = arguments[places.batch_sizes]
    reverse_groups = arguments[places.batch_sizes + 1]
    grouped = weight.dim() - (weight_dim is not None) == 3
    rows = 2 if batch_sizes is None else 1  # dimensions that count rows: T and B, or N
    into_groups = weight_dim is not None
    of_member = weight if weight_dim is None else weight.select(weight_dim, 0)
    groups = of_member.size(0) if grouped else 1

    def fold_sequence(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        if not into_groups:
            x = into_rows(x, dim, size, rows)
            return x if grouped else x.unsqueeze(-2)
        x = _in_front(x, dim, size)
        if not grouped:
            x = x.unsqueeze(-2)
        return x.movedim(0, -2).flatten(-3, -2)  # [n, ..., G, H] to [..., G * n, H]

    def fold_state(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        if not into_groups:
            return into_rows(x, dim, size, 2)
        return _in_front(x, dim, size).transpose(0, 1).flatten(0, 1)  # [n, G, ...] to [G * n, ...]

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
    given = list(arguments)
    given[places.weight] = folded
    given[places.batch_sizes : places.batch_sizes + 2] = batch_sizes, reverse_groups
    for fold, where in (
        (fold_sequence, places.sequences),
        (fold_state, places.states),
        (fold_reset, (places.reset,)),
    ):
        for place in where:
            given[place] = fold(arguments[place], in_dims[place])
    found = primitive(*given)
    many = found if isinstance(found, tuple) else (found,)
    results = []
    for index, x in enumerate(many):
        if index >= len(many) - places.states_found:
            results.append(unfold(x, 0 if into_groups else 1, size))
        else:
            x = unfold(x, x.dim() - 2 if into_groups else rows - 1, size)
            results.append(x if grouped else x.squeeze(-2))
    return (tuple(results), (0,) * len(results)) if isinstance(found, tuple) else (results[0], 0)


def into_rows(x: Tensor, dim: int | None, size: int, rows: int) -> Tensor:
    """x's dimension ``dim``, of ``size``, as more batch rows, a row's members side by side.

    Args:
        x: [T, B, ...] (rows = 2) or [N, ...] (rows = 1) with one more dimension; if ``dim`` is
            None, without, and the same for all members. A state [G, B, H] has two rows, too.
        dim: where the dimension is.
        size: its length n.
        rows: how many dimensions count rows.

    Returns:
        [T, B * n, ...] or [N * n, ...].
    """
    return _in_front(x, dim, size).movedim(0, rows).flatten(rows - 1, rows)


def _in_front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def unfold(x: Tensor, dim: int, size: int) -> Tensor:
    """[..., n * size, ...] as [size, ..., n, ...]."""
    shape = x.shape
    return x.view(*shape[:dim], shape[dim] // size, size, *shape[dim + 1 :]).movedim(dim + 1, 0)
