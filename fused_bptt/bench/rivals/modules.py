"""nn.RNN, and this package's: modules with the same interface, eager."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, from_torch


@dataclass(frozen=True)
class Module:
    """A module with nn.RNN's interface."""

    name: str
    package: str  # that has `RNN`, or whose `nn` has

    def missing(self) -> str | None:
        """Never: this package needs both."""
        return None

    def refuses(self, cell: Cell) -> str | None:
        """It computes every cell."""
        return None

    def _class(self) -> Callable[..., torch.nn.RNNBase]:
        home = torch.nn if self.package == "torch" else importlib.import_module(self.package)
        found: Callable[..., torch.nn.RNNBase] = home.RNN
        return found

    def version(self) -> str:
        """Of the package that has it."""
        return str(importlib.import_module(self.package).__version__)

    def settings(self, threads: int) -> str:
        """How it is called."""
        return (
            f"eager, torch.set_num_threads({threads}); torch.autograd.grad for the gradients, "
            "torch.no_grad for forward alone"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """A module that holds the data's weights."""
        torch.set_num_threads(threads)
        cell = data.cell
        module = self._class()(cell.I, cell.H, cell.layers, dtype=data.x.dtype)
        module.load_state_dict(data.weights)
        parameters = dict(module.named_parameters())
        x = data.x.clone().requires_grad_()
        h_0 = data.h_0.clone().requires_grad_()
        wanted = [x, h_0, *(parameters[name] for name in weight_names(cell))]
        grad_output = data.grad_output

        def forward_backward() -> tuple[Tensor, tuple[Tensor, ...]]:
            output, _ = module(x, h_0)
            return output, torch.autograd.grad(output, wanted, grad_output)

        def forward() -> Tensor:
            with torch.no_grad():
                output: Tensor = module(x, h_0)[0]
            return output

        return from_torch(data, forward_backward, forward)
