"""benchmarks/per_sample.py and compile_time.py run, and docs/transforms.md says what they found."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import compile_time, per_sample

ROOT = Path(__file__).parents[1]


def test_a_small_run(tmp_path, capsys):
    out = tmp_path / "found.json"
    per_sample.main(["--shrink", "16", "--rounds", "1", "--seconds", "0", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] > 0
    assert len(found["cells"]) == len(per_sample.CELLS) == len(capsys.readouterr().out.splitlines())
    for cell in found["cells"]:
        assert set(cell["seconds"]) == {"each", "sum", "autograd", "writing"}
        assert cell["over_autograd"] > 0


def test_each_sums_to_the_sum():
    """What is timed is the same thing."""
    calls = per_sample.calls(5, 3, 2, 4)
    each, of_sum, autograd, written = (call() for call in calls.values())
    for (name, value), whole, space in zip(each.items(), autograd, written, strict=True):
        assert value.shape == space.shape
        torch.testing.assert_close(value.sum(0), of_sum[name])
        torch.testing.assert_close(value.sum(0), whole)


def test_page_says_what_was_found():
    text = (ROOT / "docs" / "transforms.md").read_text()
    found = json.loads((per_sample.RESULTS / "per-sample-amd-epyc-2-cores.json").read_text())
    ratios = [cell["over_sum"] for cell in found["cells"]]
    assert len(ratios) == len(per_sample.CELLS)
    assert f"takes {min(ratios):.1f} to {max(ratios):.1f} times as long" in text.replace("\n", " ")
    assert max(ratios) <= 2
    assert not found["environment"], "what users get who set nothing"
    found = json.loads((compile_time.RESULTS / "compile-time-amd-epyc-2-cores.json").read_text())
    assert f"benchmarks.compile_time`: {found['over_short']:.2f} times" in text
    assert abs(found["over_short"] - 1) <= 0.1


def test_compile_time_runs():
    assert compile_time.in_a_fresh_process(3) > 0
