"""What a GradientMonitor costs a training step: a line of JSON for each size.

    python -m benchmarks.monitor

The same training step with and without a monitor takes turns in blocks of about a second; the cost
is the median of the blocks' ratios. Time is that of the process, so that what else runs on the
machine adds noise and no bias. The monitor rations its readings by the same clock, which stands
still while the other step has its turn.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_bptt import RNN, GradientMonitor
from fused_bptt.inspection import monitor as monitoring

SIZES = ((100, 1, 16, 16), (100, 32, 16, 16), (100, 32, 64, 64), (100, 32, 64, 256))
BLOCKS, BLOCK_SECONDS = 7, 1.0


def training_step(INPUTS: int, H: int, monitored: bool) -> tuple[Callable[[Tensor], None], Any]:
    torch.manual_seed(0)
    rnn = RNN(INPUTS, H)
    monitor = GradientMonitor(rnn) if monitored else None
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-6)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        rnn(x)[0].square().mean().backward()
        optimizer.step()

    return step, monitor


def seconds(step: Callable[[Tensor], None], x: Tensor, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step(x)
    return time.process_time() - start


def measure(T: int, B: int, INPUTS: int, H: int) -> dict[str, Any]:
    x = torch.randn(T, B, INPUTS)
    plain, _ = training_step(INPUTS, H, monitored=False)
    watched, monitor = training_step(INPUTS, H, monitored=True)
    elsewhere = 0.0
    monitoring.perf_counter = lambda: time.process_time() - elsewhere  # type: ignore[assignment]
    seconds(watched, x, 5)
    count = max(4, round(BLOCK_SECONDS * 5 / seconds(plain, x, 5)))
    ratios, steps = [], []
    first = len(monitor.readings)
    for _ in range(BLOCKS):
        alone = seconds(plain, x, count)
        elsewhere += alone
        ratios.append(seconds(watched, x, count) / alone)
        steps.append(alone / count)
    return {
        "T": T,
        "B": B,
        "H": H,
        "step_seconds": statistics.median(steps),
        "cost": statistics.median(ratios) - 1,
        "costs": [ratio - 1 for ratio in ratios],
        "readings": len(monitor.readings) - first,
        "steps": BLOCKS * count,
    }


def main() -> None:
    torch.set_num_threads(1)
    for size in SIZES:
        print(json.dumps(measure(*size)), flush=True)


if __name__ == "__main__":
    main()
