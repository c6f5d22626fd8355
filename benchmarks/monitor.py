"""What a GradientMonitor costs a training step: a line of JSON for each size.

    python -m benchmarks.monitor [--seconds 10] [--out benchmarks/results/monitor-MACHINE.json]

Each size is measured eagerly and under torch.compile; ``--out`` saves all of them.

The same training step with and without a monitor takes turns in blocks of some milliseconds, the
order drawn anew for each pair. ``between`` is what a step without a reading costs more, the median
over the pairs, and ``between_error`` that median's standard error. ``reading_seconds`` is what the
blocks with a reading take longer than the median block. The monitor's next reading is put
off by the time of the other step's turns, and ``readings`` is their part of the time of
training. ``cost`` is the sum of both. Blocks are timed by the processor's time of the process, so
that what else runs on the machine adds noise and no bias.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_bptt import RNN, GradientMonitor
from fused_bptt.bench.machine import describe_machine, describe_software
from fused_bptt.inspection import monitor as monitoring

SIZES = ((100, 1, 16, 16), (100, 32, 16, 16), (100, 32, 64, 64), (100, 32, 64, 256))
BLOCK_SECONDS = 0.004
#: What a reading does to the caches is over after so many steps.
LEAST_STEPS = 4


def training_step(
    INPUTS: int, H: int, monitored: bool, compiled: bool
) -> tuple[Callable[[Tensor], None], Any]:
    torch.manual_seed(0)
    rnn = RNN(INPUTS, H)
    monitor = GradientMonitor(rnn) if monitored else None
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-6)

    def loss(x: Tensor) -> Tensor:
        return rnn(x)[0].square().mean()

    used = torch.compile(loss, fullgraph=True) if compiled else loss

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        used(x).backward()
        optimizer.step()

    return step, monitor


def seconds(step: Callable[[Tensor], None], x: Tensor, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step(x)
    return time.process_time() - start


def measure(size: tuple[int, int, int, int], compiled: bool, limit: float) -> dict[str, Any]:
    T, B, INPUTS, H = size
    x = torch.randn(T, B, INPUTS)
    plain, _ = training_step(INPUTS, H, False, compiled)
    watched, monitor = training_step(INPUTS, H, True, compiled)
    for step in (plain, watched):
        seconds(step, x, 20)
    count = max(LEAST_STEPS, round(BLOCK_SECONDS * 20 / seconds(plain, x, 20)))

    alone, between, reading = [], [], []
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        taken = {}
        before = len(monitor.readings)
        for step in random.sample((plain, watched), 2):
            start = time.perf_counter()
            step(x)  # finds the caches as the other one left them
            taken[step] = seconds(step, x, count)
            if step is plain:
                monitor._clock[monitoring._DUE] += time.perf_counter() - start
        alone.append(taken[plain])
        if len(monitor.readings) == before:
            between.append(taken[watched] / taken[plain] - 1)
        else:
            reading.append(taken[watched])
    median = statistics.median(alone)
    ratio = statistics.median(between)
    spread = 1.4826 * statistics.median(abs(each - ratio) for each in between)
    excess = statistics.mean(reading) - median * (1 + ratio) if reading else 0.0
    part = excess * len(reading) / (median * len(alone))
    return {
        "T": T,
        "B": B,
        "H": H,
        "compiled": compiled,
        "step_seconds": median / count,
        "cost": ratio + part,
        "between": ratio,
        "between_error": 1.2533 * spread / len(between) ** 0.5,
        "readings": part,
        "reading_seconds": excess,
        "blocks_with_a_reading": len(reading),
        "blocks": len(alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each size (default: 10)")
    parser.add_argument("--out", type=Path, help="a file of JSON for docs/tutorial.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # A graph that was compiled for an operator of an older schema would be used again.
    torch.compiler.config.force_disable_caches = True
    cells = []
    for compiled in (False, True):
        for size in SIZES:
            cells.append(measure(size, compiled, given.seconds))
            print(json.dumps(cells[-1]), flush=True)
    if given.out is not None:
        results = {
            "machine": describe_machine(),
            "software": describe_software(),
            "cells": cells,
        }
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
