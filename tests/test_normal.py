"""The noise and the masks of the kernels: Philox and Box and Muller's method, again in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_runs
from tolerance import assert_exact

from fused_bptt import _ops


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of counters uint32 [N, 4]."""
    c, k = counter.astype(np.uint64), list(key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[:, 0] * np.uint64(0xD2511F53), c[:, 2] * np.uint64(0xCD9E8D57)
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        k0, k1 = np.uint64(k[0]), np.uint64(k[1])
        c = np.stack([high1 ^ c[:, 1] ^ k0, p1 & low, high0 ^ c[:, 3] ^ k1, p0 & low], 1)
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def words_of(units: int, row: int, group: int, seed: int) -> np.ndarray:
    """The four words of the counter that each unit has."""
    n = np.arange(units)
    counter = np.stack([n // 64 * 16 + n % 16, n * 0 + row, n * 0, n * 0 + group], 1)
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32))


def written(rows: int, groups: int, units: int, seed: int) -> np.ndarray:
    n = np.arange(units)
    found = np.empty((rows, groups, units))
    for r in range(rows):
        for g in range(groups):
            words = words_of(units, r, g, seed) >> np.uint64(8)
            word = n % 64 // 16
            first, second = (words[n, word // 2 * 2 + i].astype(np.float64) for i in (0, 1))
            radius = np.sqrt(-2 * np.log((first + 0.5) / 2**24))
            angle = 2 * math.pi * second / 2**24
            found[r, g] = radius * np.where(word % 2 == 0, np.cos(angle), np.sin(angle))
    return found.reshape(rows, groups * units)


def test_the_known_answers_of_philox() -> None:
    """Of Random123's kat_vectors."""
    zero, ones = np.zeros((1, 4), np.uint32), np.full((1, 4), 0xFFFFFFFF, np.uint32)
    expected = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(zero, (0, 0))[0].tolist() == expected
    expected = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox(ones, (0xFFFFFFFF, 0xFFFFFFFF))[0].tolist() == expected


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("groups", "units"), [(1, 1), (1, 64), (2, 21), (1, 200)])
def test_the_numbers(groups: int, units: int, dtype: torch.dtype) -> None:
    for seed in (0, 123456789, 2**63 - 2):
        found = _ops.normal(torch.empty(3, 2, groups * units, dtype=dtype), groups, seed)
        expected = torch.from_numpy(written(6, groups, units, seed)).view(found.shape)
        assert found.dtype == dtype
        assert (found.double() - expected).abs().max() < 4e-6


@pytest.mark.isa
@pytest.mark.parametrize("probability", [1e-12, 0.1, 0.5, 1.0])
def test_the_flags(probability: float) -> None:
    groups, units, seed, n = 2, 77, 2**63 - 2, np.arange(77)
    like = torch.empty(3, 2, groups * units, dtype=torch.float16)
    found = _ops.flags(like, groups, probability, torch.tensor(seed))
    assert found.dtype == torch.bool
    found = found.view(6, groups, units)
    for r in range(6):
        for g in range(groups):
            word = words_of(units, r, g, seed)[n, n % 64 // 16]
            assert found[r, g].tolist() == (word < max(1, int(probability * 2**32))).tolist()


@pytest.mark.isa
def test_they_are_standard_normal() -> None:
    x = _ops.normal(torch.empty(2000, 1000), 1, 7).double().flatten()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96, 6: 10170}[power]  # the variance of x^power
        assert abs(x.pow(power).mean() - moment) < 5 * math.sqrt(spread / len(x))
    ordered = x.sort().values
    cdf = torch.special.ndtr(ordered)
    places = torch.arange(1, len(x) + 1) / len(x)
    assert (cdf - places).abs().max() < 2 / math.sqrt(len(x))  # Kolmogorov and Smirnov, p = 0.0007
    table = x.view(2000, 1000)
    for a, b in (
        (table[1:], table[:-1]),
        (table[:, 1:], table[:, :-1]),
        (table[:, 16:], table[:, :-16]),
        (table, _ops.normal(torch.empty(2000, 1000), 1, 8).double()),
        (table[:, :500], _ops.normal(torch.empty(2000, 1000), 2, 7)[:, 500:].double()),
    ):
        count = a.numel()
        assert abs((a * b).mean()) < 5 / math.sqrt(count)
        assert abs((a.square() * b.square()).mean() - 1) < 5 * math.sqrt(8 / count)


def test_neither_threads_nor_instruction_sets_change_them() -> None:
    code = (
        "import torch, zlib; from fused_bptt import _ops; torch.set_num_threads({});"
        "x = torch.empty(301, 77);"
        "found = _ops.normal(x, 1, 5), _ops.flags(x, 1, 0.3, torch.tensor(5));"
        "print([zlib.crc32(y.numpy().tobytes()) for y in found])"
    )
    expected = assert_runs(code.format(1))
    for isa in _ops.cpu_isas():
        assert assert_runs(code.format(3), env={"FUSED_BPTT_CPU": isa}) == expected


def test_wrong_operands_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"^like: expected .*got"):
        _ops.normal(torch.empty(3, dtype=torch.bfloat16), 1, 0)
    with pytest.raises(RuntimeError, match=r"^groups: expected a divisor of 4, got 3"):
        _ops.normal(torch.empty(2, 4), 3, 0)
    seed = torch.tensor(1)
    with pytest.raises(RuntimeError, match=r"^groups: expected a divisor of 4, got 3"):
        _ops.flags(torch.empty(2, 4), 3, 0.5, seed)
    with pytest.raises(RuntimeError, match=r"^probability: expected above 0, to 1, got 1.5"):
        _ops.flags(torch.empty(2, 4), 2, 1.5, seed)
    for wrong in (seed.float(), seed[None]):
        with pytest.raises(RuntimeError, match=r"^seed: expected one int64 on the CPU, got"):
            _ops.flags(torch.empty(2, 4), 2, 0.5, wrong)
    for drawn in (
        lambda like: _ops.normal(like, 2, 0),
        lambda like: _ops.flags(like, 2, 0.5, seed),
    ):
        with pytest.raises(RuntimeError, match=r"^expected at most 4 dimensions, got 5"):
            drawn(torch.empty(2, 1, 1, 3, 4))
    assert_exact({"": _ops.normal(torch.empty(0, 4), 1, 0)}, {"": torch.empty(0, 4)})
