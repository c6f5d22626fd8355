"""oneDNN's vanilla_rnn primitives by way of onednn_shim.cpp and ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch

from fused_bptt.bench import native
from fused_bptt.bench.cells import FLOAT32, Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, named

_PACKAGES = "onednn-cpu-gomp onednn-devel-cpu-gomp"


def prefix() -> Path:
    """Where oneDNN is installed: $ONEDNN_PREFIX, or where pip puts the packages."""
    return Path(os.environ.get("ONEDNN_PREFIX", sys.prefix))


def missing() -> str | None:
    """Why oneDNN cannot be used here, None if it can."""
    if not (prefix() / "include/oneapi/dnnl/dnnl.hpp").exists():
        return f"not installed (pip install {_PACKAGES})"
    try:
        library()
    except (native.BuildError, OSError) as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The shim, compiled against the headers and library under `prefix`.

    torch is imported first in this module: it brings the libgomp that both then share.
    """
    root = prefix()
    found = native.load(
        Path(__file__).with_name("onednn_shim.cpp"),
        flags=[f"-I{root / 'include'}"],
        libraries=[f"-L{root / 'lib'}", "-ldnnl", f"-Wl,-rpath,{root / 'lib'}"],
    )
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    found.shim_error.restype = ctypes.c_char_p
    found.shim_create.restype = pointer
    found.shim_create.argtypes = [size] * 4 + [ctypes.c_int]
    found.shim_implementations.restype = ctypes.c_char_p
    for name, pointers in {
        "shim_implementations": 1,
        "shim_destroy": 1,
        "shim_forward": 1,
        "shim_forward_backward": 1,
        "shim_load": 8,
        "shim_read": 7,
    }.items():
        getattr(found, name).argtypes = [pointer] * pointers
    if (loaded := _version(found.shim_version)) != (built := _version(found.shim_header_version)):
        raise OSError(f"oneDNN {loaded} was loaded where the headers are of {built}")
    return found


def _version(function: Any) -> str:
    parts = [ctypes.c_int() for _ in range(3)]
    function(*(ctypes.byref(part) for part in parts))
    return ".".join(str(part.value) for part in parts)


def version() -> str:
    """The version of the library that is loaded."""
    return _version(library().shim_version)


class Recurrence:
    """The three primitives for one shape, with memory and weights in place."""

    def __init__(self, data: Data, threads: int) -> None:
        """Create the primitives and load the data into their memory."""
        cell = data.cell
        self._data = data
        self._library = library()
        self._handle = self._library.shim_create(cell.T, cell.B, cell.I, cell.H, threads)
        if not self._handle:
            raise RuntimeError(f"oneDNN: {self._library.shim_error().decode()}")
        weakref.finalize(self, self._library.shim_destroy, self._handle)
        tensors = [
            data.x,
            data.h_0,
            *(data.weights[name] for name in weight_names(cell)),
            data.grad_output,
        ]
        self._call("shim_load", *(t.data_ptr() for t in tensors))

    def _call(self, name: str, *arguments: int) -> None:
        if getattr(self._library, name)(self._handle, *arguments) != 0:
            raise RuntimeError(f"oneDNN: {self._library.shim_error().decode()}")

    def forward(self) -> None:
        """Forward without gradient; the output stays in the primitive's memory."""
        self._call("shim_forward")

    def forward_backward(self) -> None:
        """Forward for training, then backward; results stay in the primitive's memory."""
        self._call("shim_forward_backward")

    def read(self) -> list[torch.Tensor]:
        """Output and gradients of x, h_0, W_ih, W_hh and the bias, as they lie in memory now."""
        data = self._data
        names = weight_names(data.cell)[:3]
        like = [data.grad_output, data.x, data.h_0, *(data.weights[name] for name in names)]
        results = [torch.empty_like(t) for t in like]
        self._call("shim_read", *(t.data_ptr() for t in results))
        return results

    @property
    def implementations(self) -> str:
        """The implementations that oneDNN chose."""
        said: bytes = self._library.shim_implementations(self._handle)
        return said.decode()


class OneDnn:
    """oneDNN's vanilla_rnn_forward and vanilla_rnn_backward, without autograd or module."""

    name = "onednn"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        return missing()

    def refuses(self, cell: Cell) -> str | None:
        """What the shim does not set up."""
        if cell.dtype != FLOAT32:
            return "measured in float32 alone"
        return None if cell.layers == 1 else "measured with one layer alone"

    def version(self) -> str:
        """Of the library that is loaded."""
        return version()

    def settings(self, threads: int) -> str:
        """How it is called, and what oneDNN chose."""
        return (
            f"float32 primitives, {threads} OpenMP threads; no allocation in a call; weights "
            "beforehand in the layouts that the primitives ask for, their gradients left in those; "
            f"{_implementations(threads)}"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """The primitives for the data's shape."""
        recurrence = Recurrence(data, threads)

        def results() -> dict[str, torch.Tensor]:
            recurrence.forward_backward()
            output, *gradients = recurrence.read()
            return named(data, output, [*gradients, gradients[-1]])  # both biases have the same

        def output() -> torch.Tensor:
            recurrence.forward()
            return recurrence.read()[0]

        return Prepared(recurrence.forward_backward, recurrence.forward, results, output)


@functools.lru_cache(maxsize=4)
def _implementations(threads: int) -> str:
    return Recurrence(Data.draw(Cell(8, 64)), threads).implementations
