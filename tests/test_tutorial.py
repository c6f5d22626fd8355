"""docs/tutorial.md: its code runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tutorial

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def settings() -> Any:
    """The tutorial sets threads and how tensors are printed."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_printoptions(profile="default")


def test_code_prints_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    printed = ""
    compared = 0
    text = TUTORIAL.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        kind, body = block.groups()
        if kind == "python":
            assert printed == "", f"what this prints is not on the page:\n{printed}"
            line = text[: block.start()].count("\n") + 1
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * line + body, str(TUTORIAL), "exec"), names)
            printed = out.getvalue()
        elif printed:
            assert printed == body
            printed = ""
            compared += 1
    assert printed == ""
    assert compared == 10


def test_headings_are_where_the_contents_say() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    linked = re.findall(r"^\d\. \[(.*)\]\(#(.*)\)$", text, re.MULTILINE)
    headings = re.findall(r"^## (\d\. .*)$", text, re.MULTILINE)
    for (title, anchor), heading in zip(linked, headings, strict=True):
        assert heading[3:] == title
        assert anchor == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_figures_are_the_results() -> None:
    tutorial.main(["--check"])


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (" % of a step of", "1 % of a step of", "is not what its results say"),
        ("figure:monitor-short", "figure:shortest", "expected one of"),
        ("by benchmarks/tutorial.py", "", "names no file"),
    ],
)
def test_other_figures_are_refused(tmp_path: Path, old: str, new: str, error: str) -> None:
    page = tmp_path / "tutorial.md"
    page.write_text(TUTORIAL.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SystemExit, match=error):
        tutorial.main(["--check", "--page", str(page)])
