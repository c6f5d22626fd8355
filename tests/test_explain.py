"""`fused-bptt explain`: the numbers in the terminal and on the page, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_bptt import cli
from fused_bptt.inspection import lesson, words
from fused_bptt.inspection.page import page

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(["explain", *arguments])
    except SystemExit as leaving:
        code = leaving.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def told(T: int = 3, H: int = 2, seed: int | None = None, phi: str = "tanh") -> lesson.Lesson:
    x = torch.arange(1, T + 1, dtype=torch.float64)[:, None]
    return lesson.teach(lesson.network(H, phi, seed, {}), x)


# The lesson.


@pytest.mark.parametrize(("T", "H", "seed", "phi"), [(3, 2, None, "tanh"), (7, 5, 3, "relu")])
def test_three_ways_agree(T: int, H: int, seed: int | None, phi: str) -> None:
    found = told(T, H, seed, phi)
    assert list(found.gradients) == ["by hand", "fused_bptt.RNN", "torch.nn.RNN"]
    assert 0 <= found.furthest_apart < 1e-12
    assert found.gradients["by hand"]["dW_hh"].abs().max() > 0
    found.gradients["by hand"]["dW_hh"][0, 0] += 1
    assert found.furthest_apart == pytest.approx(1)


def test_weights_are_those_of_the_design_or_drawn_as_torch_draws_them() -> None:
    rnn = lesson.network(2, "tanh", None, {})
    assert rnn.weight_hh_l0.tolist() == [[0.4, -0.3], [0.6, 0.2]]
    assert rnn.bias_ih_l0.tolist() == [0, 0]
    before = torch.get_rng_state()
    drawn = lesson.network(3, "tanh", 7, {"bias_hh_l0": [1, 2, 3]})
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    expected = nn.RNN(1, 3, dtype=torch.float64)
    assert torch.equal(drawn.weight_hh_l0, expected.weight_hh_l0)
    assert drawn.bias_hh_l0.tolist() == [1, 2, 3]


# The terminal.


def test_the_worked_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of docs/design.md, section 5, and of the mistake."""
    code, out, err = explain(capsys)
    assert (code, err) == (0, "")
    flat = re.sub(r" +", " ", out)
    for line in (
        "2 2.0000 1.2441, -0.1622 0.8466, -0.1608 0.2833, 0.9741",
        "2 0.0000, 0.0000 0.6260, 0.1706 0.6260, 0.1706 0.1773, 0.1662",
        "sum 0.7522, 3.2674 0.1563, -0.0491 | 0.9105, -0.1911 0.3993, 1.1318",
        "dW_ih by hand 0.7522, 3.2674\n fused_bptt.RNN 0.7522, 3.2674\n torch.nn.RNN 0.7522,",
        "step 2 0.3546, 0.3324 0.3546, 0.3324",
        "step 1 0.1342, -0.0192 0.3435, 0.0180 ✗",
        "Steps 3 and 2 are right. From step 1 back, the product (1-h₃²)W_hh was multiplied",
        "q[t] = (1 - h[t]**2) * (g[t] + q[t+1] @ W_hh)",
    ):
        assert line in flat


def test_given_weights_and_ones_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """The case of the forum, from the command line."""
    code, out, _ = explain(
        capsys,
        *["--W-ih", "0.4891", "0.6721", "--W-hh", "0.1199", "0.3762", "-0.3212", "-0.0536"],
        *["--b-ih", "-0.4602", "-0.0612", "--b-hh", "0.1094", "-0.1501"],
        *["--yours", "0.5162", "0.5511"],
    )
    assert code == 0
    yours = out[out.index("YOUR dW_ih") :]
    assert "elementwise by (1-h₂²)W_hh" in yours
    assert "0.5162, 0.5511  ✗  0.5053, 0.5356" in yours


def test_sizes_and_seed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--T", "5", "--H", "6", "--seed", "4", "--nonlinearity", "relu"]
    code, out, _ = explain(capsys, *options)
    assert code == 0
    assert "T = 5 steps, H = 6, one input, relu" in out
    assert "[h_t > 0]" in out
    assert explain(capsys, *options)[1] == out
    assert explain(capsys, *options[:4], "--seed", "5", *options[6:])[1] != out
    assert (
        "T = 4 steps, H = 3"
        in explain(capsys, "--x", "1", "-1", "0", "2", "--W-ih", "1", "2", "3")[1]
    )


