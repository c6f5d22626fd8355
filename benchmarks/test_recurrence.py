"""The grid under pytest-benchmark: `pytest benchmarks/ --threads 2 --rivals all`.

Good for `--benchmark-compare` from commit to commit. The ratios that the project quotes come from
`python -m benchmarks.measure`, which interleaves the rivals; here they follow one another.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cells import GRID, MODES, OVERHEAD, Cell
from benchmarks.data import cell_data
from benchmarks.rivals import RIVALS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", [*GRID, OVERHEAD], ids=lambda cell: cell.name)
@pytest.mark.benchmark(disable_gc=True, min_rounds=3, max_time=0.3, warmup=False)
def test_recurrence(
    benchmark: BenchmarkFixture, cell: Cell, mode: str, rival_name: str, threads: int
) -> None:
    rival = RIVALS[rival_name]
    if (why := rival.missing()) is not None:
        pytest.skip(f"{rival_name}: {why}")
    torch.set_num_threads(threads)
    data, reference = cell_data(cell)
    prepared = rival.prepare(data, threads)
    _, wrong = reference.check({**prepared.results(), "output": prepared.output()})
    assert wrong is None
    benchmark.group = f"{cell.name} {mode}"
    benchmark.extra_info.update(
        threads=threads, version=rival.version(), settings=rival.settings(threads), **vars(cell)
    )
    call = getattr(prepared, mode)
    call()
    benchmark(call)
