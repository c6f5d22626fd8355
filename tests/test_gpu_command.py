"""`make gpu`, as far as a machine without a GPU goes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import table  # noqa: E402
from benchmarks.gpu.cells import grid  # noqa: E402
from benchmarks.gpu.parts import compile_micro  # noqa: E402

PARTS = ("tests", "sanitizer", "micro", "timing")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_every_part_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = command("--out", str(tmp_path), "--parts", ",".join(PARTS))
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stderr
    for part in PARTS:
        (line,) = (text for text in done.stdout.splitlines() if text.startswith(f"{part}: No GPU"))
        assert "torch" in line
        found = json.loads((tmp_path / f"{part}.json").read_text())
        assert found["status"] == "no GPU"
        assert found["machine"]["torch"] == torch.__version__


def test_an_unknown_part_is_refused() -> None:
    done = command("--parts", "micro,tset")
    assert done.returncode == 2
    assert (
        "--parts: expected some of install, tests, sanitizer, micro, timing, got tset"
        in done.stderr
    )


def test_the_grid() -> None:
    cells = grid()
    assert len(cells) == 4 * 4 * 7 * 2 + 16
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.name for cell in grid("16x512x128")} == {
        f"{precision}-T128-B16-H512" for precision in ("fp32", "tf32", "bf16", "fp16")
    }
    lengths = next(cell for cell in cells if cell.packed).lengths()
    assert lengths[0] == 128
    assert lengths[-1] == 32
    assert (lengths.diff() <= 0).all()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
def test_micro_compiles(tmp_path: Path) -> None:
    built = compile_micro("nvcc", "sm_90a", tmp_path / "micro")
    done = subprocess.run(built, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def measured(ms: float, **more: Any) -> dict[str, Any]:
    times = {"ms": ms, "quartile_1": ms, "quartile_3": ms, "rounds": 15}
    return {
        "forward_backward eager": times,
        "forward_backward graph": times,
        "forward_backward peak_bytes": 1000,
        **more,
    }


def test_the_table() -> None:
    """Ratios are the rival's time over ours; what is wrong or was not measured says so."""
    base = {"T": 100, "layers": 1, "plan": "chosen math=bf16 step_us=0.5", "right": True}
    result = {
        "left_out": ["later"],
        "cells": [
            {**base, "name": "a", "rivals": {"fused_bptt.RNN": measured(1), "nn.RNN": measured(2)}},
            {**base, "name": "b", "rivals": {"fused_bptt.RNN": measured(1), "nn.RNN": measured(8)}},
            {**base, "name": "c", "rivals": {"fused_bptt.RNN": {"failed": "OutOfMemoryError"}}},
            {
                **base,
                "name": "d",
                "right": False,
                "errors": {"fused_bptt.RNN": 1.0},
                "allowed": 0.1,
                "rivals": {},
            },
        ],
    }
    found = table.lines(result)
    (a,) = (line for line in found if line.startswith("a "))
    assert a.split() == ["a", "10.00", "1.00", "2.00x", "2.00x", "1.00"]
    assert any(line.split()[:2] == ["c", "failed:"] for line in found)
    assert any(line.split()[:2] == ["d", "wrong:"] for line in found)
    assert "nn.RNN over ours, graph: geometric mean 4.00 of 2 cells, least 2.00 (a)" in found
    assert found[-1] == "not reached in time: 1 cells"
