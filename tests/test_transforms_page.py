"""docs/transforms.md: its code runs, and its table is what was tried."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "transforms.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporters' own making
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_code_runs() -> None:
    """Its assertions hold, from top to bottom."""
    pytest.importorskip("onnxscript")
    torch._dynamo.reset()
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    assert len(blocks) == 14


def test_headings_are_where_the_contents_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    linked = re.findall(r"^\d+\. \[(.*)\]\(#(.*)\)$", text, re.MULTILINE)
    headings = re.findall(r"^## (\d+\. .*)$", text, re.MULTILINE)
    for (title, anchor), heading in zip(linked, headings, strict=True):
        assert heading.partition(" ")[2] == title
        assert anchor == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import transforms

    return transforms


def test_table_is_what_was_tried(script: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert script.render(text) == text
    results = json.loads((ROOT / script.RESULTS).read_text())
    assert list(results["cells"]) == list(script.TRIED)
    assert {row["fused_bptt.RNN"]["verdict"] for row in results["cells"].values()} == {"yes"}


@pytest.mark.parametrize("name", ["second order", "`jvp`", "`vmap` over weights"])
def test_a_wrong_result_is_told(script: Any, name: str) -> None:
    """The verdict is by value: what runs and gives other numbers is no "yes"."""
    attempt = script.TRIED[name]
    args = script.inputs("cpu", torch.float64)
    truth = [value.detach() for value in attempt(script.loop, args)]

    def relu(x: Any, hx: Any, *weights: Any) -> Any:
        import fused_bptt

        return fused_bptt.rnn(x, hx, weights, nonlinearity="relu")

    found = {
        rnn: script.verdict(lambda rnn=rnn: attempt(rnn, args), truth, 1e-9)["verdict"]
        for rnn in (script.loop, relu)
    }
    assert list(found.values()) == ["yes", "wrong"]


def test_what_raises_and_what_is_missing(script: Any) -> None:
    def raises() -> Any:
        raise RuntimeError("\x1b[96mno\x1b[0m\nmore")

    def missing() -> Any:
        raise script.NotTriedError("no GPU")

    assert script.verdict(raises, [], 0) == {"verdict": "no", "reason": "RuntimeError: no"}
    assert script.verdict(missing, [], 0) == {"verdict": "not tried", "reason": "no GPU"}
