"""The timing grid: `python -m benchmarks.gpu.timing --result FILE --seconds N [--cells ...]`.

A call is timed by CUDA events on the stream, eager and as the replay of a CUDA graph. Before each
call the L2 cache is overwritten, so that weights and inputs come from memory ("cold L2"), as they
do between the layers of a model; and the host is ahead of the device by then, so an eager time is
the host's only where it launches slower than the device computes. Rivals take turns. JAX is timed
by the host's clock, and says so.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import machine
from benchmarks.gpu.cells import Cell, allow_tf32, grid
from benchmarks.gpu.rivals import BASELINE, OURS, Call, Prepared, prepare_module, rivals
from fused_bptt.bench.results import Spread
from fused_bptt.bench.timing import interleave

ROUNDS = 15
#: Of a cell's rounds, on average over the rivals and the ways to call them.
SECONDS_OF_A_CALL = 0.5
DIRECTIONS = ("forward", "forward_backward")


class Flush:
    """Overwrites the L2 cache."""

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties(0).L2_cache_size
        self.memory = torch.empty(max(4 * size, 2**26), dtype=torch.uint8, device="cuda")

    def __call__(self) -> None:
        self.memory.zero_()


class EventTurns:
    """A call's turns by CUDA events, the L2 cache overwritten before each."""

    def __init__(self, call: Call, flush: Flush) -> None:
        self._call, self._flush = call, flush

    def warm_up(self) -> float:
        self.take()
        return self.take()

    def take(self) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush()
        begin.record()
        self._call()
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * begin.elapsed_time(end)


class HostTurns:
    """Those of a rival with streams of its own, by the host's clock."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def warm_up(self) -> float:
        self.take()
        return self.take()

    def take(self) -> float:
        begin = time.perf_counter()
        self._call()
        return time.perf_counter() - begin


def capture(call: Call) -> Call:
    """The call as a graph's replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> Any:
        graph.replay()
        return kept  # lives as long as the graph

    return replay


def peak_bytes(call: Call) -> int:
    """Allocated at most during the call, beyond what stays in place."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def summary(seconds: list[float]) -> dict[str, float]:
    spread = Spread.of([1e3 * value for value in seconds])
    return {
        "ms": spread.median,
        "quartile_1": spread.lower,
        "quartile_3": spread.upper,
        "rounds": len(seconds),
    }


def errors(cell: Cell) -> dict[str, Any]:
    """Largest error against nn.RNN in float64, over the largest value, of everything computed."""
    double = prepare_module(cell, torch.nn.RNN, torch.float64).forward_backward()
    found = {}
    for name, prepare in list(rivals(cell).items())[:2]:
        values = prepare(cell).forward_backward()
        found[name] = max(
            ((value.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()
            for value, truth in zip(values, double, strict=True)
        )
    # As many times nn.RNN's own, beside the type's rounding of a sum over all rows.
    eps = 2**-10 if cell.precision == "tf32" else torch.finfo(cell.dtype).eps
    allowed = 2 * found[BASELINE] + 4 * eps
    return {"errors": found, "allowed": allowed, "right": found[OURS] <= allowed}


def time_cell(cell: Cell, flush: Flush) -> dict[str, Any]:
    """Every rival, both directions, eager and as a graph, in turns."""
    allow_tf32(cell)
    found: dict[str, Any] = {**cell.to_json(), "rivals": {}}
    if cell.T <= 128:  # longer ones would take the time of all others, in float64
        found.update(errors(cell))
        if not found["right"]:
            return found
    calls: dict[tuple[str, str, str], Call] = {}
    for name, prepare in rivals(cell).items():
        entry: dict[str, Any] = {}
        found["rivals"][name] = entry
        try:
            prepared = prepare(cell)
            for direction in DIRECTIONS:
                call = getattr(prepared, direction)
                call()
                torch.cuda.synchronize()
                if name.startswith("JAX"):
                    calls[name, direction, "host clock"] = call
                    continue
                entry[f"{direction} peak_bytes"] = peak_bytes(call)
                calls[name, direction, "eager"] = call
                _add_graph(calls, entry, name, direction, prepared, call)
        except Exception as error:
            torch.cuda.synchronize()
            entry["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    turns = {
        key: HostTurns(call) if key[2] == "host clock" else EventTurns(call, flush)
        for key, call in calls.items()
    }
    times = interleave(turns, ROUNDS, SECONDS_OF_A_CALL * len(turns))
    for (name, direction, how), measured in times.items():
        found["rivals"][name][f"{direction} {how}"] = summary(measured)
    return found


def _add_graph(
    calls: dict[tuple[str, str, str], Call],
    entry: dict[str, Any],
    name: str,
    direction: str,
    prepared: Prepared,
    call: Call,
) -> None:
    if not prepared.captured:
        entry[f"{direction} graph"] = "cannot be captured"
        return
    try:
        calls[name, direction, "graph"] = capture(call)
    except Exception as error:
        torch.cuda.synchronize()
        entry[f"{direction} graph"] = f"not captured: {str(error).splitlines()[0][:200]}"


def predicted(cell: Cell) -> str:
    """The plan on this device, and its predicted time a step."""
    from fused_bptt import _ops

    names = {"fp32": "float32", "tf32": "float32 tf32", "bf16": "bfloat16", "fp16": "float16"}
    groups = 2 if cell.bidirectional else 1
    text = _ops.explain_plan(cell.B, groups, cell.H, names[cell.precision], _ops.cuda_limits(0))
    return next((line for line in text.splitlines() if line.startswith("chosen")), "none")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--cells", default="")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    cells = grid(options.cells)
    result: dict[str, Any] = {
        "l2": "overwritten before each call",
        "rounds": f"{ROUNDS}, fewer where a call takes long; medians",
        "switches": machine.switches(),
        "clocks_before": machine.clocks(),
        "cells": [],
        "left_out": [],
    }
    flush = Flush()
    for cell in cells:
        if time.monotonic() > end:
            result["left_out"].append(cell.name)
            continue
        found = {"plan": predicted(cell), **time_cell(cell, flush)}
        result["cells"].append(found)
        print(json.dumps(found), flush=True)
        result["clocks_after"] = machine.clocks()
        options.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
