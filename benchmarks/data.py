"""Inputs and weights of a cell, the float64 reference, and the check that a rival equals it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from benchmarks.cells import Cell

INPUTS = ("x", "h_0")
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
GRADIENTS = tuple(f"grad {name}" for name in INPUTS + WEIGHTS)

# A rival may err this many times as much as nn.RNN in float32 does, beside what adding the terms
# of one gradient in any order rounds to (`rounding`).
SLACK = 4.0


def rounding(cell: Cell) -> float:
    """The error of a float32 sum over steps and batch, or over hidden units, term by term."""
    return torch.finfo(torch.float32).eps * math.sqrt(max(cell.T * cell.B, cell.H))


@dataclass(frozen=True)
class Data:
    """Float32 inputs, weights and the cotangent of the output, contiguous, without gradient."""

    cell: Cell
    x: torch.Tensor  # [T, B, I]
    h_0: torch.Tensor  # [1, B, H]
    grad_output: torch.Tensor  # [T, B, H]
    weights: dict[str, torch.Tensor]  # nn.RNN's names and layouts

    @classmethod
    def draw(cls, cell: Cell, seed: int = 0) -> Data:
        """Weights as nn.RNN initialises them; everything else from the standard normal."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = torch.nn.RNN(cell.I, cell.H)
            weights = {name: w.detach().clone() for name, w in module.named_parameters()}
            return cls(
                cell,
                torch.randn(cell.T, cell.B, cell.I),
                torch.randn(1, cell.B, cell.H),
                torch.randn(cell.T, cell.B, cell.H),
                weights,
            )


def module_results(
    module: torch.nn.Module, data: Data, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Output and gradients of a module with nn.RNN's interface that holds the data's weights."""
    x = data.x.to(dtype, copy=True).requires_grad_()
    h_0 = data.h_0.to(dtype, copy=True).requires_grad_()
    parameters = dict(module.named_parameters())
    output, _ = module(x, h_0)
    gradients = torch.autograd.grad(
        output, [x, h_0, *(parameters[name] for name in WEIGHTS)], data.grad_output.to(dtype)
    )
    return {"output": output.detach(), **dict(zip(GRADIENTS, gradients, strict=True))}


@dataclass(frozen=True)
class Reference:
    """Float64 nn.RNN's output and gradients, and how far float32 nn.RNN is from them."""

    cell: Cell
    results: dict[str, torch.Tensor]
    own_error: dict[str, float]

    @classmethod
    def of(cls, data: Data) -> Reference:
        """Run nn.RNN in both precisions on the same numbers."""
        runs = {}
        for dtype in (torch.float64, torch.float32):
            module = torch.nn.RNN(data.cell.I, data.cell.H).to(dtype)
            module.load_state_dict(data.weights)
            runs[dtype] = module_results(module, data, dtype)
        exact = runs[torch.float64]
        own = {name: _error(got, exact[name]) for name, got in runs[torch.float32].items()}
        return cls(data.cell, exact, own)

    def check(self, results: dict[str, torch.Tensor]) -> tuple[float, str | None]:
        """Return the largest error, and what is wrong with the results if something is.

        An error is the largest difference over the largest element of the reference.
        """
        worst = 0.0
        for name, expected in self.results.items():
            if name not in results:
                return float("inf"), f"{name}: missing"
            got = results[name]
            if got.shape != expected.shape:
                return float("inf"), f"{name}: expected {expected.shape}, got {got.shape}"
            error = _error(got, expected)
            worst = max(worst, error)
            bound = SLACK * self.own_error[name] + rounding(self.cell)
            if not error <= bound:
                return error, f"{name}: error {error:.1e} where {bound:.1e} is allowed"
        return worst, None


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((got.double() - expected).abs().max() / scale).item()


@functools.lru_cache(maxsize=1)
def cell_data(cell: Cell) -> tuple[Data, Reference]:
    """The data of a cell and its reference; the latest cell's are kept."""
    data = Data.draw(cell)
    return data, Reference.of(data)
