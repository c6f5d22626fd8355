"""What a training step adds to a process's memory at its peak.

Each rival has a process of its own. For a cell, the resident size once the inputs, the weights and
the cotangent are drawn is the baseline. The rival is prepared and computes a step, whose results
are dropped, so that what it compiles and what it keeps are there. The peak is the kernel's
high-water mark of a second step, whose results are kept. So what a rival copies or keeps for itself
counts, and what it needs in passing while it compiles does not.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

from fused_bptt.bench.cells import Cell
from fused_bptt.bench.data import Data
from fused_bptt.bench.rivals import Rival

# For the process, before it starts: glibc then gives freed memory back at once, so that a resident
# size says what is in use. It would slow a timing.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}

_SELF = Path("/proc/self")


def allowance(cell: Cell) -> dict[str, int]:
    """Bytes of u, h and q of each layer, and of the gradients that a step returns."""
    size = torch.finfo(getattr(torch, cell.dtype)).bits // 8
    sequences = 3 * cell.T * cell.B * cell.H * cell.layers
    gradients = cell.T * cell.B * cell.I + cell.layers * cell.B * cell.H
    for layer in range(cell.layers):
        gradients += cell.H * ((cell.I if layer == 0 else cell.H) + cell.H + 2)
    return {"u_h_q": size * sequences, "gradients": size * gradients}


def _status(field: str) -> int:
    """A field of the kernel's status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", (_SELF / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"the kernel does not report {field}")
    return int(found[1]) * 1024


def _trim() -> None:
    """Give back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def extra_bytes(rival: Rival, cell: Cell, threads: int) -> int:
    """By how much a rival and its step raise this process's memory at most."""
    data = Data.draw(cell)
    _trim()
    baseline = _status("VmRSS")
    prepared = rival.prepare(data, threads)
    prepared.forward_backward()
    _trim()
    (_SELF / "clear_refs").write_text("5")  # resets the high-water mark
    kept = prepared.forward_backward()
    peak = _status("VmHWM")
    del kept, data
    return peak - baseline
