"""The benchmark's roofline against figures worked by hand."""

from __future__ import annotations

import pytest

from fused_bptt.bench.cells import Cell
from fused_bptt.bench.roofline import Rates, seconds_per_step

KIB = 2**10

# A core with 160 GF/s, a first-level cache that never limits, 92 GB/s from the second up to
# 512 KiB, 41 at 1 MiB, 22.8 beyond, and 20 GB/s of streams.
READ = (
    (16 * KIB, 400e9),
    (32 * KIB, 400e9),
    (64 * KIB, 92e9),
    (512 * KIB, 92e9),
    (1024 * KIB, 41e9),
    (2048 * KIB, 22.8e9),
)
STREAM = ((16 * KIB, 20e9),)


RATES = Rates(product=160e9, read=READ, stream=STREAM)


def limit(B, H, mode, cores=1, **more):
    """Microseconds a step; I = 1 keeps the inputs' share below 2 %."""
    return 1e6 * seconds_per_step(Cell(B, H, T=100, I=1, **more), RATES, cores, mode)


@pytest.mark.parametrize(
    ("B", "H", "forward", "backward"),
    [
        (1, 16, 0.066, 0.064 + 0.004),
        (1, 64, 0.13, 0.11 + 0.06),
        (8, 64, 0.66, 0.51 + 0.46),
        (1, 128, 0.81, 0.78 + 0.23),
        (8, 256, 7.4, 6.8 + 7.3),
        (1, 512, 26, 26 + 3.6),
        (128, 512, 446, 426 + 466),
        (8, 1024, 187, 185 + 117),
    ],
)
def test_one_core(B, H, forward, backward):
    assert limit(B, H, "forward") == pytest.approx(forward, rel=0.05)
    assert limit(B, H, "forward_backward") == pytest.approx(forward + backward, rel=0.05)


def test_two_cores_split_what_is_best_split():
    # One row: hidden units, whose halves of W fit a cache that the whole does not.
    assert limit(1, 512, "forward", cores=2) == pytest.approx(6.1, rel=0.05)
    assert limit(1, 1024, "forward", cores=2) == pytest.approx(93, rel=0.05)
    # Too little work for a barrier: one core.
    assert limit(1, 16, "forward", cores=2) == pytest.approx(0.066, rel=0.05)
    # Many rows: the batch, at half the time.
    one, two = (limit(128, 256, "forward_backward", cores) for cores in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.01)


def test_layers_and_dtypes():
    # Above the first layer the inputs are the H outputs below: 2BHH/P forward each.
    one, three = (limit(8, 64, "forward", layers=layers) for layers in (1, 3))
    assert three == pytest.approx(3 * one + 2 * 2 * 8 * 64 * (64 - 1) / 160e9 * 1e6)
    # A large product takes twice as long in float64; its tanh does not.
    single, double = (limit(128, 512, "forward", dtype=d) for d in ("float32", "float64"))
    tanh = 128 * 512 * 0.4e-9 * 1e6
    assert double - tanh == pytest.approx(2 * (single - tanh), rel=0.01)
    assert seconds_per_step(Cell(8, 64, dtype="bfloat16"), RATES, 1, "forward") is None
