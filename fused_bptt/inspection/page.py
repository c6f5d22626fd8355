"""The page of a lesson: one HTML file that needs nothing else, for a projector or a telephone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import drawing, lesson, words
from .lesson import Lesson

#: Blue and vermilion of Okabe and Ito's palette, told apart by every kind of colour vision. The
#: gradient is dashed besides, and the two passes have lanes of their own.
_STYLE = """
:root { --ink: #1b1b1b; --quiet: #555; --forward: #0072b2; --backward: #d55e00;
        --state: #e8f3fa; --gradient: #fdeee3; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1320px; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .2rem 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
code, .equation { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9em; }
.equation { max-width: 100%; margin: .4rem 0; padding: .5rem .8rem; background: #f5f5f5;
            border-radius: 6px; overflow-x: auto; white-space: pre; }
.graph { display: flex; flex-wrap: wrap; row-gap: 1rem; }
.case { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; align-items: flex-start; }
.graph svg { width: 320px; max-width: 100%; height: auto; flex: none; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
tr.sum td { font-weight: 600; border-top: 2px solid #888; }
td.wrong { background: var(--gradient); font-weight: 600; }
.answer { border-left: 5px solid var(--backward); padding: .2rem .8rem; margin: .8rem 0; }
.key { display: inline-block; width: 2.2em; height: 0; border-top: 3px solid var(--forward);
       vertical-align: middle; }
.key.back { border-top: 3px dashed var(--backward); }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; text-anchor: middle;
           fill: var(--ink); }
svg .left { text-anchor: start; font-size: 12.5px; }
svg .title { font-weight: 600; font-size: 14px; }
svg .name { font-weight: 600; font-size: 14px; }
svg .factor { fill: var(--quiet); font-size: 13px; }
svg .lanes { stroke: #bbb; stroke-dasharray: 1 5; }
.node rect { fill: var(--state); stroke: var(--forward); stroke-width: 1.5; }
.node.in rect { fill: #fff; }
.node.gradient rect { fill: var(--gradient); stroke: var(--backward); }
.arrow .line { fill: none; stroke: var(--forward); }
.arrow .head { fill: var(--forward); }
.arrow.slope .line { stroke-dasharray: 2 4; }
.arrow.backward .line { stroke: var(--backward); stroke-dasharray: 6 3; }
.arrow.backward .head { fill: var(--backward); }
.arrow .hit { stroke: transparent; stroke-width: 18; }
.arrow:hover .line, .arrow:focus .line { stroke: #000; }
.arrow:hover .head, .arrow:focus .head { fill: #000; }
.node:hover rect, .node:focus rect { stroke: #000; stroke-width: 3; }
.share:hover text, .share:focus text { text-decoration: underline; }
g:focus { outline: none; }
"""


def page(told: Lesson) -> str:
    """The whole document."""
    found = told.trace
    H = found.h.size(2)
    title = f"Backpropagation through time, step by step: T = {found.T}, H = {H}"
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            _the_case(told),
            _graph(told),
            _steps(told),
            _three_ways(told),
            _mistake(told),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _the_case(told: Lesson) -> str:
    found = told.trace
    phi = found.nonlinearity
    slope = "1 - h_t²" if phi == "tanh" else "[h_t > 0]"
    lines = [
        "forward",
        "  z_t = W_ih x_t + b + W_hh h_(t-1)",
        f"  h_t = {phi}(z_t)",
        "backward, from q_(T+1) = 0",
        "  δ_t = g_t + W_hhᵀ q_(t+1)",
        "  q_t = φ'(z_t) ⊙ δ_t",
        f"  φ'(z_t) = {slope}",
        "each step's share",
        "  dW_ih += q_t x_tᵀ",
        "  dW_hh += q_t h_(t-1)ᵀ",
        "  db    += q_t",
    ]
    weights = _table(
        ["a row receives", "values"],
        [
            ["W_ih", words.numbers(found.W_ih)],
            *([f"W_hh, row {i + 1}", words.numbers(row)] for i, row in enumerate(found.W_hh[:8])),
            ["b = b_ih + b_hh", words.numbers(found.b)],
        ],
    )
    return (
        f"<p>One layer with one input, {phi}, h₀ = 0. The loss is the sum of "
        f"h{words.sub(found.T)}. "
        "The gradient walks the steps from the last to the first: one vector, carried back through "
        "one W_hhᵀ and one slope at a time.</p>\n"
        f'<div class="case"><div class="equation">{escape(chr(10).join(lines))}</div>\n'
        f"{weights}</div>"
    )


def _graph(told: Lesson) -> str:
    found = told.trace
    panels = "\n".join(drawing.step(found, t) for t in range(1, found.T + 1))
    return (
        "<h2>The unrolled graph</h2>\n"
        '<p><span class="key"></span> forward, from left to right. '
        '<span class="key back"></span> the gradient, from right to left; the thicker an arrow, '
        "the larger what it carries. Point at an arrow or a box to see its factor; "
        "the numbers are in the table below, too.</p>\n"
        f'<div class="graph">\n{panels}\n</div>\n<p>{escape(found.flow())}</p>'
    )


def _steps(told: Lesson) -> str:
    found = told.trace
    slope = "1 - h_t²" if found.nonlinearity == "tanh" else "[h_t > 0]"
    head = ["t", "x_t", "z_t", "h_t", slope, "δ_t", "q_t", "q_t x_t", "q_t h_(t-1)ᵀ"]
    rows = []
    for t in range(found.T, 0, -1):
        arrays = (found.x, found.z, found.h, found.slope, found.delta, found.q)
        rows.append(
            [
                str(t),
                *(words.numbers(array[t - 1, 0], 4) for array in arrays),
                words.numbers(found.share("W_ih", t), 4),
                words.matrix(found.share("W_hh", t)),
            ]
        )
    rows.append(
        [
            "sum",
            *[""] * 6,
            words.numbers(found.gradient("W_ih"), 4),
            words.matrix(found.gradient("W_hh")),
        ]
    )
    return f"<h2>Every number, from the last step back</h2>\n{_table(head, rows, total=True)}"


def _three_ways(told: Lesson) -> str:
    rows = []
    for name in lesson.PARAMETERS:
        rows.append([name, *(words.matrix(values[name]) for values in told.gradients.values())])
    return (
        "<h2>Three ways to one gradient</h2>\n"
        f"{_table(['', *told.gradients], rows)}\n"
        f"<p>Largest difference: {told.furthest_apart:.1e}.</p>"
    )


def _mistake(told: Lesson) -> str:
    start = (
        "<h2>The usual mistake</h2>\n<p>Two Jacobians are two matrices, and a product of matrices "
        "is not a product entry by entry. Whoever multiplies entry by entry is right at the last "
        "two steps, where there is one Jacobian at most, and wrong before.</p>\n"
    )
    if told.diagnosis.verdict == "right":
        return f"{start}<p>It shows from three steps on.</p>"
    right, wrong = told.right.steps("weight_ih"), told.wrong.steps("weight_ih")
    rows, crosses = [], []
    for t in reversed(range(len(right))):
        rows.append([f"step {t + 1}", words.matrix(right[t]), words.matrix(wrong[t])])
        crosses.append(not words.same(right[t], wrong[t]))
    rows.append(["sum", words.matrix(right.sum(0)), words.matrix(wrong.sum(0))])
    crosses.append(True)
    head = ["share in dW_ih", "right", "with the mistake"]
    code = "\n".join(told.diagnosis.lines)
    return (
        f"{start}{_table(head, rows, total=True, wrong=crosses)}\n"
        "<p>Given these numbers, <code>fused_bptt.diagnose</code> says:</p>\n"
        f'<div class="answer">{escape(told.diagnosis.sentence)}</div>\n'
        f'<div class="equation">{escape(code)}</div>'
    )


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: bool = False,
    wrong: Sequence[bool] = (),
) -> str:
    """A table that scrolls by itself; the last cell of a wrong row is marked."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    for i, row in enumerate(rows):
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if i < len(wrong) and wrong[i]:
            cells[-1] = f'<td class="wrong">{escape(row[-1])} ✗</td>'
        lines.append("".join(cells))
    marked = [
        f'<tr class="sum">{line}</tr>' if total and i == len(lines) - 1 else f"<tr>{line}</tr>"
        for i, line in enumerate(lines)
    ]
    return f'<div class="scroll"><table>{"".join(marked)}</table></div>'
