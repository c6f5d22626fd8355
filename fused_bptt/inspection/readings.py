"""What a :class:`GradientMonitor` reads of one backward pass, and a picture of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._algebra import slope
from ..functional import _NONLINEARITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A state is called saturated where the slope is below this part of the largest: |tanh| > 0.99.
FLAT = 0.0199


@dataclass(frozen=True)
class Reading:
    """One layer and direction of one backward pass."""

    passes: int
    """Number of the pass, from 1."""
    layer: int
    reverse: bool
    q_norms: Tensor
    """[T] float64 on the CPU: ‖∂L/∂z_t‖ over the batch and the hidden units, in the order of x; T
    is that of the longest row."""
    saturation: float
    """Fraction of h that has next to no slope, below 2 % of the largest: |h| > 0.99 of tanh, h = 0
    of relu."""
    spectral_radius: float
    """Largest |eigenvalue| of W_hh."""

    @property
    def name(self) -> str:
        """``l0``, ``l1_reverse``: as the parameters are named."""
        return f"l{self.layer}{'_reverse' if self.reverse else ''}"

    @property
    def reach(self) -> float:
        """‖q‖ of the step that the walk reaches last over that of the largest step.

        Near 0 the gradient vanishes on the way; 1 says that it grows until the end.
        """
        largest = self.q_norms.max() if self.q_norms.numel() else self.q_norms.new_zeros(())
        if not largest > 0:
            return 0.0
        reached: float = (self.q_norms[-1 if self.reverse else 0] / largest).item()
        return reached

    def scalars(self) -> dict[str, float]:
        """What is worth a curve each."""
        return {
            "gradient_norm": self.q_norms.norm().item(),
            "gradient_reach": self.reach,
            "saturation": self.saturation,
            "spectral_radius": self.spectral_radius,
        }


def spectral_radius(weight: Tensor) -> float:
    """Largest |eigenvalue| of ``weight`` [H, H]; NaN where a number is not finite.

    Exact, at the cost of an eigenvalue problem. Iterations that are cheaper are wrong just where it
    matters: all eigenvalues of an orthogonal matrix are of one size, and none comes to the fore.
    """
    wide = weight.detach().cpu()
    if wide.dtype != torch.float64:
        wide = wide.float()
    if not wide.isfinite().all():
        return math.nan
    radius: float = torch.linalg.eigvals(wide).abs().amax().item()
    return radius


def q_norms(q: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """[T] ‖q_t‖ of [T, B, H], or of packed rows [N, H]; float64 on the CPU."""
    wide = q if q.dtype == torch.float64 else q.float()
    rows: Tensor = torch.linalg.vector_norm(wide, dim=-1).double().cpu()
    if batch_sizes is None:
        return rows.square().sum(1).sqrt()
    steps = torch.repeat_interleave(torch.arange(len(batch_sizes)), batch_sizes)
    return rows.new_zeros(len(batch_sizes)).index_add(0, steps, rows.square()).sqrt()


def saturation(h: Tensor, nonlinearity: str) -> float:
    """Fraction of the states h that has next to no slope; 0 of none."""
    if h.numel() == 0:
        return 0.0
    largest = 0.25 if nonlinearity == "sigmoid" else 1.0
    flat = slope(h.float(), _NONLINEARITIES[nonlinearity]) < FLAT * largest
    return flat.float().mean().item()


def plot(readings: Sequence[Reading], axes: Axes | None = None) -> Axes:
    """Draws ‖∂L/∂z_t‖ over steps and passes, on a log scale; darker is smaller.

    Args:
        readings: of one layer and direction, in the order of time.
        axes: where to draw. Default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: no readings, or of several layers or directions.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    names = {reading.name for reading in readings}
    if len(names) != 1:
        got = ", ".join(sorted(names)) or "none"
        raise ValueError(f"readings: expected those of one layer and direction, got {got}")
    if axes is None:
        axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    steps = max(len(reading.q_norms) for reading in readings)
    grid = torch.full((len(readings), steps), float("nan"), dtype=torch.float64)
    for row, reading in zip(grid, readings, strict=True):
        row[: len(reading.q_norms)] = reading.q_norms
    positive = grid[grid > 0]
    top = positive[positive.isfinite()].max().item() if positive.numel() else 1.0
    bottom = max(positive.min().item() if positive.numel() else 0.0, 1e-12 * top)
    passes = [reading.passes for reading in readings]
    drawn = axes.pcolormesh(
        range(1, steps + 1),
        passes,
        grid.clamp(min=bottom).numpy(),
        norm=LogNorm(bottom, max(top, 1.001 * bottom)),
        cmap="cividis",
        shading="nearest",
    )
    axes.set_xlabel("step t")
    axes.set_ylabel("backward pass")
    axes.set_title(f"‖∂L/∂z_t‖ of {names.pop()}")
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(drawn, ax=axes)
    return axes
