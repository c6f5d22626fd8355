"""Somebody's numbers: what they are, how exactly they are known, and errors about their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .method import NAMES, SEQUENCES, SUMS


@dataclass(frozen=True)
class Layout:
    """The sizes of one layer and direction, and how its user arranges a sequence."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    batched: bool
    batch_first: bool
    reverse: bool
    suffix: str
    """What the names of its parameters end with: ``_l0``, ``_l1_reverse``."""

    def shape(self, name: str) -> tuple[int, ...]:
        """What the whole gradient of ``name`` is shaped like."""
        width = self.I if name == "input" else self.H
        if name == "weight_ih":
            return (self.H, self.I)
        if name == "weight_hh":
            return (self.H, self.H)
        if name in SUMS:
            return (self.H,)
        if name == "hx":
            return (self.B, self.H) if self.batched else (self.H,)
        if not self.batched:
            return (self.T, width)
        return (self.B, self.T, width) if self.batch_first else (self.T, self.B, width)

    def of_walk(self, name: str, values: Tensor, per_step: bool) -> Tensor:
        """From the user's arrangement to that of the trace: step after step of the walk."""
        if name in SEQUENCES:
            if not self.batched:
                values = values.unsqueeze(1)
            elif self.batch_first:
                values = values.transpose(0, 1)
        elif name == "hx" and not self.batched:
            values = values.unsqueeze(0)
        return values.flip(0) if self.reverse and (per_step or name in SEQUENCES) else values


@dataclass(frozen=True)
class Given:
    """One array of somebody's, arranged as the trace is."""

    name: str
    """One of ``NAMES``."""
    label: str
    """What the user calls it."""
    values: Tensor
    """Float64; [T, ...] with a share for each step if ``per_step``, else the gradient."""
    rounding: Tensor
    """Half a unit of the last digit that was written; zero where all digits are there."""
    eps: float
    """Of the type that the numbers were computed in."""
    per_step: bool
    note: str
    """What was read otherwise than it lies; or empty."""

    def fits(self, values: Tensor) -> bool:
        """Whether these are the numbers: equal but for rounding."""
        return bool(self.close(values).all())

    def close(self, values: Tensor) -> Tensor:
        """Which entries are equal but for rounding.

        Sums of a few products are off by some units of the last place of the largest; eps^(2/3) of
        it is far above that, and far below what a mistake changes.
        """
        scale = values.abs().max() if values.numel() else values.new_zeros(())
        allowed: Tensor = self.rounding + self.eps ** (2 / 3) * scale
        return (self.values - values).abs() <= allowed


def read(
    numbers: Mapping[str, Any], layout: Layout, dtype: torch.dtype, decimals: int | None
) -> list[Given]:
    """Every array of ``numbers``, checked.

    Raises:
        ValueError: a name or a shape is not one that there is; says which are.
        TypeError: not numbers.
    """
    if not numbers:
        raise ValueError(f"numbers: expected at least one of {_names(layout)}, got none")
    return [_read(label, values, layout, dtype, decimals) for label, values in numbers.items()]


def _names(layout: Layout) -> str:
    return ", ".join([f"{name}{layout.suffix}" for name in SUMS] + [*SEQUENCES, "hx"])


def _read(
    label: str, given: Any, layout: Layout, dtype: torch.dtype, decimals: int | None
) -> Given:
    name = label.removesuffix(layout.suffix)
    if name not in NAMES or (name in SUMS) != label.endswith(layout.suffix):
        raise ValueError(f"numbers: expected names among {_names(layout)}, got {label!r}")
    values, eps = _as_tensor(label, given, dtype)
    rounding = _rounding(given, values, eps, decimals)
    values, rounding, per_step, note = _arranged(label, name, values, rounding, layout)
    lost = int((~values.isfinite()).sum())
    if lost:
        count = f"{lost} of {values.numel()} numbers"
        note = f"{note} {label}: {count} {'is' if lost == 1 else 'are'} not finite.".lstrip()
    values, rounding = (layout.of_walk(name, each, per_step) for each in (values, rounding))
    return Given(name, label, values, rounding, eps, per_step or name in SEQUENCES, note)


