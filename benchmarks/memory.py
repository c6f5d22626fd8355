"""What a training step adds to a process's memory at its peak; measure.py starts it.

The baseline is the resident size after the inputs, the weights, the cotangent and a small step of
the same module (which loads code and starts threads); the peak is the kernel's high-water mark of
one forward and backward whose output and gradients are kept.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path

from benchmarks.cells import MEMORY, Cell
from benchmarks.isolation import isolate
from benchmarks.worker import MARK

_SELF = Path("/proc/self")


def allowance(cell: Cell) -> dict[str, int]:
    """Bytes of what a step needs: u, h and q, and the gradients that it returns."""
    sequences = 3 * cell.T * cell.B * cell.H
    gradients = cell.T * cell.B * cell.I + cell.B * cell.H
    gradients += cell.H * (cell.I + cell.H + 2)
    return {"u_h_q": 4 * sequences, "gradients": 4 * gradients}


def _status(field: str) -> int:
    """A field of the kernel's status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", (_SELF / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"the kernel does not report {field}")
    return int(found[1]) * 1024


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    affinity = isolate(threads)

    from benchmarks.data import Data
    from benchmarks.rivals import RIVALS

    rival = RIVALS[name]
    why = rival.missing()
    if why is not None:
        print(MARK + json.dumps({"rival": name, "missing": why}))
        return
    rival.prepare(Data.draw(Cell(1, MEMORY.H, T=2)), threads).forward_backward()
    data = Data.draw(MEMORY)  # kept, so that no memory of it is there to be used again
    prepared = rival.prepare(data, threads)
    ctypes.CDLL(None).malloc_trim(0)
    (_SELF / "clear_refs").write_text("5")  # resets the high-water mark
    baseline = _status("VmRSS")
    kept = prepared.forward_backward()
    peak = _status("VmHWM")
    del kept, data
    result = {
        "rival": name,
        "threads": threads,
        "affinity": affinity,
        "cell": {"B": MEMORY.B, "H": MEMORY.H, "T": MEMORY.T, "I": MEMORY.I},
        "extra_bytes": peak - baseline,
        "needed_bytes": allowance(MEMORY),
    }
    print(MARK + json.dumps({"memory": result}))


if __name__ == "__main__":
    main()
