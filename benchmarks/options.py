"""Each option against the plain path and against the loop that users write, to JSON.

    python -m benchmarks.options [--rounds 5] [--threads 1] [--only reset]

Forward and backward, float32, interleaved; the ratio is paired by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import loops
from benchmarks.loops import LOOPS, Inputs
from fused_bptt import LeakyRNN, functional
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


def fused(inputs: Inputs, **options: Any) -> Tensor:
    weights = list(inputs.weights.values())
    return functional.rnn(inputs.x, inputs.h_0.unsqueeze(0), weights, **options)[0]


def leaky(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    """States, the last state and rates of a LeakyRNN with the inputs' weights."""
    weights = dict(inputs.weights)
    weights["bias"] = weights.pop("bias_ih") + weights.pop("bias_hh")
    H, INPUTS = weights["weight_ih"].shape
    rnn = LeakyRNN(INPUTS, H, leak=loops.ALPHA, **options)
    arguments = (inputs.x, inputs.h_0)
    return torch.func.functional_call(rnn, weights, arguments, {"return_rates": True})


#: What is timed beside a loop; the one of the loop's name computes the same.
OPTIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "plain": fused,
    "reset": lambda i: fused(i, reset=i.reset),
    "bptt_window": lambda i: fused(i, bptt_window=50),
    "checkpoint_every": lambda i: fused(i, checkpoint_every=128),
    "leaky": lambda i: leaky(i, form="rate")[0],
    # The loop adds its noise to v, LeakyRNN before the product with the leak.
    "voltage": lambda i: leaky(i, form="voltage", noise_std=loops.SIGMA / loops.ALPHA)[2],
}


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
    for name, option in OPTIONS.items():
        calls[name] = trained(lambda run=option: run(inputs), inputs, cotangent)
    if loop != "voltage":  # of the loop's noise and the option's only the size is the same
        torch.testing.assert_close(OPTIONS[loop](inputs), LOOPS[loop](inputs))
    samples = interleave({n: Calls(call, seconds) for n, call in calls.items()}, rounds)
    times = {name: statistics.median(values) for name, values in samples.items()}
    pairs = zip(samples[f"loop {loop}"], samples[loop], strict=True)
    return {
        "loop": loop,
        **dict(zip("TBIH", sizes, strict=True)),
        "resets": resets,
        "seconds": samples,
        "over_plain": {n: t / times["plain"] for n, t in times.items()},
        "times_faster_than_the_loop": statistics.median(slow / fast for slow, fast in pairs),
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
