"""README.md shows what the committed results say, and the command that writes it notices drift."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench_results
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import floors, readme  # noqa: E402

SOURCE = "benchmarks/results/made-up.json"
TEXT = (
    "It is <!-- figure:faster-than-nn.RNN -->?<!-- /figure --> times faster.\n"
    "<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\nafter\n"
)


@pytest.fixture
def page(tmp_path):
    """A README beside made-up results."""
    results = tmp_path / SOURCE
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(bench_results.MADE_UP))
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    return path


def test_readme_shows_the_committed_results():
    command = [sys.executable, "-m", "benchmarks.readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_everything_is_written_from_the_results(page):
    readme.main([str(page.parent / SOURCE), "--readme", str(page)])
    text = page.read_text()
    assert text.startswith("It is <!-- figure:faster-than-nn.RNN -->4 to 123<!-- /figure --> times")
    assert text.endswith("\n<!-- benchmark:end -->\nafter\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| JAX jit(lax.scan) | 1 | 0 | 0 | 0.50 at 8x1024 | 0.50 | 0.50 at 8x1024 |",
        "| torch.nn.RNN | 0 | 0 | 2 | 4.00 at 1x16 | 22.2 | 123 at 8x1024 |",
    ]
    assert SOURCE in text
    readme.main(["--check", "--readme", str(page)])
    readme.main(["--readme", str(page)])
    assert page.read_text() == text


@pytest.mark.parametrize("edit", [("4.00", "5.00"), ("4 to 123", "4 to 124")])
def test_a_stale_text_is_refused(page, edit):
    readme.main([str(page.parent / SOURCE), "--readme", str(page)])
    edited = page.read_text().replace(*edit)
    page.write_text(edited)
    with pytest.raises(SystemExit, match=r"not what .*made-up\.json says"):
        readme.main(["--check", "--readme", str(page)])
    assert page.read_text() == edited


def test_a_stale_picture_is_refused(page):
    readme.main([str(page.parent / SOURCE), "--readme", str(page)])
    results = page.parent / SOURCE
    results.write_text(results.read_text() + "\n")  # the same numbers, but who knows
    with pytest.raises(SystemExit, match=r"benchmark\.png was not drawn from"):
        readme.main(["--check", "--readme", str(page)])


@pytest.mark.parametrize(
    "claim",
    [
        "It is 31 times faster.",
        "A call takes 54 µs.",
        "It takes 40 % less memory.",
        "0.6 GB are kept",
    ],
)
def test_a_figure_that_no_results_hold_is_refused(page, claim):
    page.write_text(page.read_text() + claim)
    with pytest.raises(SystemExit, match="a figure that no file of results holds"):
        readme.main([str(page.parent / SOURCE), "--readme", str(page)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", "are not there"),
        (TEXT, "names no file of results"),
        (TEXT.replace("faster-than-nn.RNN", "unknown"), "names no file of results"),
    ],
)
def test_an_unreadable_text_is_refused(page, text, message):
    page.write_text(text)
    with pytest.raises(SystemExit, match=message):
        readme.main(["--check", "--readme", str(page)])


def test_floors_name_what_falls_short(page, capsys):
    assert floors.main([str(page.parent / SOURCE)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "1 thread, 1x16: 4.00 times faster than nn.RNN, 30 is promised" in said
    assert "1 thread, 8x1024: 0.50 times faster than jax, 2 is promised" in said
    assert "1 thread, 8x1024: 50% of the limit, 77% is promised" in said
    assert "memory: 3.00 of what a step needs, 1.3 is promised" in said
    assert len(said) == 4