def test_two_steps_do_not_show_the_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "It shows from three steps on" in explain(capsys, "--T", "2")[1]
    assert "It shows from three steps on" in page(told(T=2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--T", "65"], "--T 65: a case to be read has at most 64"),
        (["--H", "100"], "--H 100: a case to be read has at most 64"),
        (["--W-hh", "1"], "--W-hh: expected 4 numbers, as H = 2, got 1."),
        (["--x", "1", "2", "--T", "3"], "--x: expected 3 numbers, as T = 3, got 2."),
        (["--yours", "1"], "--yours: expected 2 numbers"),
        (["--x", "nan"], "'nan' is not a finite number"),
        (["--html", "/no/such/folder/out.html"], "it cannot be written"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, _, err = explain(capsys, *arguments)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


# The page.

VOID = {"meta", "line", "rect", "path"}


class Reader(HTMLParser):
    """Titles, and that every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.references: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [pair for pair in attrs if pair[0] in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "title":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles[-1] += data


@pytest.mark.parametrize(("T", "H"), [(3, 2), (6, 8), (1, 1)])
def test_the_page_is_whole_and_needs_nothing_else(T: int, H: int) -> None:
    text = page(told(T, H, None if H == 2 else 0))
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.references == []
    for outside in ("http", "url(", "@import", "<script", "<link", "<img"):
        assert outside not in text
    assert text.count("<svg") == T


def test_every_factor_is_on_hover() -> None:
    found = told()
    reader = Reader()
    reader.feed(page(found))
    titles = "\n".join(reader.titles)
    t = found.trace
    for step in (1, 2, 3):
        q, delta = words.numbers(t.q[step - 1, 0]), words.numbers(t.delta[step - 1, 0])
        slope = words.numbers(t.slope[step - 1, 0])
        back = words.numbers(t.q[step - 1, 0] @ t.W_hh)
        at = words.sub(step)
        assert f"q{at} = (1-h{at}²) ⊙ δ{at} = ({slope}) ⊙ ({delta}) = ({q})" in titles
        assert f"W_hhᵀ q{at} = ({back})" in titles
        for name, label in (("W_ih", "dW_ih"), ("W_hh", "dW_hh"), ("b", "db")):
            share = words.numbers(t.share(name, step).flatten())
            assert any(
                title.startswith(f"share of step {step} in {label}:") and f"({share})" in title
                for title in reader.titles
            )
    assert "0.4000 · 0.0878 + 0.6000 · 0.9847" in titles  # that of docs/design.md
    assert escape(found.diagnosis.sentence) in page(found)


def test_the_command_writes_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    code, out, _ = explain(capsys, "--html", str(target))
    assert code == 0
    assert f"Page: {target}" in out
    assert target.read_text(encoding="utf-8") == page(told())


MEASURE = """
<iframe id="frame" style="width:WIDTHpx;height:3000px;border:0" srcdoc="PAGE"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const doc = frame.contentDocument, root = doc.documentElement;
  const box = element => element.getBoundingClientRect();
  const overlaps = [], outside = [];
  let smallest = 1e9;
  for (const svg of doc.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")], edge = box(svg);
    texts.forEach((a, i) => {
      const p = box(a);
      smallest = Math.min(smallest, p.height);
      if (p.left < edge.left - 1 || p.right > edge.right + 1) outside.push(a.textContent);
      for (const b of texts.slice(i + 1)) {
        const q = box(b);  // a line box is taller than its letters
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 1 && high > 4) overlaps.push(a.textContent + " / " + b.textContent);
      }
    });
    const nodes = [...svg.querySelectorAll(".node rect")].map(box);
    nodes.forEach((p, i) => nodes.slice(i + 1).forEach(q => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      if (wide > 0 && Math.min(p.bottom, q.bottom) > Math.max(p.top, q.top)) overlaps.push("boxes");
    }));
    for (const node of svg.querySelectorAll(".node")) {
      const r = box(node.querySelector("rect"));
      for (const t of node.querySelectorAll("text")) {
        const p = box(t), beside = p.left < r.left || p.right > r.right;
        if (beside || p.bottom > r.bottom + 2) outside.push(t.textContent);
      }
    }
  }
  document.getElementById("found").textContent = JSON.stringify({
    shown: root.clientWidth, needed: root.scrollWidth, overlaps, outside, smallest,
    panels: doc.querySelectorAll("svg").length,
    rows: new Set([...doc.querySelectorAll("svg")].map(s => Math.round(box(s).top))).size,
    hover: getComputedStyle(doc.querySelector(".arrow .hit")).pointerEvents,
  });
};
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")
@pytest.mark.parametrize(("width", "rows"), [(360, 3), (1280, 1)], ids=["telephone", "desk"])
@pytest.mark.parametrize(("T", "H", "phi"), [(3, 2, "tanh"), (3, 40, "relu")])
def test_the_page_in_a_browser(
    tmp_path: Path, width: int, rows: int, T: int, H: int, phi: str
) -> None:
    """No sideways scrolling, no text over another, none outside its box, and none too small."""
    text = page(told(T, H, None if H == 2 else 1, phi))
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<!DOCTYPE html><meta charset=utf-8>"
        + MEASURE.replace("WIDTH", str(width)).replace("PAGE", escape(text)),
        encoding="utf-8",
    )
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            *["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=10000"],
            *[f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"],
            *["--dump-dom", outer.as_uri()],
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    found = json.loads(unescape(said[1]))
    assert found["shown"] == width
    assert found["needed"] <= width
    assert found["overlaps"] == []
    assert found["outside"] == []
    assert found["smallest"] > 11, "the height of a line in CSS pixels"
    assert (found["panels"], found["rows"]) == (T, rows)
    assert found["hover"] != "none"
