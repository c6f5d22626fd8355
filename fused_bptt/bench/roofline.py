"""The least time that a step can take on a machine of given rates. Pure arithmetic.

Per core, with N output columns and B rows on it:

    forward   max(2BHN/P, 4HN/BW(4HN), 12BN/S) + BN t_tanh + t_latency
    backward  max(2BHN/P, 4HN/BW(4HN), 16BN/S) + BN t_derivative + t_latency, and
              2BH^2 / (0.9 P cores) for the gradient of W_hh
    inputs    2BIH / (P cores) forward, 4BIH / (P cores) backward

with 4, 12 and 16 twice as large and P half as large in float64; a layer above the first has I = H.
P is the rate of multiply-adds; BW(4HN) the rate of reading W from where that many bytes lie; S the
rate of streaming u and h. Where hidden units are split over cores a barrier comes on top. Of the
ways to split batch and hidden units over the cores, the fastest counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fused_bptt.bench.cells import FORWARD_BACKWARD, Cell

# Assumed, not measured: what the activation and its derivative cost an element when they are
# interleaved with the product, what a dependent step costs at least, and a barrier of two cores.
T_TANH = 0.4e-9
T_DERIVATIVE = 0.1e-9
T_LATENCY = 0.05e-6
T_BARRIER = 0.25e-6
PRODUCT_EFFICIENCY = 0.9

# By which bytes grow and the product's rate shrinks against float32. 16 bits are left out: what a
# product of them could reach is not probed.
_SIZES = {"float32": 1, "float64": 2}

Curve = Sequence[tuple[int, float]]  # working set in bytes, bytes per second


@dataclass(frozen=True)
class Rates:
    """A core's rates, in operations and bytes per second."""

    product: float
    read: Curve
    stream: Curve

    @classmethod
    def from_probes(cls, *probes: Mapping[str, Any]) -> Rates:
        """The best that any of the probes saw."""

        def best(name: str) -> Curve:
            curves = [dict(map(tuple, probe[name])) for probe in probes]
            return [(size, 1e9 * max(c[size] for c in curves)) for size in curves[0]]

        products = [
            probe[name] for probe in probes for name in ("multiply_add_gflops", "sgemm_gflops")
        ]
        return cls(1e9 * max(products), best("read_gbps"), best("stream_gbps"))


def at(curve: Curve, size: float) -> float:
    """The rate at a working set, linear between measured sizes in its logarithm."""
    points = sorted(curve)
    if size <= points[0][0]:
        return points[0][1]
    for (below, low), (above, high) in itertools.pairwise(points):
        if size <= above:
            share = math.log(size / below) / math.log(above / below)
            return low + share * (high - low)
    return points[-1][1]


def seconds_per_step(cell: Cell, rates: Rates, cores: int, mode: str) -> float | None:
    """The limit of a step, forward alone or forward and backward with every gradient.

    None for a dtype for which it is not known.
    """
    size = _SIZES.get(cell.dtype)
    if size is None:
        return None
    total = 0.0
    for layer in range(cell.layers):
        total += _layer(cell, cell.I if layer == 0 else cell.H, size, rates, cores, mode)
    return total


def _layer(cell: Cell, inputs: int, size: int, rates: Rates, cores: int, mode: str) -> float:
    B, H = cell.B, cell.H
    product = rates.product / size
    total = _loop(cell, size, rates, cores, bytes_per_unit=12 * size, t_element=T_TANH)
    total += 2 * B * inputs * H / (product * cores)
    if mode == FORWARD_BACKWARD:
        total += _loop(cell, size, rates, cores, bytes_per_unit=16 * size, t_element=T_DERIVATIVE)
        total += 2 * B * H**2 / (PRODUCT_EFFICIENCY * product * cores)
        total += 4 * B * inputs * H / (product * cores)
    return total


def _loop(
    cell: Cell, size: int, rates: Rates, cores: int, bytes_per_unit: float, t_element: float
) -> float:
    """One of the two time loops, split over the cores in the best way."""
    best = math.inf
    for batch_parts in range(1, cores + 1):
        for hidden_parts in range(1, cores // batch_parts + 1):
            B = math.ceil(cell.B / batch_parts)
            N = math.ceil(cell.H / hidden_parts)
            weight = 4 * size * cell.H * N
            streamed = 8 * size * cell.T * B * N  # u and h, or the gradient and q, over all steps
            slowest = max(
                2 * B * cell.H * N / (rates.product / size),
                weight / at(rates.read, weight),
                bytes_per_unit * B * N / at(rates.stream, streamed),
            )
            barrier = T_BARRIER if hidden_parts > 1 else 0.0
            best = min(best, slowest + B * N * t_element + T_LATENCY + barrier)
    return best
