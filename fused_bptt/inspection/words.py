"""How steps, factors and numbers are written in sentences and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def sub(t: int) -> str:
    """The number as a subscript."""
    return str(t).translate(_SUBSCRIPTS)


def slope(nonlinearity: str, t: int) -> str:
    """φ'(z_t)."""
    return f"(1-h{sub(t)}²)" if nonlinearity == "tanh" else f"[z{sub(t)}>0]"


def slope_code(nonlinearity: str) -> str:
    """φ'(z_t) in Python, with ``t``."""
    return "(1 - h[t]**2)" if nonlinearity == "tanh" else "(h[t] > 0)"


def join(parts: Sequence[str], last: str = "and") -> str:
    """ "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def capital(text: str) -> str:
    """With a capital first letter, unless it is a symbol such as q₂."""
    return text if len(text) > 1 and not text[1].isascii() else text[:1].upper() + text[1:]


def steps(numbers: Iterable[int]) -> str:
    """ "step 3", "steps 3 and 2", "steps 9 to 5 and 2": from the last back."""
    runs: list[list[int]] = []
    for t in sorted(numbers, reverse=True):
        if runs and runs[-1][-1] == t + 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(t) for t in run]
    single = len(runs) == 1 and len(runs[0]) == 1
    return f"{'step' if single else 'steps'} {join(parts)}"


def number(value: float) -> str:
    """Four decimals where that shows the number, else three significant digits."""
    if value == 0:
        return "0.0000"  # and not -0.0000
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.2e}"


def numbers(values: Tensor, most: int = 8) -> str:
    """The entries of a vector, as many as ``most``."""
    shown = [number(value) for value in values.flatten()[:most].tolist()]
    return ", ".join([*shown, "..."] if values.numel() > most else shown)


def matrix(values: Tensor, most: int = 4) -> str:
    """The rows of a matrix, parted by bars; a vector, or a single column, is one row."""
    if values.dim() == 1 or values.size(1) == 1:
        return numbers(values, most)
    rows = [numbers(row, most) for row in values[:most]]
    return " | ".join([*rows, "..."] if len(values) > most else rows)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of float64."""
    scale = torch.maximum(a.abs().amax(), b.abs().amax()) if a.numel() else a.new_zeros(())
    return bool(((a - b).abs() <= 1e-10 * scale).all())
