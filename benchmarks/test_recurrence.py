"""The grid under pytest-benchmark: `pytest benchmarks/ --threads 2 --rivals all`.

Good for `--benchmark-compare` from commit to commit, and for a look at one case. The ratios that
the project quotes come from `fused-bptt bench`, which interleaves the rivals and gives each a
process of its own; here they follow one another in one process, where some cannot meet.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fused_bptt.bench.arm import check
from fused_bptt.bench.cells import FORWARD_BACKWARD, PRESETS, Cell
from fused_bptt.bench.data import cell_data
from fused_bptt.bench.rivals import RIVALS
from fused_bptt.bench.worker import reference_cell

FULL = PRESETS["full"]
CASES = [
    pytest.param(cell, mode, id=f"{cell.name}-{mode}")
    for cell in FULL.cells
    if reference_cell(cell) == cell
    for mode in (FORWARD_BACKWARD, *(("forward",) if cell in FULL.forward_too else ()))
]


@pytest.mark.parametrize(("cell", "mode"), CASES)
@pytest.mark.benchmark(disable_gc=True, min_rounds=3, max_time=0.3, warmup=False)
def test_recurrence(
    benchmark: BenchmarkFixture, cell: Cell, mode: str, rival_name: str, threads: int
) -> None:
    rival = RIVALS[rival_name]
    if (why := rival.missing() or rival.refuses(cell)) is not None:
        pytest.skip(f"{rival_name}: {why}")
    torch.set_num_threads(threads)
    data, reference = cell_data(cell)
    prepared = rival.prepare(data, threads)
    _, wrong = check(prepared, reference)
    assert wrong is None
    benchmark.group = f"{cell.name} {mode}"
    benchmark.extra_info.update(
        threads=threads, version=rival.version(), settings=rival.settings(threads), **vars(cell)
    )
    call = getattr(prepared, mode)
    call()
    benchmark(call)
