"""Each option against the plain path and against the loop that users write, to JSON.

    python -m benchmarks.options [--rounds 5] [--threads 1] [--only reset] [--cell 3]

Forward and backward, float32, interleaved; the ratio is paired by round. A run of some cells
replaces those in the file and leaves the others. nn4n and neuralrnn take part where installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import libraries, loops
from benchmarks.loops import LOOPS, Inputs, Prepared
from fused_bptt import RNN, LeakyRNN, functional
from fused_bptt.bench.machine import describe_machine, describe_software, slug
from fused_bptt.bench.probe import probe
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
    ("clip", 100, 4, 64, 256, 0.0),
    ("clip", 500, 64, 64, 128, 0.0),
)


def fused(inputs: Inputs, **options: Any) -> Prepared:
    """:func:`fused_bptt.rnn` of the inputs' weights."""
    weights, h_0 = list(inputs.weights.values()), inputs.h_0.unsqueeze(0)
    return lambda: functional.rnn(inputs.x, h_0, weights, **options)[0], inputs.leaves


def leaky(inputs: Inputs, result: int, **options: Any) -> Prepared:
    """A LeakyRNN with the inputs' weights; ``result`` 0: its states, 2: its rates."""
    weights = dict(inputs.weights)
    weights["bias"] = weights.pop("bias_ih") + weights.pop("bias_hh")
    H, INPUTS = weights["weight_ih"].shape
    initial = inputs.h_0.unsqueeze(0)
    rnn = LeakyRNN(INPUTS, H, leak=loops.ALPHA, **options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            parameter.copy_(weights[name.removesuffix("_l0")])
    leaves = [inputs.x, inputs.h_0, *rnn.parameters()]
    return lambda: rnn(inputs.x, initial, return_rates=True)[result], leaves


#: What is timed beside a loop; the one of the loop's name computes the same.
OPTIONS: dict[str, Callable[[Inputs], Prepared]] = {
    "plain": fused,
    "reset": lambda i: fused(i, reset=i.reset),
    "bptt_window": lambda i: fused(i, bptt_window=50),
    "checkpoint_every": lambda i: fused(i, checkpoint_every=128),
    "zoneout": lambda i: fused(i, zoneout=0.1, training=True),
    "recurrent_dropout": lambda i: fused(i, recurrent_dropout=0.1, training=True),
    "clip": lambda i: fused(i, clip_state_grad=("norm", loops.LIMIT)),
    "clip by value": lambda i: fused(i, clip_state_grad=("value", loops.LIMIT)),
    "leaky": lambda i: leaky(i, 0, form="rate"),
    # The loop adds its noise to v, LeakyRNN before the product with the leak.
    "voltage": lambda i: leaky(i, 2, form="voltage", noise_std=loops.SIGMA / loops.ALPHA),
}
#: What each of these costs beside the plain path; `reset` with no reset in it.
OF_PLAIN = ("reset", "bptt_window", "checkpoint_every", "zoneout", "recurrent_dropout")
OF_PLAIN += ("clip", "clip by value")


def product_flops(T: int, B: int, INPUTS: int, H: int) -> int:
    """Of forward and backward, every gradient: a product and the two of its derivatives."""
    return 3 * 2 * T * B * H * (H + INPUTS)


def measure(
    loop: str, sizes: tuple[int, int, int, int], resets: float, rounds: int, seconds: float
) -> dict[str, Any]:
    """Seconds a call by round: the loop, its option and the plain path, and libraries' loops."""
    inputs = Inputs.draw(*sizes, resets)
    T, B, _, H = sizes
    cotangent = torch.randn(T, B, H)
    chosen = {"plain", loop, *(OF_PLAIN if loop == "plain" else ())}
    contestants = {name: option(inputs) for name, option in OPTIONS.items() if name in chosen}
    contestants |= {f"loop {loop}": (lambda: LOOPS[loop](inputs), inputs.leaves)}
    versions = {}
    for library, (of_loop, prepare) in libraries.LIBRARIES.items():
        if of_loop == loop:
            try:
                contestants[library] = prepare(inputs)
                versions[library] = importlib.metadata.version(library)
            except ImportError as error:
                versions[library] = f"not timed: {error}"

    def trained(prepared: Prepared) -> Callable[[], Any]:
        call, leaves = prepared
        return lambda: torch.autograd.grad(call(), leaves, cotangent)

    if loop != "voltage":  # of the loop's noise and the option's only the size is the same
        torch.testing.assert_close(contestants[loop][0](), LOOPS[loop](inputs))
    turns = {name: Calls(trained(prepared), seconds) for name, prepared in contestants.items()}
    probes = [probe(torch.get_num_threads())]
    samples = interleave(turns, rounds)
    probes.append(probe(torch.get_num_threads()))
    times = {name: statistics.median(values) for name, values in samples.items()}
    rates = [p[kind] for p in probes for kind in ("multiply_add_gflops", "sgemm_gflops")]
    rate = 1e9 * max(rates) * torch.get_num_threads()
    pairs = zip(samples[f"loop {loop}"], samples[loop], strict=True)
    least = product_flops(*sizes) / rate
    return {
        "loop": loop,
        **dict(zip("TBIH", sizes, strict=True)),
        "resets": resets,
        "libraries": versions,
        "seconds": samples,
        "over_plain": {n: t / times["plain"] for n, t in times.items()},
        "times_faster_than_the_loop": statistics.median(slow / fast for slow, fast in pairs),
        # The products alone, at the best rate that the machine was seen to multiply at.
        "product_flops": product_flops(*sizes),
        "product_rate": rate,
        "share_of_product_rate": least / times[loop],
        "most_times_faster": times[f"loop {loop}"] / least,
    }


def step(rounds: int, seconds: float, shrink: int) -> dict[str, Any]:
    """One step of one row, without a gradient, beside ``nn.RNNCell``."""
    calls = {}
    for H in (64 // shrink, 256 // shrink):
        rnn, cell, x = RNN(H, H), torch.nn.RNNCell(H, H), torch.randn(1, H)
        state = torch.zeros(1, 1, H)
        calls[f"step {H}"] = Calls(lambda r=rnn, x=x, s=state: r.step(x, s), seconds)
        calls[f"nn.RNNCell {H}"] = Calls(lambda c=cell, x=x, s=state[0]: c(x, s), seconds)
    with torch.no_grad():
        return {"seconds": interleave(calls, rounds)}


#: Run by a process of its own, whose peak memory Linux tells (VmHWM).
_LONG = """
import json, re, sys, time, torch
from fused_bptt import RNN, checkpointed_loss
T, B, I, H, every, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
rnn, x, y = RNN(I, H), torch.randn(T, B, I), torch.randn(T, B, 1)
readout, before, start = torch.nn.Linear(H, 1), peak(), time.perf_counter()
loss = lambda output, steps: (readout(output) - y[steps]).square().sum()
checkpointed_loss(rnn, x, loss, every=every)[0].backward()
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak(), "before": before}))
"""


def long(rounds: int, seconds: float, shrink: int) -> dict[str, Any]:
    """A sequence whose output is never there as a whole: once, in a process of its own."""
    T, B, INPUTS, H, every = max(1, 1_000_000 // shrink**3), 8, 8, 256 // shrink, 1024
    sizes = (T, B, INPUTS, H, every)
    arguments = [str(size) for size in (*sizes, torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", _LONG, *arguments], capture_output=True, text=True, check=True
    )
    return {
        **dict(zip(("T", "B", "I", "H", "every"), sizes, strict=True)),
        **json.loads(done.stdout),
    }


#: What the page says that is no race against a loop.
OTHERS: dict[str, Callable[[int, float, int], dict[str, Any]]] = {"step": step, "long": long}


def merged(path: Path, machine: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The file's contents with these cells in the place of the same ones that it had.

    Raises:
        ValueError: the file is another machine's.
    """

    def key(cell: dict[str, Any]) -> tuple[int, str]:
        return cell["threads"], str(cell["cell"])

    kept = []
    if path.exists():
        found = json.loads(path.read_text())
        if slug(found["machine"]) != slug(machine):
            raise ValueError(f"{path}: expected results of {slug(machine)}, got another machine's")
        new = [key(cell) for cell in cells]
        kept = [cell for cell in found["cells"] if key(cell) not in new]
    return {"machine": machine, "cells": sorted(kept + cells, key=key)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    names = [*map(str, range(len(CELLS))), *OTHERS]
    parser.add_argument("--only", choices=LOOPS, help="the cells of one loop")
    parser.add_argument("--cell", choices=names, help="one cell, or what is no race")
    parser.add_argument("--shrink", type=int, default=1, help="divides T, B and H, for a trial")
    parser.add_argument("--out", type=Path, help="default: results/options-<machine>.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    machine = describe_machine()
    out = given.out or RESULTS / f"options-{slug(machine)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)

    def run(cell: int | str) -> dict[str, Any]:
        if isinstance(cell, str):
            found = OTHERS[cell](given.rounds, given.seconds, given.shrink)
        else:
            loop, *shape, resets = CELLS[cell]
            T, B, INPUTS, H = (max(1, int(size) // given.shrink) for size in shape)
            found = measure(loop, (T, B, INPUTS, H), resets, given.rounds, given.seconds)
        about = {"threads": torch.get_num_threads(), "software": describe_software()}
        return {"cell": cell, **about, **found}

    for cell in (*range(len(CELLS)), *OTHERS):
        loop = None if isinstance(cell, str) else CELLS[cell][0]
        if given.only in (None, loop) and given.cell in (None, str(cell)):
            found = run(cell)
            hidden = ("seconds", "software") if loop else ("software",)
            print(json.dumps({k: v for k, v in found.items() if k not in hidden}), flush=True)
            out.write_text(json.dumps(merged(out, machine, [found]), indent=1) + "\n")


if __name__ == "__main__":
    main()
