"""torch.compile of a loop over time that is written in Python, which it unrolls."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fused_bptt.bench import native
from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, from_torch

# Compiling takes seconds for 20 steps and half a minute or more for 100.
MOST_STEPS = 20


class Compiled:
    """The loop that people write, compiled."""

    name = "torch.compile"

    def missing(self) -> str | None:
        """Inductor needs a C++ compiler."""
        found = native.compiler_version()
        return None if found else f"no C++ compiler ({native.compiler()}; $CXX names another)"

    def refuses(self, cell: Cell) -> str | None:
        """Long loops."""
        if cell.T * cell.layers > MOST_STEPS:
            return f"not compiled above {MOST_STEPS} steps, which take half a minute or more"
        return None

    def version(self) -> str:
        """Of torch."""
        return torch.__version__

    def settings(self, threads: int) -> str:
        """How it is called."""
        return (
            f"torch.compile(fullgraph=True, dynamic=False), torch.set_num_threads({threads}); at "
            f"most {MOST_STEPS} steps, as the loop is unrolled; compiled beforehand"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """Compile the loop for the data's shape."""
        torch.set_num_threads(threads)
        torch.compiler.reset()
        cell = data.cell

        @torch.compile(fullgraph=True, dynamic=False)
        def walk(x: Tensor, h_0: Tensor, *weights: Tensor) -> Tensor:
            below = x
            for layer in range(cell.layers):
                w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
                u = functional.linear(below, w_ih, b_ih + b_hh)
                h, steps = h_0[layer], []
                for t in range(cell.T):
                    h = torch.tanh(u[t] + h @ w_hh.T)
                    steps.append(h)
                below = torch.stack(steps)
            return below

        tensors = [data.x, data.h_0, *(data.weights[name] for name in weight_names(cell))]
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        grad_output = data.grad_output

        def forward_backward() -> tuple[Tensor, tuple[Tensor, ...]]:
            output = walk(*leaves)
            return output, torch.autograd.grad(output, leaves, grad_output)

        def forward() -> Tensor:
            with torch.no_grad():
                return walk(*leaves)

        return from_torch(data, forward_backward, forward)
