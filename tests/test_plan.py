"""The plan of the CUDA engine: a pure function, tested on the limits of devices not at hand."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_emulation as emulation
import torch
from helpers import run_python
from hypothesis import given
from hypothesis import strategies as st
from test_cuda import OF_EVERY_PLAN, PLANS

from fused_bptt import _ops

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import predict  # noqa: E402

DEVICES = _ops.named_limits()
MATHS = {"fp64": 8, "fp32": 4, "tf32x3": 4, "tf32": 4, "bf16": 2, "fp16": 2}
STEPS = ("plain", "leaky", "clipped", "norm-clipped")
TENSOR_CORES = {"tf32x3", "tf32", "bf16", "fp16"}
# From the architecture papers: SMs, KiB of shared memory of a CTA, clusters or not.
KNOWN = {
    "h200": (132, 227, True),
    "h100": (132, 227, True),
    "a100": (108, 163, False),
    "rtx4090": (128, 99, False),
    "rtx3090": (82, 99, False),
}

Row = dict[str, Any]


def explain(B: int, G: int, H: int, products: str, device: str, step: str = "plain") -> list[Row]:
    """The limits first, then the chosen plan if there is one, then all that were weighed."""
    rows = []
    for line in _ops.explain_plan(B, G, H, products, device, step).splitlines():
        head, _, why = line.partition(" why=")
        verdict, *words = head.split()
        row: Row = {"verdict": verdict, "why": why}
        for word in words:
            name, value = word.split("=")
            try:
                row[name] = float(value) if "." in value or "e" in value else int(value)
            except ValueError:
                row[name] = value
        rows.append(row)
    return rows


def chosen(B: int, G: int, H: int, products: str, device: str) -> Row:
    rows = explain(B, G, H, products, device)
    assert rows[1]["verdict"] == "chosen", f"no plan for B={B} G={G} H={H}: {rows}"
    return rows[1]


def assert_fits(row: Row, B: int, G: int, H: int, limits: Row) -> None:
    """A plan covers the problem, and the device has what it takes."""
    B, G, H = max(B, 1), max(G, 1), max(H, 1)
    tile = 16 if row["math"] in TENSOR_CORES else 32
    size = MATHS[row["math"]]
    warps = row["threads"] // 32
    # All units, and no CTA without one; all rows, and no team without one.
    assert row["ctas"] * row["units"] >= H > (row["ctas"] - 1) * row["units"]
    tiles = math.ceil(B / row["batch_tile"])
    assert row["teams"] == G * tiles
    assert row["teams"] * row["ctas"] < 2**31
    assert 1 <= row["batch_tile"] <= B
    # Warps cover the units of a CTA.
    assert row["threads"] % 32 == 0
    assert 1 <= warps <= 8
    assert warps % row["k_splits"] == 0
    assert row["units"] == warps // row["k_splits"] * row["row_tiles"] * tile
    # Registers of a thread: pieces of W, 4 each, leave room for sums and addresses.
    assert row["fragments"] * 4 <= 128
    if row["exchange"] == "launches":  # instead of W, the sums of the whole tile
        assert (row["fragments"], row["residence"]) == (0, "global")
        assert row["batch_tile"] <= (64 if row["math"] in TENSOR_CORES else 16)
        assert row["row_tiles"] in (2, 4)
    depth = (32 if row["math"] in TENSOR_CORES else 16) // size * row["k_splits"]
    of_k, held = math.ceil(H / depth), row["fragments"] // row["row_tiles"]
    rest = max(of_k - held, 0) * row["row_tiles"] * row["threads"] * 16
    assert (row["residence"] == "registers") == (rest == 0)
    # Shared memory: the carry, the sums, and W's rest where it is kept there.
    assert row["shared_bytes"] <= limits["shared_of_block"]
    buffers = 2 if row["exchange"] == "cluster" else 1
    needed = buffers * row["batch_tile"] * row["carry_columns"] * size
    needed += row["k_splits"] * row["batch_tile"] * row["units"] * (8 if size == 8 else 4)
    needed += rest if row["residence"] == "shared" else 0
    assert row["shared_bytes"] >= needed
    # Whoever waits for another must know that it is there.
    if row["exchange"] != "launches":
        assert (row["exchange"] == "cta") == (row["ctas"] == 1)
    assert row["resident"] >= 1
    if row["exchange"] == "cluster":
        assert limits["capability"] >= 90
        assert row["ctas"] <= 16
    if row["exchange"] == "grid":
        assert row["ctas"] <= limits["sms"]
    # The carry is in shared memory whole, or, where it comes from global memory, in equal parts.
    if row["carry_columns"] < H:
        assert row["exchange"] in ("grid", "launches")
        assert row["carry_columns"] % (4 * depth) == 0
    else:
        assert row["carry_columns"] == math.ceil(H / depth) * depth
    assert row["step_us"] > 0


@pytest.mark.parametrize("device", DEVICES)
def test_tables(device: str) -> None:
    sms, shared, clusters = KNOWN[device]
    limits, *rows = explain(16, 1, 512, "bfloat16", device)
    assert (limits["sms"], limits["shared_of_block"]) == (sms, shared * 1024)
    assert (
        any(row["exchange"] == "cluster" and row["verdict"] == "priced" for row in rows) == clusters
    )


SHAPES = [(B, H) for B in (1, 16, 64, 256) for H in (64, 128, 256, 320, 512, 1024, 2048)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("products", [*MATHS, "float32", "float32 tf32"])
def test_the_grid_of_the_benchmark(products: str, device: str) -> None:
    for B, H in SHAPES:
        for G in (1, 2):
            limits, best, *weighed = explain(B, G, H, products, device)
            assert best["verdict"] == "chosen"
            assert_fits(best, B, G, H, limits)
            for row in weighed:
                if row["verdict"] == "priced":
                    assert_fits(row, B, G, H, limits)
                else:
                    assert row["why"], row
            prices = [row["step_us"] for row in weighed if row["verdict"] == "priced"]
            assert best["step_us"] == min(prices)


# Plans that a change of the model should not change unnoticed.
EXPECTED = [
    # Small: one CTA holds W in registers, whatever the device.
    ("bfloat16", 1, 64, "h200", ("cta", "registers")),
    ("bfloat16", 256, 128, "h100", ("cta", "registers")),
    ("float32", 16, 64, "a100", ("cta", "registers")),
    ("float64", 1, 64, "a100", ("cta", "registers")),
    # W beyond one CTA's registers: a cluster where there are clusters, else the whole grid.
    ("bfloat16", 16, 512, "h200", ("cluster", "registers")),
    ("bfloat16", 16, 512, "a100", ("grid", "registers")),
    ("float32 tf32", 1, 512, "h100", ("cluster", "registers")),
    # Beyond a cluster's registers.
    ("bfloat16", 1, 2048, "h200", ("grid", "registers")),
    # Beyond registers and shared memory of the whole device: streamed.
    ("float64", 1, 4096, "a100", ("grid", "global")),
    # Where many rows meet a W that is streamed, or H is beyond the grid: a launch for each step.
    ("float32", 16, 4096, "rtx3090", ("launches", "global")),
    ("float64", 64, 2048, "h200", ("launches", "global")),
    ("bfloat16", 256, 4096, "h200", ("launches", "global")),
    ("bfloat16", 1, 100_000, "h200", ("launches", "global")),
]


@pytest.mark.parametrize(("products", "B", "H", "device", "expected"), EXPECTED)
def test_chosen(products: str, B: int, H: int, device: str, expected: tuple[str, str]) -> None:
    row = chosen(B, 1, H, products, device)
    assert (row["exchange"], row["residence"]) == expected


@pytest.mark.parametrize(("products", "B"), predict.LIMITS)
def test_predictions_are_near_the_limit(products: str, B: int) -> None:
    """By the same formula, less what a kernel's tiles cost; so never far below it either."""
    for H, limit in zip(predict.H_SIZES, predict.LIMITS[products, B], strict=True):
        predicted = chosen(B, 1, H, products, "h200")["step_us"]
        assert 0.6 * limit <= predicted <= 2 * limit, f"H={H}: {predicted} against {limit}"


