"""JAX's lax.scan under jit: each layer's input projection as one product, then the scan."""

from __future__ import annotations

from typing import Any

from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, named, not_installed, tensor, version_of


class Jax:
    """One jit of the forward and its vjp."""

    name = "jax"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        return not_installed("jax", "jax")

    def refuses(self, cell: Cell) -> str | None:
        """float64 would need a switch for the whole process, and slow the others."""
        return "float64 is off in JAX's default settings" if cell.dtype == "float64" else None

    def version(self) -> str:
        """Of jax."""
        return version_of("jax")

    def settings(self, threads: int) -> str:
        """How it is called."""
        return (
            "one jit of lax.scan and its vjp, unroll=1, block_until_ready; arrays on the "
            f"device beforehand; XLA's pool has {threads} threads by NPROC and by the affinity"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """Compile for the data's shape, at the first call."""
        import jax
        import jax.numpy as jnp

        cell = data.cell

        def recurrence(x: Any, h_0: Any, *weights: Any) -> Any:
            below = x
            for layer in range(cell.layers):
                w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
                u = below @ w_ih.T + (b_ih + b_hh)

                def step(h: Any, u_t: Any, w_hh: Any = w_hh) -> tuple[Any, Any]:
                    h = jnp.tanh(u_t + h @ w_hh.T)
                    return h, h

                below = jax.lax.scan(step, h_0[layer], u)[1]
            return below

        def step_of_training(arguments: tuple[Any, ...], cotangent: Any) -> Any:
            output, pullback = jax.vjp(recurrence, *arguments)
            return output, pullback(cotangent)

        training = jax.jit(step_of_training)
        inference = jax.jit(lambda arguments: recurrence(*arguments))

        def array(value: Any) -> Any:
            return jnp.array(value.float().numpy(), dtype=cell.dtype)

        tensors = [data.x, data.h_0, *(data.weights[name] for name in weight_names(cell))]
        arguments = tuple(map(array, tensors))
        cotangent = array(data.grad_output)

        def forward_backward() -> Any:
            return jax.block_until_ready(training(arguments, cotangent))

        def forward() -> Any:
            return jax.block_until_ready(inference(arguments))

        def results() -> dict[str, Any]:
            output, gradients = forward_backward()
            return named(data, tensor(output), map(tensor, gradients))

        return Prepared(forward_backward, forward, results, lambda: tensor(forward()))
