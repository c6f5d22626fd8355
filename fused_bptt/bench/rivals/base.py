"""What every adapter offers. There is one file for each implementation.

`prepare` allocates, copies, compiles. What it returns computes one training step's work on data
that stays in place: the output and the gradients of x, h_0 and every weight, for a given cotangent
of the output; or the output alone, nothing kept for a gradient.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data, gradient_names

OURS = "fused_bptt.RNN"
BASELINE = "nn.RNN"


@dataclass(frozen=True)
class Prepared:
    """What is timed, and what is checked before."""

    forward_backward: Callable[[], Any]
    forward: Callable[[], Any]
    results: Callable[[], dict[str, Tensor]]  # by forward_backward, named as Reference names
    output: Callable[[], Tensor]  # by forward


class Rival(Protocol):
    """An implementation of the recurrence that can be trained."""

    @property
    def name(self) -> str:
        """In options and in results."""

    def missing(self) -> str | None:
        """Why it cannot be measured here, None if it can."""

    def refuses(self, cell: Cell) -> str | None:
        """Why this cell is not measured with it, None if it is."""

    def version(self) -> str:
        """The version of the package."""

    def settings(self, threads: int) -> str:
        """How it is called, in words."""

    def prepare(self, data: Data, threads: int) -> Prepared:
        """Bring it to where only the work is left."""


def not_installed(module: str, package: str) -> str | None:
    """The reason, with what installs it; None where the module can be imported."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return f"not installed (pip install {package}): {str(error).splitlines()[0]}"
    return None


def version_of(package: str) -> str:
    """The version of an installed package."""
    return importlib.metadata.version(package)


def named(data: Data, output: Tensor, gradients: Iterable[Tensor]) -> dict[str, Tensor]:
    """Results by the names of the reference: the output, then gradients in its order."""
    return {"output": output, **dict(zip(gradient_names(data.cell), gradients, strict=True))}


def from_torch(
    data: Data,
    forward_backward: Callable[[], tuple[Tensor, Iterable[Tensor]]],
    forward: Callable[[], Tensor],
) -> Prepared:
    """For an implementation whose results are tensors of PyTorch, in the reference's order."""

    def results() -> dict[str, Tensor]:
        output, gradients = forward_backward()
        return named(data, output.detach(), gradients)

    return Prepared(forward_backward, forward, results, forward)


def tensor(array: Any) -> Tensor:
    """A tensor of whatever numpy can read, bfloat16 included."""
    import numpy as np

    values = np.asarray(array)
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(values.copy())