@pytest.mark.parametrize(
    ("name", "table"), [("predicted", predict.table), ("predicted leaky", predict.leaky_table)]
)
def test_the_tables_of_the_document_are_this_models(name: str, table: Callable[[], str]) -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    assert text.split(begin)[1].split(end)[0] == table(), "python -m benchmarks.gpu.predict"


@given(
    B=st.one_of(st.integers(0, 300), st.integers(0, 2**31 - 1)),
    G=st.integers(0, 9),
    H=st.one_of(st.integers(0, 700), st.integers(0, 20_000)),
    products=st.sampled_from(sorted(MATHS)),
    device=st.sampled_from(DEVICES),
    step=st.sampled_from(STEPS),
)
def test_every_shape_has_a_plan(
    B: int, G: int, H: int, products: str, device: str, step: str
) -> None:
    limits, best, *_ = explain(B, G, H, products, device, step)
    assert best["verdict"] == "chosen"
    assert_fits(best, B, G, H, limits)


def test_more_units_than_the_device_covers() -> None:
    """Nothing is launched that could wait for a CTA that never comes: no CTA of a launch waits."""
    rows = explain(1, 1, 10**6, "bf16", "h200")
    priced = [row["exchange"] for row in rows if row["verdict"] in ("chosen", "priced")]
    assert priced == ["launches", "launches"]
    assert any(row["why"] == "132 SMs cover 67584 units, H = 1000000" for row in rows[1:])


