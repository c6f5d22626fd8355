"""What the gradients of each sample cost, beside the one gradient of their sum, to JSON.

    python -m benchmarks.per_sample [--rounds 15] [--threads 1]

``vmap(grad)`` gives every sample its own gradients of the weights. ``over_sum`` is its time over
that of ``torch.func.grad`` of the summed loss and of writing what there is more of: B gradients of
the weights into new memory. Beside it stands the time over ``torch.autograd.grad`` of the sum
alone, which has none of the overhead of ``torch.func``. float32, interleaved, paired by round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fused_bptt import RNN
from fused_bptt.bench.machine import describe_machine, describe_software, slug
from fused_bptt.bench.timing import Calls, interleave

RESULTS = Path(__file__).parent / "results"

#: T, B, I, H.
CELLS = ((32, 20, 16, 64), (64, 32, 64, 128), (100, 64, 64, 256))


def calls(T: int, B: int, INPUTS: int, H: int) -> dict[str, Callable[[], Any]]:
    """Everything that is timed, of the same module and input."""
    torch.manual_seed(0)
    rnn = RNN(INPUTS, H)
    x = torch.randn(T, B, INPUTS)
    weights = {name: value.detach() for name, value in rnn.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(rnn, weights, (x,))[0].square().sum()

    of_each = vmap(grad(loss), in_dims=(None, 1))
    of_sum = grad(loss)
    shapes = [(B, *value.shape) for value in weights.values()]
    leaves = list(rnn.parameters())
    return {
        "each": lambda: of_each(weights, x),
        "sum": lambda: of_sum(weights, x),
        "autograd": lambda: torch.autograd.grad(rnn(x)[0].square().sum(), leaves),
        "writing": lambda: [torch.full(shape, 1.0) for shape in shapes],
    }


class Collected(Calls):
    """Turns with the garbage collector at work, as it is where these are used.

    torch.func leaves it a class a call, and memory with it. Where it ran between turns alone, a
    call took more than twice as long in some processes and not in others.
    """

    def take(self) -> float:
        gc.enable()
        try:
            return super().take()
        finally:
            gc.disable()


def measure(sizes: tuple[int, int, int, int], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a call, and what ``vmap(grad)`` is of the others, each paired by round."""
    timed = {name: Collected(call, seconds) for name, call in calls(*sizes).items()}
    samples = interleave(timed, rounds)
    each, of_sum, autograd, writing = (
        samples[name] for name in ("each", "sum", "autograd", "writing")
    )
    pairs = list(zip(each, of_sum, writing, strict=True))
    return {
        **dict(zip("TBIH", sizes, strict=True)),
        "seconds": {name: statistics.median(taken) for name, taken in samples.items()},
        "over_sum": statistics.median(a / (b + w) for a, b, w in pairs),
        "over_autograd": statistics.median(a / b for a, b in zip(each, autograd, strict=True)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.per_sample", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shrink", type=int, default=1, help="divides T, B and H, for a trial")
    parser.add_argument("--out", type=Path, help="default: results/per-sample-<machine>.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    machine = describe_machine()
    cells = []
    for T, B, INPUTS, H in CELLS:
        sizes = (T // given.shrink, B // given.shrink, INPUTS, H // given.shrink)
        cells.append(measure(sizes, given.rounds, given.seconds))
        print(json.dumps(cells[-1]), flush=True)
    found = {
        "machine": machine,
        "software": describe_software(),
        "threads": given.threads,
        # Whether the C library keeps the memory of the results decides a part of the time.
        "environment": {n: v for n, v in sorted(os.environ.items()) if n.startswith("MALLOC_")},
        "cells": cells,
    }
    out = given.out or RESULTS / f"per-sample-{slug(machine)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
