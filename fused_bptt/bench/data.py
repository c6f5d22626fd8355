"""Inputs and weights of a cell, the float64 reference, and the check that a rival equals it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fused_bptt.bench.cells import Cell

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def weight_names(cell: Cell) -> list[str]:
    """nn.RNN's names, layer by layer."""
    return [f"{name}_l{layer}" for layer in range(cell.layers) for name in _PARAMETERS]


def gradient_names(cell: Cell) -> list[str]:
    """Of the gradients, in the order in which every rival gives them."""
    return [f"grad {name}" for name in ("x", "h_0", *weight_names(cell))]


# A rival may err this many times as much as nn.RNN in the cell's dtype does, beside what adding the
# terms of one gradient in any order rounds to (`rounding`).
SLACK = 4.0


def rounding(cell: Cell) -> float:
    """The error of a sum over steps and batch, or over hidden units, term by term."""
    eps = torch.finfo(getattr(torch, cell.dtype)).eps
    return eps * math.sqrt(max(cell.T * cell.B, cell.H))


@dataclass(frozen=True)
class Data:
    """Inputs, weights and the cotangent of the output, in the cell's dtype, without gradient."""

    cell: Cell
    x: torch.Tensor  # [T, B, I]
    h_0: torch.Tensor  # [layers, B, H]
    grad_output: torch.Tensor  # [T, B, H]
    weights: dict[str, torch.Tensor]  # nn.RNN's names and layouts

    @classmethod
    def draw(cls, cell: Cell, seed: int = 0) -> Data:
        """Weights as nn.RNN initialises them; everything else from the standard normal."""
        dtype = getattr(torch, cell.dtype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = torch.nn.RNN(cell.I, cell.H, cell.layers)
            weights = {name: w.detach().to(dtype) for name, w in module.named_parameters()}
            return cls(
                cell,
                torch.randn(cell.T, cell.B, cell.I).to(dtype),
                torch.randn(cell.layers, cell.B, cell.H).to(dtype),
                torch.randn(cell.T, cell.B, cell.H).to(dtype),
                weights,
            )


def module_results(data: Data, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """nn.RNN's output and gradients for the data's numbers, computed in a dtype."""
    cell = data.cell
    module = torch.nn.RNN(cell.I, cell.H, cell.layers, dtype=dtype)
    module.load_state_dict(data.weights)
    x = data.x.to(dtype, copy=True).requires_grad_()
    h_0 = data.h_0.to(dtype, copy=True).requires_grad_()
    parameters = dict(module.named_parameters())
    output, _ = module(x, h_0)
    wanted = [x, h_0, *(parameters[name] for name in weight_names(cell))]
    gradients = torch.autograd.grad(output, wanted, data.grad_output.to(dtype))
    return {"output": output.detach(), **dict(zip(gradient_names(cell), gradients, strict=True))}


@dataclass(frozen=True)
class Reference:
    """Float64 nn.RNN's output and gradients, and how far the cell's dtype is from them there."""

    cell: Cell
    results: dict[str, torch.Tensor]
    own_error: dict[str, float]

    @classmethod
    def of(cls, data: Data) -> Reference:
        """Run nn.RNN in both precisions on the same numbers."""
        exact = module_results(data, torch.float64)
        rounded = module_results(data, data.x.dtype)
        own = {name: _error(got, exact[name]) for name, got in rounded.items()}
        return cls(data.cell, exact, own)

    def save(self, path: Path) -> None:
        """For another process."""
        torch.save({"cell": vars(self.cell), "results": self.results, "own": self.own_error}, path)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """What `save` wrote."""
        kept = torch.load(path, weights_only=True)
        return cls(Cell(**kept["cell"]), kept["results"], kept["own"])

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
    return float(((got.double() - expected).abs().max() / scale).item())


@functools.lru_cache(maxsize=1)
def cell_data(cell: Cell) -> tuple[Data, Reference]:
    """The data of a cell and its reference; the latest cell's are kept."""
    data = Data.draw(cell)
    return data, Reference.of(data)
