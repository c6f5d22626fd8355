"""docs/steps.md: its code runs and prints what the page says; its figures are the results'."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import steps

PAGE = Path(__file__).parents[1] / "docs" / "steps.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_code_prints_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    out, expected = io.StringIO(), "".join(b[2] for b in blocks if b[1] == "text")
    for block in blocks:
        if block[1] == "python":
            line = text[: block.start()].count("\n") + 1
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * line + block[2], str(PAGE), "exec"), names)
    assert out.getvalue() == expected
    assert len(blocks) == 12


def test_figures_are_the_results() -> None:
    steps.main(["--check"])


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (" ms | ", "1 ms | ", "is not what"),
        ("## One step", "It is 7 times faster.\n\n## One step", "no file of results holds"),
        ("figure:long", "figure:short", "expected one of"),
        (steps.END, "", "markers"),
    ],
)
def test_other_figures_are_refused(tmp_path: Path, old: str, new: str, error: str) -> None:
    page = tmp_path / "steps.md"
    page.write_text(PAGE.read_text().replace(old, new, 1))
    with pytest.raises(SystemExit, match=error):
        steps.main(["--check", "--page", str(page)])