def test_more_ctas_than_can_be_launched() -> None:
    rows = explain(2**31 - 1, 1, 10**6, "bf16", "h200")
    assert not [row for row in rows if row["verdict"] in ("chosen", "priced")]
    assert any(row["why"].startswith("a grid has at most 2147483647 CTAs, ") for row in rows)


@pytest.mark.parametrize("products", MATHS)
def test_w_is_read_once_for_many_rows(products: str) -> None:
    """Beyond the grid, where memory binds a single row."""
    rows, H = 64 if products in TENSOR_CORES else 16, 100_000
    one, many = (chosen(B, 1, H, products, "h200") for B in (1, rows))
    for row in (one, many):
        assert row["exchange"] == "launches"
        # No less than W takes from memory, at 4.8 TB/s.
        assert row["step_us"] > H * H * MATHS[products] / 4.8e6
    # The other kernels read W for 16 rows, or fewer: four times, or more.
    assert many["step_us"] < 3 * one["step_us"]


def test_reasons() -> None:
    why = {
        (row["exchange"], row["residence"]): row["why"]
        for row in explain(1, 1, 2048, "bf16", "a100")
        if row["verdict"] == "refused"
    }
    assert why["cta", "registers"] == "one CTA covers 512 units, H = 2048"
    assert why["cluster", "shared"] == "clusters need sm_90, this is sm_80"
    why = {
        (row["exchange"], row["residence"]): row["why"]
        for row in explain(64, 1, 512, "bf16", "h100")
        if row["verdict"] == "refused"
    }
    assert "of the 32 fragments along k" in why["cta", "registers"]
    assert why["cta", "shared"].startswith("shared memory of a CTA is 227 KiB, ")


@pytest.mark.parametrize("step", ["plain", "leaky"])
@pytest.mark.parametrize("products", ["fp64", "fp32", "bf16", "fp16"])
def test_on_a_gpu_every_plan_has_a_size(products: str, step: str) -> None:
    """What tests/test_cuda.py skips for want of a plan at one size is tested at another."""
    planned = {
        (row["exchange"], row["residence"])
        for _, B, G, H, *_ in OF_EVERY_PLAN
        for row in explain(B, G, H, products, "h200", step)[2:]
        if row["verdict"] == "priced"
    }
    exchanges = {exchange for exchange, _ in planned}
    assert exchanges == {"cta", "cluster", "grid", "launches"}
    if step == "plain":  # with a leak a plan is asked for by its exchange alone
        assert planned == {(*plan.split(","), "global")[:2] for plan in PLANS}


@pytest.mark.parametrize("step", ["clipped", "norm-clipped"])
@pytest.mark.parametrize("products", MATHS)
def test_clipped_steps(products: str, step: str) -> None:
    """A launch for each, or two, with room for the sums of a norm; the rest is refused."""
    for B, H in SHAPES:
        for G in (1, 2):
            limits, _, *weighed = explain(B, G, H, products, "h200", step)
            plain = explain(B, G, H, products, "h200")[2:]
            for row in weighed:
                if row["exchange"] != "launches":
                    assert row["why"] == f"of a {step} step only a launch for each is compiled"
                    continue
                assert_fits(row, B, G, H, limits)
                if step == "clipped":
                    assert row in plain
                    continue
                (beside,) = [other for other in plain if other["exchange"] == "launches"]
                assert row["step_us"] > beside["step_us"]
                assert float(row["step_us"]) > 2 * 2  # two launches of 2 us
                rows = row["teams"] * row["batch_tile"]
                needed = rows * row["ctas"] * row["units"] * (8 if products == "fp64" else 4)
                needed += 2 * rows * H * MATHS[products] + G * H * H * MATHS[products]
                assert row["workspace_bytes"] >= needed


@pytest.mark.parametrize("products", MATHS)
def test_leaky_steps(products: str) -> None:
    """In every exchange, with room for what units keep, and dearer than plain ones."""
    # Where nothing was ever cheaper with more row tiles, they are not compiled.
    most_row_tiles = {"fp64": 1, "fp32": 1, "tf32x3": 0}.get(products, 2)
    for B, H in SHAPES:
        for G in (1, 2):
            limits, best, *weighed = explain(B, G, H, products, "h200", "leaky")
            priced = [row for row in weighed if row["verdict"] == "priced"]
            assert best["step_us"] == min(row["step_us"] for row in priced)
            cheapest = {
                (row["exchange"], row["residence"]): row["step_us"]
                for row in explain(B, G, H, products, "h200")[2:]
                if row["verdict"] == "priced"
            }
            for row in (best, *priced):
                assert_fits(row, B, G, H, limits)
                assert row["step_us"] > cheapest[row["exchange"], row["residence"]]
                assert row["exchange"] == "launches" or row["row_tiles"] <= most_row_tiles
                rows = row["teams"] * row["batch_tile"]
                needed = rows * row["ctas"] * row["units"] * (8 if products == "fp64" else 4)
                if row["exchange"] in ("grid", "launches"):
                    needed += 2 * rows * H * MATHS[products]
                needed += G * H * H * MATHS[products]
                assert row["workspace_bytes"] >= needed
            if most_row_tiles and H <= 128:
                assert best["exchange"] == "cta"
                assert best["step_us"] < 0.3 * cheapest["launches", "global"]


