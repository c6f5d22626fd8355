"""The report as one HTML file that needs nothing else, for a desk or a telephone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from fused_bptt.bench import charts, summary
from fused_bptt.bench.cells import FLOAT32, FORWARD_BACKWARD
from fused_bptt.bench.results import DISTURBED, OURS, UNSTEADY, Block, blocks
from fused_bptt.bench.summary import Comparison, count, number, title

Results = Mapping[str, Any]

# Losses and wins stand side by side, as many of each.
SHOWN = 12

_STYLE = """
:root { --ink: #1b1b1b; --quiet: #555; --win: #e4e0f1; --loss: #fde0bf;
        color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1240px; color: var(--ink); background: #fff;
       font: 16px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .2rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 52rem; margin: .4rem 0; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: .85rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
        gap: 0 2rem; align-items: start; }
.charts { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: flex-start; }
.charts img { width: 355px; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .5rem; text-align: right; border-bottom: 1px solid #ddd; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, .left { text-align: left; }
.win { background: var(--win); } .loss { background: var(--loss); }
.loss b::before { content: "\\2193 "; }
.standing td, .standing th { font-size: .78rem; padding: .22rem .3rem; }
.who td { text-align: center; padding: .22rem .25rem; line-height: 1.2; font-size: .8rem; }
.who th { text-align: center; }
@media (max-width: 600px) {
  .wide { display: none; }
  table { font-size: .8rem; }
  th, td { padding: .22rem .3rem; }
  .standing td, .standing th { font-size: .72rem; padding: .22rem .2rem; }
  .who td, .who th { font-size: .68rem; padding: .2rem .12rem; }
}
summary { cursor: pointer; margin: .6rem 0; font-weight: 600; }
"""


def page(results: Results, source: str) -> str:
    """The whole document, of results that were read from `source`."""
    losses, wins = summary.losses_and_wins(results)
    heading = f"fused_bptt.RNN against everyone on {results['machine']['cpu']}"
    parts = [
        f"<h1>{escape(heading)}</h1>",
        _verdict(results, losses, wins),
        _losses_and_wins(losses, wins),
        _standings(results),
        _winners(results),
        _heat_maps(results),
        _section("Time a step against the limit", _LIMIT_WORDS, results, charts.limits),
        _section("Cost as the work grows", _GROWTH_WORDS, results, charts.growths),
        _memory(results),
        _everything(results),
        _who(results),
        _how(results, source),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{chr(10).join(filter(None, parts))}\n</body>\n</html>\n"
    )


_LIMIT_WORDS = (
    "The dashed line is what a step takes at least on this machine, from the rates of products and "
    "of memory that were measured in the same run. Nearer to it is better; the distance between "
    "two lines is a ratio."
)
_GROWTH_WORDS = (
    "One size grows, the others stay. A slope of 1 means that twice the size costs twice the time. "
    "A line ends where a call would have taken longer than the run allowed."
)


@dataclass(frozen=True)
class _Column:
    """A column of a table: its head, and the class of its cells."""

    head: str
    kind: str = ""  # "wide": left out on a telephone; "left": words


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table; a cell that begins with `<td` brings its own tag."""

    def tag(name: str, column: _Column, text: str) -> str:
        if text.startswith("<td"):
            return text
        return (
            f'<{name} class="{column.kind}">{text}</{name}>'
            if column.kind
            else (f"<{name}>{text}</{name}>")
        )

    head = "".join(tag("th", column, escape(column.head)) for column in columns)
    body = "".join(
        "<tr>" + "".join(map(partial(tag, "td"), columns, row)) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _coloured(kind: str, text: str) -> str:
    """A cell that says by its colour who is ahead."""
    return f'<td class="{kind}">{text}</td>'


def _image(chart: charts.Chart) -> str:
    data = base64.b64encode(chart.svg().encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(chart.words)}">'


def _charts(found: Iterable[charts.Chart]) -> str:
    images = "".join(map(_image, found))
    return f'<div class="charts">{images}</div>' if images else ""


def _verdict(results: Results, losses: Sequence[Comparison], wins: Sequence[Comparison]) -> str:
    disturbed = [block for block in blocks(results) if block.disturbed]
    total = len(losses) + len(wins)
    said = (
        f"<p>Of {total} comparisons with a clear outcome, fused_bptt.RNN loses "
        f"<b>{len(losses)}</b> and wins <b>{len(wins)}</b>. A ratio is a rival's time over ours, "
        "by round of the same run: above 1 ours is faster. Each rival's output and gradients were "
        "checked against float64 first.</p>"
    )
    if disturbed:
        said += (
            f"<p><b>{len(disturbed)} of {len(results['blocks'])} blocks were disturbed</b>: other "
            f"processes took more than {DISTURBED:.0%} of the cores. They are left out of the two "
            "tables below, and are not to be quoted.</p>"
        )
    return said + f'<p class="quiet">{escape(summary.machine_line(results))}.</p>'


def _losses_and_wins(losses: Sequence[Comparison], wins: Sequence[Comparison]) -> str:
    """Side by side, the worst and the greatest, as many of each."""
    tables = []
    for name, kind, found in (("Losses", "loss", losses), ("Wins", "win", wins)):
        order = "worst" if kind == "loss" else "greatest"
        some = f", {order} first"
        if len(found) > SHOWN:
            some = f", the {SHOWN} {order} of {len(found)}"
        table = _comparisons(found[:SHOWN], kind) if found else "<p>None.</p>"
        more = ""
        if len(found) > SHOWN:
            more = (
                f"<details><summary>All {len(found)}</summary>{_comparisons(found, kind)}</details>"
            )
        tables.append(f"<div><h2>{name}{some}</h2>{table}{more}</div>")
    return f'<div class="pair">{"".join(tables)}</div>'


_COMPARISON = (
    _Column("ratio"),
    _Column("quartiles", "wide"),
    _Column("rival", "left"),
    _Column("shape", "left"),
    _Column("threads, mode"),
    _Column("ours, µs", "wide"),
    _Column("theirs, µs", "wide"),
)


def _comparisons(found: Sequence[Comparison], kind: str) -> str:
    rows = []
    for one in found:
        block, ratio = one.block, one.ratio
        ours, theirs = block.seconds(OURS), block.seconds(one.rival)
        assert ours is not None
        assert theirs is not None
        rows.append(
            (
                _coloured(kind, f"<b>{number(ratio.median)}</b>"),
                f"{number(ratio.lower)}-{number(ratio.upper)}",
                escape(title(one.rival)),
                escape(block.cell.name),
                f"{block.threads}, {_short(block)}",
                number(1e6 * ours),
                number(1e6 * theirs),
            )
        )
    return _table(_COMPARISON, rows)


def _short(block: Block) -> str:
    """A mode in a table."""
    return "f+b" if block.mode == FORWARD_BACKWARD else "f"


def _by_kind(results: Results, write: Callable[[int, str, list[Block]], str]) -> str:
    """Two columns: for each mode and thread count, what is written of its blocks."""
    parts = []
    for mode in summary.MODE_NAMES:
        for threads in summary.thread_counts(results):
            found = summary.select(results, threads, mode)
            text = write(threads, mode, found) if found else ""
            if text:
                name = f"{summary.MODE_NAMES[mode].capitalize()}, {count(threads)}"
                parts.append(f"<div><h3>{name}</h3>{text}</div>")
    return f'<div class="pair">{"".join(parts)}</div>'


_STANDING = (
    _Column("rival", "left"),
    _Column("mean"),
    _Column("least"),
    _Column("", "wide left"),
    _Column("most"),
    _Column("", "wide left"),
    _Column("lost"),
    _Column("even"),
    _Column("won"),
)


def _standings(results: Results) -> str:
    def write(threads: int, mode: str, found: list[Block]) -> str:
        rows = [
            (
                escape(title(one.rival)),
                _coloured("loss" if one.geometric_mean < 1 else "win", number(one.geometric_mean)),
                number(one.least.ratio.median),
                f"at {escape(one.least.block.cell.name)}",
                number(one.most.ratio.median),
                f"at {escape(one.most.block.cell.name)}",
                str(one.losses),
                str(one.evens),
                str(one.wins),
            )
            for one in summary.standings(found, summary.opponents(results))
        ]
        return _table(_STANDING, rows, "standing") if rows else ""

    return (
        "<h2>Who stands where</h2><p>Times faster than each rival: the geometric mean over all "
        "shapes, the least and the most; who comes closest first.</p>" + _by_kind(results, write)
    )


def _winners(results: Results) -> str:
    def write(threads: int, mode: str, found: list[Block]) -> str:
        cells = summary.grid(found, FLOAT32)
        sizes = sorted({H for _, H in cells})
        rows = []
        for B in sorted({B for B, _ in cells}):
            row = [str(B)]
            for H in sizes:
                first = summary.fastest(cells[B, H]) if (B, H) in cells else None
                if first is None:
                    row.append("-")
                    continue
                name, factor = first
                kind, short = ("win", "ours") if name == OURS else ("loss", name)
                row.append(_coloured(kind, f"{escape(short)}<br>{number(factor)}"))
            rows.append(row)
        columns = [_Column(text) for text in ("B", *(f"H={H}" for H in sizes))]
        return _table(columns, rows, "who") if rows else ""

    return (
        "<h2>Who is fastest where</h2><p>The fastest, and how many times as fast as the second.</p>"
        + _by_kind(results, write)
    )


def _heat_maps(results: Results) -> str:
    parts = []
    for dtype in summary.dtypes(results):
        for mode in summary.MODE_NAMES:
            for threads in summary.thread_counts(results):
                images = _charts(charts.heat_maps(results, threads, mode, dtype))
                if images:
                    name = f"{summary.MODE_NAMES[mode].capitalize()}, {count(threads)}, {dtype}"
                    parts.append(f"<h3>{name}</h3>{images}")
    if not parts:
        return ""
    return (
        "<h2>Times faster, over B and H</h2><p>T=100, I=min(H, 64). Purple: ours is faster; orange "
        "and bold: the rival is.</p>" + "".join(parts)
    )


def _section(
    heading: str,
    words: str,
    results: Results,
    draw: Callable[[Results, int], Iterable[charts.Chart]],
) -> str:
    parts = []
    for threads in summary.thread_counts(results):
        images = _charts(draw(results, threads))
        if images:
            parts.append(f"<h3>{count(threads).capitalize()}</h3>{images}")
    return f"<h2>{heading}</h2><p>{words}</p>{''.join(parts)}" if parts else ""


def _memory(results: Results) -> str:
    cells = summary.memory_cells(results)
    if not cells:
        return ""
    rivals = [OURS, *summary.opponents(results)]
    rows = []
    for cell in cells:
        found = summary.memory(results, cell)
        needed = next((need for _, need in found.values()), None)
        texts = [escape(cell.name), "-" if needed is None else number(needed / 1e6)]
        texts += [number(found[name][0] / 1e6) if name in found else "-" for name in rivals]
        rows.append(texts)
    columns = [_Column(text) for text in ("shape", "u, h, q, gradients", *map(title, rivals))]
    table = _table(columns, rows)
    return (
        "<h2>Memory</h2><p>Megabytes that being ready for a step and computing it, forward + "
        "backward, add to a process at most, beside inputs and weights; the second column is what "
        "u, h, q and the returned gradients take.</p>"
        f"{_charts(charts.memories(results))}<details><summary>Every shape</summary>{table}"
        "</details>"
    )


def _everything(results: Results) -> str:
    rivals = [OURS, *summary.opponents(results)]
    heads = ("shape", "threads", "mode", "of the limit", *map(title, rivals))
    rows = []
    for block in blocks(results):
        share = block.roofline_share(OURS)
        texts = [
            escape(block.cell.name) + (" (disturbed)" if block.disturbed else ""),
            str(block.threads),
            _short(block),
            "-" if share is None else f"{share:.0%}",
        ]
        for name in rivals:
            seconds = block.seconds(name)
            outcome = block.raw["rivals"].get(name, {})
            missing = "wrong" if "wrong" in outcome else "-"
            texts.append(missing if seconds is None else number(1e6 * seconds / block.cell.T))
        rows.append(texts)
    return (
        "<details><summary>Every time, in µs a step, and our share of the limit</summary>"
        f"{_table([_Column(text) for text in heads], rows)}</details>"
    )


def _who(results: Results) -> str:
    items = []
    for name, rival in results["rivals"].items():
        said = rival.get("missing") or next(iter(rival["settings"].values()), "")
        version = f" {rival['version']}" if "version" in rival else ""
        wrong = _wrong(results, name)
        items.append(f"<li><b>{escape(title(name) + version)}</b>: {escape(said)}.{wrong}</li>")
    return f"<h2>Who took part</h2><ul>{''.join(items)}</ul>"


def _wrong(results: Results, name: str) -> str:
    """Where a rival computed something else."""
    found = {
        block.cell.name: block.raw["rivals"][name]["wrong"]
        for block in blocks(results)
        if "wrong" in block.raw["rivals"].get(name, {})
    }
    if not found:
        return ""
    reason = next(iter(found.values()))
    return f" <b>Wrong, not timed, at {escape(', '.join(found))}</b>: {escape(reason)}."


def _how(results: Results, source: str) -> str:
    found = list(blocks(results))
    probes = [
        block.raw["probes"][when]["sgemm_gflops"]
        for block in found
        if block.raw["probes"]
        for when in ("before", "after")
    ]
    said = []
    if probes:
        said.append(
            f"A core ran a large product at {min(probes):.0f} to {max(probes):.0f} GF/s beside the "
            "blocks."
        )
    if "unprobed" in results:
        said.append(f"There is no limit: {results['unprobed']}.")
    unsteady = [block.cell.name for block in found if block.unsteady]
    if unsteady:
        said.append(f"That rate changed by more than {UNSTEADY:.0%} around {', '.join(unsteady)}.")
    method, software = results["method"], results["software"]
    said.append(
        f"Rounds: {method['rounds']} of {method['turn_seconds']} s a rival, interleaved; a sample "
        f"is the {method['sample']}. Commit {software['commit'] or 'unknown'}"
        f"{', modified' if software['modified'] else ''}. Data: {source}. The method is in "
        "benchmarks/README.md of the repository."
    )
    return f'<h2>How it was measured</h2><p class="quiet">{escape(" ".join(said))}</p>'