def _as_tensor(label: str, given: Any, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Float64 on the CPU, and eps of what is coarser, the numbers' type or the module's."""
    try:
        if isinstance(given, (list, tuple)) and any(isinstance(each, Tensor) for each in given):
            given = torch.stack([torch.as_tensor(each) for each in given])
        values = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
        wide = values.detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{label}: expected an array of numbers, got {given!r} ({error})") from None
    own = values.dtype if isinstance(given, (Tensor, np.ndarray)) else torch.float64
    kinds = [kind for kind in (own, dtype) if kind.is_floating_point]
    return wide, max(torch.finfo(kind).eps for kind in kinds)


def _rounding(given: Any, values: Tensor, eps: float, decimals: int | None) -> Tensor:
    """Half a unit of the last digit of numbers that were copied from print.

    Computed numbers have as many digits as their type holds. Numbers of which none has nearly so
    many, and one has three decimals or more, were printed: with the same number of decimals, or,
    where they differ widely, with the same number of digits.
    """
    if decimals is not None:
        return torch.full_like(values, 0.5 * 10.0**-decimals)
    kind = np.float32 if eps > 1e-9 else np.float64
    shortest = [
        Decimal(np.format_float_scientific(kind(value)))
        for value in values.flatten().tolist()
        if value != 0 and np.isfinite(value)
    ]
    most = {np.float32: 6, np.float64: 12}[kind]
    digits = max((len(each.normalize().as_tuple().digits) for each in shortest), default=0)
    places = max((-int(each.normalize().as_tuple().exponent) for each in shortest), default=0)
    if digits > most or places < 3:
        return torch.zeros_like(values)
    by_place = torch.full_like(values, 0.5 * 10.0**-places)
    if digits > 5:
        return by_place
    magnitude = values.abs().where(values != 0, 1).log10().floor()
    return torch.maximum(by_place, 0.5 * 10.0 ** (magnitude - 4))


def _arranged(
    label: str, name: str, values: Tensor, rounding: Tensor, layout: Layout
) -> tuple[Tensor, Tensor, bool, str]:
    """The values in the expected shape, whether they are steps, and what had to be done to them."""
    whole, got = layout.shape(name), tuple(values.shape)
    steps = (layout.T, *whole) if name in SUMS else None
    if got == whole:
        return values, rounding, False, ""
    if got == steps:
        return values, rounding, True, ""
    if name.startswith("weight"):
        turned = got == whole[::-1], got == (layout.T, *whole[::-1])
        if any(turned):
            note = f"{label} is transposed: it is {list(whole)}, rows receive; yours is {list(got)}"
            start = "Each step's share of " if turned[1] else ""
            return values.mT, rounding.mT, turned[1], f"{start}{note}."
    for shape, per_step in ((whole, False), (steps, True)):
        if shape is not None and _without_ones(got) == _without_ones(shape):
            return values.reshape(shape), rounding.reshape(shape), per_step, ""
    expected = f"{list(whole)}"
    if steps is not None:
        expected += f", or {list(steps)} with a share for each step"
    raise ValueError(
        f"{label}: expected shape {expected}, got {list(got)}{_hint(name, got, layout)}"
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _hint(name: str, got: tuple[int, ...], layout: Layout) -> str:
    """What the shape looks like."""
    whole, T, B = layout.shape(name), layout.T, layout.B
    if name in SUMS and got in ((B, *whole), (T, B, *whole), (B, T, *whole)):
        return "; one gradient for each row of the batch: sum over the rows"
    if name in SUMS and got == (T + 1, *whole):
        return f"; there are {T} steps, and h_0 has no share"
    if name in SEQUENCES and got == (*whole[1::-1], *whole[2:]):
        order = "[B, T, ...]" if layout.batch_first else "[T, B, ...]"
        return f"; steps and batch are exchanged: x is {order} here, and so is this"
    if name in SEQUENCES and got[1:] == whole[1:] and got[0] == T + 1:
        return f"; there are {T} steps: leave the row of h_0 out (its gradient is hx)"
    if got == whole[::-1]:
        return "; it is transposed"
    if len(got) and _product(got) == _product(whole):
        return "; the right number of entries in another shape"
    named = {"I": layout.I, "H": layout.H}
    if named["I"] != named["H"] and name in ("weight_ih", "weight_hh"):
        other = "weight_hh" if name == "weight_ih" else "weight_ih"
        if got == layout.shape(other):
            return f"; that is the shape of {other}"
    return ""


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