@pytest.mark.parametrize(
    ("products", "device", "message"),
    [
        ("bf16", "v100", "device_limits: expected one of h200, h100, a100, rtx4090, rtx3090, got"),
        ("int8", "h200", "products: expected float64"),
    ],
)
def test_unknown_names(products: str, device: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _ops.explain_plan(1, 1, 1, products, device)


def test_float32_products_follow_torchs_switch() -> None:
    """The one that nn.RNN on cuDNN follows; and only float32 on CUDA has a choice."""
    on_cuda = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    before = torch.backends.cudnn.rnn.fp32_precision
    assert _ops.float32_products(on_cuda) == _ops.TF32, "PyTorch's default"
    try:
        torch.backends.cudnn.allow_tf32 = False
        assert _ops.float32_products(on_cuda) == _ops.STRICT
        torch.backends.cudnn.allow_tf32 = True
        assert _ops.float32_products(on_cuda) == _ops.TF32
        assert _ops.float32_products(SimpleNamespace(is_cuda=True, dtype=torch.float64)) == 0
        assert _ops.float32_products(torch.zeros(1)) == 0
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        assert _ops.float32_products(on_cuda) == _ops.STRICT
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_promised_gpu_that_is_missing_is_a_failure() -> None:
    test = Path(__file__).with_name("test_cuda.py")
    arguments = ["-p", "no:cacheprovider", f"{test}::test_an_unknown_plan"]
    code = f"import sys, pytest; sys.exit(pytest.main({arguments!r}))"
    assert run_python(code, env={"FUSED_BPTT_REQUIRE_CUDA": ""}).returncode == 0
    done = run_python(code, env={"FUSED_BPTT_REQUIRE_CUDA": "1"})
    assert done.returncode == 1, done.stdout
    assert "FUSED_BPTT_REQUIRE_CUDA=1: expected a CUDA device to test on, but" in done.stdout


@pytest.mark.parametrize(
    ("products", "expected"),
    [
        ("float64", {"fp64"}),
        ("float32", {"fp32"}),
        ("float32 tf32", {"fp32", "tf32"}),
        ("bfloat16", {"bf16"}),
        ("float16", {"fp16"}),
        ("tf32x3", {"tf32x3"}),
    ],
)
def test_products_of_a_type(products: str, expected: set[str]) -> None:
    """Strict float32 is never rounded to fewer bits."""
    assert {row["math"] for row in explain(64, 1, 512, products, "h200")[1:]} == expected


def test_limits_of_a_device_that_was_asked() -> None:
    """As cuda_limits() writes them: with few SMs and clusters of 2 alone."""
    clusters = [0, 3] + 14 * [0]
    text = "cuda:0 90 6 101376 102400 1000000 1.5 300 " + " ".join(map(str, clusters))
    limits, *rows = explain(4, 1, 512, "bf16", text)
    assert limits["name"] == "cuda:0"
    best = rows[0]
    assert_fits(best, 4, 1, 512, limits)
    assert {
        row["ctas"] for row in rows if row["verdict"] == "priced" and row["exchange"] == "cluster"
    } == {2}
    with pytest.raises(RuntimeError, match="device_limits: expected one of"):
        explain(4, 1, 512, "bf16", text.rsplit(" ", 1)[0])


def test_kernels_run_as_planned(tmp_path: Path) -> None:
    """The real loops on the host, cut as the plan says: waves, parts of the carry, residences."""
    sources = [str(ROOT / "csrc" / "cuda" / name) for name in ("plan.cpp", "limits.cpp")]
    done = emulation.run(emulation.build("planned", tmp_path, *sources))
    emulation.assert_clean(done, least_cases=30)
    kinds = [
        (exchange, residence)
        for exchange in ("cta", "grid")
        for residence in ("registers", "global")
    ]
    kinds += [
        ("launches", "global"),
        ("cta", "shared"),
        ("cluster", "registers"),
        ("cluster", "global"),
    ]
    for exchange, residence in kinds:
        assert re.search(rf"ok \w+ {exchange} of \d+, {residence}", done.stdout), (
            exchange,
            residence,
        )
    assert "in parts" in done.stdout
    for exchange in ("cta", "cluster", "grid", "launches"):
        assert re.search(rf"ok \w+ {exchange} of \d+, .*, with a leak", done.stdout), exchange
