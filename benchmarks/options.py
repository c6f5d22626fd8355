"""Each option against the plain path and against the loop that users write, to JSON.

    python -m benchmarks.options [--rounds 5] [--threads 1] [--only reset]

Forward and backward, float32, interleaved; the ratio is paired by round. A loop whose option this
version does not have is timed alone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loops import LOOPS, Inputs
from fused_bptt import functional
from fused_bptt.bench.machine import describe_machine, describe_software, slug
from fused_bptt.bench.timing import Calls, interleave

RESULTS = Path(__file__).parent / "results"

#: Loop, T, B, I, H, share of steps that are resets.
CELLS = (
    ("plain", 100, 4, 64, 256, 0.0),
    ("plain", 500, 64, 64, 128, 0.0),
    ("leaky", 100, 4, 64, 256, 0.0),
    ("leaky", 500, 64, 64, 128, 0.0),
    ("reset", 128, 128, 64, 256, 0.03),
    ("voltage", 1000, 32, 64, 512, 0.0),
)

# What an option's call adds to the plain one, and whether this version has it.
OPTIONS: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    "plain": lambda i: {},
    "reset": lambda i: {"reset": i.reset},
    "bptt_window": lambda i: {"bptt_window": 50},
    "checkpoint_every": lambda i: {"checkpoint_every": 128},
}


def fused(inputs: Inputs, options: dict[str, Any]) -> Tensor:
    weights = list(inputs.weights.values())
    return functional.rnn(inputs.x, inputs.h_0.unsqueeze(0), weights, **options)[0]


def available(option: str) -> bool:
    return option == "plain" or option in inspect.signature(functional.rnn).parameters


def trained(call: Callable[[], Tensor], inputs: Inputs, cotangent: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(call(), inputs.leaves, cotangent)


def measure(
    loop: str, sizes: tuple[int, int, int, int], resets: float, rounds: int, seconds: float
) -> dict[str, Any]:
    """Seconds a call by round: the loop, and every option that is here."""
    inputs = Inputs.draw(*sizes, resets)
    T, B, _, H = sizes
    cotangent = torch.randn(T, B, H)
    calls = {f"loop {loop}": trained(lambda: LOOPS[loop](inputs), inputs, cotangent)}
    for name, options_of in OPTIONS.items():
        if not available(name):
            continue
        options = options_of(inputs)
        calls[name] = trained(lambda o=options: fused(inputs, o), inputs, cotangent)
        if name == loop:
            torch.testing.assert_close(fused(inputs, options), LOOPS[loop](inputs))
    samples = interleave({n: Calls(call, seconds) for n, call in calls.items()}, rounds)
    times = {name: statistics.median(values) for name, values in samples.items()}
    pairs = zip(samples[f"loop {loop}"], samples.get(loop, []), strict=False)
    ratios = [slow / fast for slow, fast in pairs]
    return {
        "loop": loop,
        **dict(zip("TBIH", sizes, strict=True)),
        "resets": resets,
        "seconds": samples,
        "over_plain": {n: t / times["plain"] for n, t in times.items()},
        "times_faster_than_the_loop": statistics.median(ratios) if ratios else None,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=LOOPS, help="the cells of one loop")
    parser.add_argument("--shrink", type=int, default=1, help="divides T, B and H, for a trial")
    parser.add_argument("--out", type=Path, help="default: results/options-<machine>.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    machine = describe_machine()
    cells = []
    for loop, *shape, resets in CELLS:
        if given.only in (None, loop):
            T, B, INPUTS, H = (max(1, int(size) // given.shrink) for size in shape)
            cells.append(measure(loop, (T, B, INPUTS, H), resets, given.rounds, given.seconds))
            print(json.dumps({k: v for k, v in cells[-1].items() if k != "seconds"}), flush=True)
    found = {
        "machine": machine,
        "software": describe_software(),
        "threads": given.threads,
        "cells": cells,
    }
    out = given.out or RESULTS / f"options-{slug(machine)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
