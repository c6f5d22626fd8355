"""One adapter for each implementation that is measured, all with the same interface.

`prepare` allocates, copies, compiles. What it returns computes one training step's work on data
that stays in place: the output and the gradients of x, h_0 and every weight, for a given cotangent
of the output; or the output alone, nothing kept for a gradient.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from benchmarks import onednn
from benchmarks.data import GRADIENTS, WEIGHTS, Data

OURS = "fused_bptt.RNN"
BASELINE = "nn.RNN"


@dataclass(frozen=True)
class Prepared:
    """What is timed, and what is checked before."""

    forward_backward: Callable[[], Any]
    forward: Callable[[], Any]
    results: Callable[[], dict[str, torch.Tensor]]  # by forward_backward, named as Reference names
    output: Callable[[], torch.Tensor]  # by forward


class Rival(Protocol):
    """An implementation of the recurrence that can be trained."""

    name: str

    def missing(self) -> str | None:
        """Why it cannot be measured here, None if it can."""

    def version(self) -> str:
        """The version of the package."""

    def settings(self, threads: int) -> str:
        """How it is called, in words."""

    def prepare(self, data: Data, threads: int) -> Prepared:
        """Bring it to where only the work is left."""


def _named(output: torch.Tensor, gradients: Any) -> dict[str, torch.Tensor]:
    return {"output": output, **dict(zip(GRADIENTS, gradients, strict=True))}


@dataclass(frozen=True)
class Module:
    """A module with nn.RNN's interface, eager."""

    name: str
    package: str

    def missing(self) -> str | None:
        try:
            self._class()
        except (ImportError, OSError) as error:
            return f"not installed ({error})"
        return None

    def _class(self) -> type[torch.nn.Module]:
        home = torch.nn if self.package == "torch" else importlib.import_module(self.package)
        try:
            return home.RNN
        except AttributeError as error:
            raise ImportError(str(error)) from error

    def version(self) -> str:
        return importlib.import_module(self.package).__version__

    def settings(self, threads: int) -> str:
        return (
            f"eager, torch.set_num_threads({threads}); torch.autograd.grad for the gradients, "
            "torch.no_grad for forward alone"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        torch.set_num_threads(threads)
        module = self._class()(data.cell.I, data.cell.H)
        module.load_state_dict(data.weights)
        parameters = dict(module.named_parameters())
        x = data.x.clone().requires_grad_()
        h_0 = data.h_0.clone().requires_grad_()
        wanted = [x, h_0, *(parameters[name] for name in WEIGHTS)]
        grad_output = data.grad_output

        def forward_backward() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            output, _ = module(x, h_0)
            return output, torch.autograd.grad(output, wanted, grad_output)

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return module(x, h_0)[0]

        def results() -> dict[str, torch.Tensor]:
            output, gradients = forward_backward()
            return _named(output.detach(), gradients)

        return Prepared(forward_backward, forward, results, forward)


class Jax:
    """JAX's lax.scan under jit: the input projection as one product, then the scan."""

    name = "jax"

    def missing(self) -> str | None:
        try:
            importlib.import_module("jax")
        except ImportError as error:
            return f"not installed ({error})"
        return None

    def version(self) -> str:
        return importlib.metadata.version("jax")

    def settings(self, threads: int) -> str:
        return (
            "float32, one jit of lax.scan and its vjp, unroll=1, block_until_ready; arrays on the "
            f"device beforehand; XLA's pool has {threads} threads by NPROC and by the affinity"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        import jax
        import jax.numpy as jnp
        import numpy as np

        def recurrence(
            x: jax.Array,
            h_0: jax.Array,
            w_ih: jax.Array,
            w_hh: jax.Array,
            b_ih: jax.Array,
            b_hh: jax.Array,
        ) -> jax.Array:
            u = x @ w_ih.T + (b_ih + b_hh)

            def step(h: jax.Array, u_t: jax.Array) -> tuple[jax.Array, jax.Array]:
                h = jnp.tanh(u_t + h @ w_hh.T)
                return h, h

            return jax.lax.scan(step, h_0[0], u)[1]

        @jax.jit
        def step_of_training(arguments: tuple[jax.Array, ...], cotangent: jax.Array) -> Any:
            output, pullback = jax.vjp(recurrence, *arguments)
            return output, pullback(cotangent)

        inference = jax.jit(lambda arguments: recurrence(*arguments))
        tensors = [data.x, data.h_0, *(data.weights[name] for name in WEIGHTS)]
        arguments = tuple(jnp.array(t.numpy()) for t in tensors)
        cotangent = jnp.array(data.grad_output.numpy())

        def forward_backward() -> Any:
            return jax.block_until_ready(step_of_training(arguments, cotangent))

        def forward() -> Any:
            return jax.block_until_ready(inference(arguments))

        def tensor(array: jax.Array) -> torch.Tensor:
            return torch.from_numpy(np.array(array))

        def results() -> dict[str, torch.Tensor]:
            output, gradients = forward_backward()
            return _named(tensor(output), map(tensor, gradients))

        return Prepared(forward_backward, forward, results, lambda: tensor(forward()))


class OneDnn:
    """oneDNN's vanilla_rnn_forward and vanilla_rnn_backward, without autograd or module."""

    name = "onednn"

    def missing(self) -> str | None:
        return onednn.missing()

    def version(self) -> str:
        return onednn.version()

    def settings(self, threads: int) -> str:
        return (
            f"float32 primitives, {threads} OpenMP threads; no allocation in a call; weights "
            "beforehand in the layouts that the primitives ask for, their gradients left in those; "
            f"{self._implementations(threads)}"
        )

    @functools.lru_cache(maxsize=4)  # noqa: B019 -- one instance, for the process's life
    def _implementations(self, threads: int) -> str:
        from benchmarks.cells import Cell

        return onednn.Recurrence(Data.draw(Cell(8, 64)), threads).implementations

    def prepare(self, data: Data, threads: int) -> Prepared:
        recurrence = onednn.Recurrence(data, threads)

        def results() -> dict[str, torch.Tensor]:
            recurrence.forward_backward()
            output, *gradients = recurrence.read()
            return _named(output, [*gradients, gradients[-1]])  # both biases have the same

        def output() -> torch.Tensor:
            recurrence.forward()
            return recurrence.read()[0]

        return Prepared(recurrence.forward_backward, recurrence.forward, results, output)


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (Module(OURS, "fused_bptt"), Module(BASELINE, "torch"), OneDnn(), Jax())
}
