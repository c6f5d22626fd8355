"""How long torch.compile takes for a short and a long sequence, to JSON.

    python -m benchmarks.compile_time [--rounds 3]

Of each length a fresh process compiles the module with Inductor, for a forward and a backward pass,
with its caches off. ``over_short`` is the median time at the longest length over that at the
shortest; the running of the first pass is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fused_bptt.bench.machine import describe_machine, describe_software, slug

RESULTS = Path(__file__).parent / "results"
LENGTHS = (10, 10_000)


def compile_seconds(T: int) -> float:
    """In this process, which has compiled nothing of the kind before."""
    import torch

    import fused_bptt

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rnn = fused_bptt.RNN(16, 32)
    warm = torch.compile(torch.nn.Linear(16, 32))  # loads the compiler
    warm(torch.randn(2, 16)).sum().backward()
    compiled = torch.compile(rnn, fullgraph=True, dynamic=False)
    x = torch.randn(T, 2, 16)

    def run() -> float:
        start = time.perf_counter()
        compiled(x)[0].square().mean().backward()
        return time.perf_counter() - start

    return run() - run()


def in_a_fresh_process(T: int) -> float:
    """:func:`compile_seconds`, with nothing from the caches."""
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-m", "benchmarks.compile_time", "--of", str(T)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--of", type=int, metavar="T", help="one length, in this process")
    parser.add_argument("--out", type=Path, help="default: results/compile-time-<machine>.json")
    given = parser.parse_args(arguments)
    if given.of is not None:
        print(compile_seconds(given.of))
        return
    samples: dict[int, list[float]] = {T: [] for T in LENGTHS}
    for index in range(given.rounds):
        for T in LENGTHS[:: -1 if index % 2 else 1]:
            samples[T].append(in_a_fresh_process(T))
            print(f"T={T}: {samples[T][-1]:.2f} s", flush=True)
    medians = {T: statistics.median(taken) for T, taken in samples.items()}
    machine = describe_machine()
    found = {
        "machine": machine,
        "software": describe_software(),
        "seconds": {str(T): taken for T, taken in samples.items()},
        "over_short": medians[LENGTHS[-1]] / medians[LENGTHS[0]],
    }
    print(f"{found['over_short']:.3f}")
    out = given.out or RESULTS / f"compile-time-{slug(machine)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
