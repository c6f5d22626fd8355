"""`fused-bptt report`: what results come to, and the page, in a browser too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from bench_results import MADE_UP, OURS, THEIRS, block, results

from fused_bptt import cli
from fused_bptt.bench import charts, summary
from fused_bptt.bench.page import page

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
ROOT = Path(__file__).parent.parent

# What results come to.


def test_losses_wins_and_what_is_neither() -> None:
    losses, wins = summary.losses_and_wins(MADE_UP)
    assert [(one.rival, one.ratio.median) for one in losses] == [("jax", 0.5)]
    assert [(one.rival, one.ratio.median) for one in wins] == [
        (THEIRS, pytest.approx(123)),
        (THEIRS, pytest.approx(4)),
    ]
    mixed = results(block(ours=[1.0, 1.0, 1.0], theirs=[0.9, 1.0, 1.1]))
    assert summary.losses_and_wins(mixed) == ([], [])
    (standing,) = summary.standings(summary.select(mixed, 1, "forward_backward"), [THEIRS])
    assert (standing.losses, standing.evens, standing.wins) == (0, 1, 0)


def test_a_disturbed_block_is_no_win() -> None:
    loud = {**block(ours=[1.0], theirs=[2.0]), "elsewhere": 0.2}
    found = results(loud)
    assert summary.losses_and_wins(found) == ([], [])
    assert "disturbed 1 of 1 blocks" in summary.lines(found)[-1]
    assert "1 of 1 blocks were disturbed" in page(found, "x.json")


def test_who_comes_closest_stands_first() -> None:
    found = summary.select(MADE_UP, 1, "forward_backward")
    standings = summary.standings(found, summary.opponents(MADE_UP))
    assert [one.rival for one in standings] == ["jax", THEIRS]
    assert standings[1].geometric_mean == pytest.approx((4 * 123) ** 0.5)
    assert standings[1].least.block.cell.name == "1x16"
    assert summary.fastest(found[1]) == ("jax", pytest.approx(2))


def test_who_is_fastest_does_not_contradict_the_ratio_beside() -> None:
    # Theirs has the lower median, and is slower in two rounds of three.
    close = results(block(ours=[1.0, 2.0, 1.5], theirs=[1.1, 1.4, 1.65]))
    (found,) = summary.select(close, 1, "forward_backward")
    assert summary.fastest(found) == (OURS, pytest.approx(1.1))


def test_slopes_are_those_of_the_largest_points() -> None:
    points = [(1, 5.0), (10, 6.0), (100, 10.0), (1000, 100.0), (10_000, 1000.0)]
    assert summary.slope(points) == pytest.approx(1.0)
    assert summary.slope([(n, n**1.5) for n in (2, 3, 7)]) == pytest.approx(1.5)
    assert summary.slope(points[:2]) is None
    growing = results(
        *(block(ours=[1e-6 * T], theirs=[1e-4 * T], T=T) for T in (100, 1000, 10_000))
    )
    found = summary.select(growing, 1, "forward_backward")
    points = summary.sweep(found, "T", OURS)
    assert [size for size, _ in points] == [100, 1000, 10_000]
    assert summary.slope(points) == pytest.approx(1.0)
    (chart,) = charts.growths(growing, 1)
    assert "as T grows (B=1, H=16)" in chart.words


# The page.


def grown() -> dict[str, object]:
    """Results with everything that a page can show."""
    blocks = [
        block(B, H, ours=[1e-3 * B] * 3, theirs=[9e-3 * H / 16] * 3, jax=[0.8e-3 * B] * 3)
        for B in (1, 8, 128)
        for H in (16, 64, 1024)
    ]
    blocks += [block(ours=[1e-6 * T], theirs=[1e-4 * T], T=T) for T in (1000, 10_000)]
    return results(*blocks, block(2, 16, ours=[1e-3], theirs="output: error <1> & more"))


def test_the_page_shows_losses_first_and_needs_nothing_else() -> None:
    text = page(grown(), "made-up.json")
    assert text.index("Losses") < text.index("Wins") < text.index("Who stands where")
    assert "A CPU &amp; more" in text
    assert "Wrong, not timed, at 2x16</b>: output: error &lt;1&gt; &amp; more" in text
    assert "has kernels for a GPU alone" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 2 + 3 + 3 + 1  # ratios, limits, growth, memory
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script" not in text


def test_as_many_losses_as_wins_are_shown() -> None:
    many = results(
        *(block(B, 16, ours=[1.0], theirs=[2.0], jax=[0.5]) for B in range(1, 20)),
    )
    text = page(many, "made-up.json").split("Who stands where")[0]
    losses, wins = text.split("Wins, the 12 greatest of 19")
    assert "Losses, the 12 worst of 19" in losses
    for half in (losses, wins):
        shown = half.split("<details>")[0]
        assert shown.count("<tr>") == 1 + 12


def test_older_results_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are committed, from before cells had layers and dtypes."""
    source = ROOT / "benchmarks" / "results" / "intel-xeon-processor-2-cores.json"
    found = json.loads(source.read_text())
    found["blocks"] = [b for b in found["blocks"] if b["mode"] == "forward_backward"][:30]
    path = tmp_path / "older.json"
    path.write_text(json.dumps(found))
    assert cli.main(["report", str(path), "--out", str(tmp_path / "report")]) == 0
    assert "lost/even/won" in capsys.readouterr().out
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "report" / "ratio-nn-rnn-1-forward-backward.png").exists()


@pytest.mark.parametrize("text", ['{"schema": 7}', "not JSON", '{"schema": 1, "rivals": {}}'])
def test_other_files_are_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert cli.main(["report", str(path), "--out", str(tmp_path)]) == 2
    assert "other.json" in capsys.readouterr().err


MEASURE = """<iframe id="page" style="width: WIDTHpx; height: 1500px" srcdoc="PAGE"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {
  const doc = frame.contentDocument, box = e => e.getBoundingClientRect();
  const tops = [...doc.querySelectorAll("h2")].slice(0, 2).map(h => Math.round(box(h).top));
  document.getElementById("found").textContent = JSON.stringify({
    shown: doc.documentElement.clientWidth,
    needed: doc.documentElement.scrollWidth,
    hidden: [...doc.querySelectorAll("body > .pair .scroll")].slice(0, 2)
        .filter(e => e.scrollWidth > e.clientWidth + 1).length,
    images: [...doc.images].filter(i => i.naturalWidth > 0 && box(i).right <= WIDTH).length,
    abreast: tops[0] === tops[1],
  });
};
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")
@pytest.mark.parametrize("width", [360, 1280], ids=["telephone", "desk"])
def test_the_page_in_a_browser(tmp_path: Path, width: int) -> None:
    """No sideways scrolling; losses and wins whole, beside each other where there is room."""
    text = page(grown(), "made-up.json")
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
    assert found["needed"] <= width
    assert found["hidden"] == 0
    assert found["images"] == 9
    assert found["abreast"] == (width > 600)
