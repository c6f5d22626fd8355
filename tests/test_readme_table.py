"""README.md shows what the committed results say, and the command that writes it notices drift."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = "benchmarks/results/made-up.json"
TEXT = "before\n<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\nafter\n"


def block(B, H, threads, ours, theirs):
    rates = {"multiply_add_gflops": 100.0, "sgemm_gflops": 90.0}
    return {
        "cell": {"B": B, "H": H, "T": 100, "I": min(H, 64)},
        "threads": threads,
        "affinity": [0],
        "mode": "forward_backward",
        "rivals": {
            "fused_bptt.RNN": {"error": 1e-7, "seconds": ours},
            "nn.RNN": {"error": 1e-7, "seconds": theirs},
            "jax": {"wrong": "grad x: error 1.0e+00 where 1.0e-06 is allowed"},
        },
        "roofline_seconds": 0.5e-3,
        "elsewhere": 0.0,
        "attempts": 1,
        "probes": {"before": rates, "after": rates},
    }


RESULTS = {
    "schema": 1,
    "created": "2026-01-01T00:00:00+00:00",
    "machine": {
        "cpu": "A CPU",
        "cores": 2,
        "caches": {"L1": "32K"},
        "flags": ["avx2"],
        "hypervisor": False,
    },
    "rivals": {
        "fused_bptt.RNN": {"version": "1.0", "settings": {"1": "eager"}},
        "nn.RNN": {"version": "2.0", "settings": {"1": "eager"}},
        "jax": {"version": "3.0", "settings": {"1": "jit"}},
    },
    # The ratios by round are 4, 6 and 2: their median is not the ratio of the medians.
    "blocks": [
        block(1, 16, 1, [1e-3, 1e-3, 4e-3], [4e-3, 6e-3, 8e-3]),
        block(8, 1024, 1, [1e-3] * 3, [123e-3] * 3),
    ],
    "memory": [
        {
            "rival": "fused_bptt.RNN",
            "threads": 1,
            "affinity": [0],
            "cell": {"B": 32, "H": 256, "T": 1000, "I": 64},
            "extra_bytes": 300,
            "needed_bytes": {"u_h_q": 90, "gradients": 10},
        }
    ],
}


@pytest.fixture
def readme(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import readme

    return readme


@pytest.fixture
def page(tmp_path):
    """A README beside made-up results."""
    results = tmp_path / SOURCE
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(RESULTS))
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    return path


def test_readme_shows_the_committed_results():
    command = [sys.executable, "-m", "benchmarks.readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_block_is_written_between_the_markers(readme, page):
    readme.main([str(page.parent / SOURCE), "--readme", str(page)])
    text = page.read_text()
    assert text.startswith("before\n<!-- benchmark:begin -->\n")
    assert text.endswith("\n<!-- benchmark:end -->\nafter\n")
    assert "old" not in text
    assert "| 1 | 4.00 / - |  |" in text
    assert "| 8 |  | 123 / - |" in text
    assert SOURCE in text
    readme.main(["--check", "--readme", str(page)])
    readme.main(["--readme", str(page)])
    assert page.read_text() == text


def test_stale_block_is_refused(readme, page):
    readme.main([str(page.parent / SOURCE), "--readme", str(page)])
    edited = page.read_text().replace("4.00", "5.00")
    page.write_text(edited)
    with pytest.raises(SystemExit, match=r"not what .*made-up\.json says"):
        readme.main(["--check", "--readme", str(page)])
    assert page.read_text() == edited


@pytest.mark.parametrize(
    ("text", "message"),
    [("no markers", "are not there"), (TEXT, "names no file of results")],
)
def test_unreadable_block_is_refused(readme, page, text, message):
    page.write_text(text)
    with pytest.raises(SystemExit, match=message):
        readme.main(["--check", "--readme", str(page)])


def test_full_report_marks_what_falls_short(readme):
    from benchmarks import tables

    report = tables.full_report(RESULTS)
    assert "**4.00** ✗ 30 (3.00-5.00)" in report
    assert "wrong" in report
    assert "**3.00** ✗ 1.3" in report
