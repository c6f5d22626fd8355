"""The unrolled graph, one SVG for each step, so that the steps wrap like words on a narrow screen.

Above, from left to right, the forward pass; below, from right to left, the gradient. What leaves a
panel at one edge enters the next panel at the other. Every arrow says its factor on hover.
"""

from __future__ import annotations

import math
from html import escape

from torch import Tensor

from . import words
from .trace import Trace
from .words import sub

WIDTH, HEIGHT = 320, 452
_Z, _H = 112, 246  # where the columns of z and h stand
_FORWARD, _BACKWARD = 122, 318  # and the rows of the two passes
_BOX = 84

#: Vectors up to this size are written out, larger ones by their norm.
_WRITTEN = 3


def step(trace: Trace, t: int) -> str:
    """The panel of step t, from 1 to T, of the first row of the batch."""
    found = _Panel(trace, t)
    label = f"Step {t} of {trace.T}: forward above, gradient below"
    body = "\n".join([*found.forward(), *found.backward()])
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
        f'<text class="title" x="{WIDTH / 2}" y="18">step {t}</text>\n{body}\n</svg>'
    )


class _Panel:
    """What is drawn of one step."""

    def __init__(self, trace: Trace, t: int) -> None:
        self.trace, self.t = trace, t
        self.x, self.z, self.h = (each[t - 1, 0] for each in (trace.x, trace.z, trace.h))
        self.slope, self.g = trace.slope[t - 1, 0], trace.g[t - 1, 0]
        self.delta, self.q = trace.delta[t - 1, 0], trace.q[t - 1, 0]
        self.largest = max(trace.q[:, 0].norm(dim=1).max().item(), 1e-300)

    def forward(self) -> list[str]:
        """x, z, h, and h of the step before."""
        t, found = self.t, self.trace
        before = found.h_prev[t - 1, 0]
        said = f"h{sub(t)} = {found.nonlinearity}(z{sub(t)}) = {_tuple(self.h)}"
        parts = [
            _node("in", _Z, 52, f"x{sub(t)}", self.x),
            _node("state", _Z, _FORWARD, f"z{sub(t)}", self.z),
            _node("state", _H, _FORWARD, f"h{sub(t)}", self.h),
            _arrow(
                "forward",
                (_Z, 52 + _half(self.x)),
                (_Z, _FORWARD - _half(self.z)),
                f"W_ih x{sub(t)} + b = {_tuple(found.W_ih @ self.x + found.b)}",
            ),
            _arrow(
                "forward",
                (26 if t == 1 else 0, _FORWARD),
                (_Z - _BOX / 2, _FORWARD),
                f"W_hh h{sub(t - 1)} = {_tuple(found.W_hh @ before)}, "
                f"with h{sub(t - 1)} = {_tuple(before)}",
            ),
            _text(34, _FORWARD - 10, "W_hh"),
            _text(_Z + 26, 84, "W_ih"),
            _arrow("forward", (_Z + _BOX / 2, _FORWARD), (_H - _BOX / 2, _FORWARD), said),
            _text((_Z + _H) / 2, _FORWARD - 10, "φ"),
        ]
        if t == 1:
            parts.append(_text(13, _FORWARD + 4, "h₀"))
        if t < found.T:
            parts.append(_line("forward", (_H + _BOX / 2, _FORWARD), (WIDTH, _FORWARD), said))
        if self.g.any():
            parts += [
                _node("in", _H, 52, "loss L", None),
                _arrow(
                    "forward",
                    (_H, _FORWARD - _half(self.h)),
                    (_H, 52 + _half(None)),
                    f"the loss reads h{sub(t)}",
                ),
            ]
        return parts

    def backward(self) -> list[str]:
        """δ, q, what comes from the later step and goes to the earlier one, and the shares."""
        t, found = self.t, self.trace
        later = self.delta - self.g
        factor = words.slope(found.nonlinearity, t)
        to_earlier = self.q @ found.W_hh
        parts = [
            f'<line class="lanes" x1="0" x2="{WIDTH}" y1="{190}" y2="{190}"/>',
            _node("in", _Z, 238, f"φ'(z{sub(t)})", self.slope),
            _arrow(
                "slope",
                (_Z, _FORWARD + _half(self.z)),
                (_Z, 238 - _half(self.slope)),
                f"φ'(z{sub(t)}) = {factor} = {_tuple(self.slope)}",
            ),
            _arrow(
                "slope",
                (_Z, 238 + _half(self.slope)),
                (_Z, _BACKWARD - _half(self.q)),
                f"φ'(z{sub(t)}) multiplies δ{sub(t)} entry by entry",
            ),
            _node("gradient", _H, _BACKWARD, f"δ{sub(t)}", self.delta),
            _node("gradient", _Z, _BACKWARD, f"q{sub(t)}", self.q),
            _arrow(
                "backward",
                (_H - _BOX / 2, _BACKWARD),
                (_Z + _BOX / 2, _BACKWARD),
                f"q{sub(t)} = {factor} ⊙ δ{sub(t)} = {_tuple(self.slope)} ⊙ {_tuple(self.delta)} "
                f"= {_tuple(self.q)}",
                self._wide(self.q),
            ),
            _text((_Z + _H) / 2, _BACKWARD - 14, "⊙"),
            (_arrow if t == 1 else _line)(
                "backward",
                (_Z - _BOX / 2, _BACKWARD),
                (30 if t == 1 else 0, _BACKWARD),
                f"W_hhᵀ q{sub(t)} = {_tuple(to_earlier)}: {_sum(found.W_hh, self.q)}",
                self._wide(to_earlier),
            ),
            _text(34, _BACKWARD - 14, "W_hhᵀ"),
            _arrow(
                "backward",
                (_Z, _BACKWARD + _half(self.q)),
                (_Z, 386),
                f"each weight's share is q{sub(t)} times what the weight meets in z{sub(t)}",
                self._wide(self.q),
            ),
            *self._shares(),
        ]
        if t == 1:
            parts.append(_text(15, _BACKWARD + 4, "dh₀"))
        if t < found.T:
            parts += [
                _arrow(
                    "backward",
                    (WIDTH, _BACKWARD),
                    (_H + _BOX / 2, _BACKWARD),
                    f"W_hhᵀ q{sub(t + 1)} = {_tuple(later)}",
                    self._wide(later),
                ),
            ]
        if self.g.any():
            parts += [
                _node("gradient", _H, 238, f"g{sub(t)}", self.g),
                _arrow(
                    "backward",
                    (_H, 238 + _half(self.g)),
                    (_H, _BACKWARD - _half(self.delta)),
                    f"g{sub(t)} = {_tuple(self.g)}: what the loss asks of h{sub(t)} directly",
                    self._wide(self.g),
                ),
            ]
        return parts

    def _shares(self) -> list[str]:
        t = self.t
        parts = []
        lines = (
            ("dW_ih", "W_ih", f"q{sub(t)} x{sub(t)}ᵀ"),
            ("dW_hh", "W_hh", f"q{sub(t)} h{sub(t - 1)}ᵀ"),
            ("db", "b", f"q{sub(t)}"),
        )
        for i, (label, name, how) in enumerate(lines):
            values = self.trace.share(name, t)
            written = words.matrix(values)
            if values.numel() > 4:
                written = f"norm {words.number(values.norm().item())}"
            y = 404 + 20 * i
            parts.append(
                f'<g class="share" tabindex="0"><title>share of step {t} in {label}: {how} = '
                f"{_tuple(values.flatten())}</title>"
                f'<text class="left" x="8" y="{y}">{label} += {written}</text></g>'
            )
        return parts

    def _wide(self, values: Tensor) -> float:
        """Thickness of an arrow: by the square root of the norm, so that little is still seen."""
        return 1.5 + 5 * math.sqrt(min(values.norm().item() / self.largest, 1.5))


def _half(values: Tensor | None) -> float:
    """Half the height of a node."""
    return (26 + (0 if values is None else 15 * _lines(values))) / 2


def _lines(values: Tensor) -> int:
    return len(values) if len(values) <= _WRITTEN else 1


def _node(kind: str, x: float, y: float, label: str, values: Tensor | None) -> str:
    half = _half(values)
    lines: list[str] = []
    if values is not None:
        if len(values) <= _WRITTEN:
            lines = [words.number(value) for value in values.tolist()]
        else:
            lines = [f"norm {values.norm().item():.3g}"]
    title = label if values is None else f"{label} = {_tuple(values)}"
    parts = [
        f'<g class="node {kind}" tabindex="0"><title>{escape(title)}</title>',
        f'<rect x="{x - _BOX / 2}" y="{y - half}" width="{_BOX}" height="{2 * half}" rx="8"/>',
        f'<text class="name" x="{x}" y="{y - half + 18}">{escape(label)}</text>',
    ]
    for i, line in enumerate(lines):
        parts.append(f'<text x="{x}" y="{y - half + 34 + 15 * i}">{line}</text>')
    return "".join([*parts, "</g>"])


def _arrow(
    kind: str, start: tuple[float, float], end: tuple[float, float], title: str, wide: float = 2
) -> str:
    """A straight arrow."""
    (x1, y1), (x2, y2) = start, end
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    size = 6 + wide
    bx, by = x2 - size * ux, y2 - size * uy
    half = 0.6 * size
    head = (
        f"M{x2:.1f} {y2:.1f}L{bx - half * uy:.1f} {by + half * ux:.1f}"
        f"L{bx + half * uy:.1f} {by - half * ux:.1f}Z"
    )
    return _line(kind, start, (bx, by), title, wide, f'<path class="head" d="{head}"/>')


def _line(
    kind: str,
    start: tuple[float, float],
    end: tuple[float, float],
    title: str,
    wide: float = 2,
    head: str = "",
) -> str:
    """A straight line, and a broad invisible one to hover over."""
    path = f"M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"
    return (
        f'<g class="arrow {kind}" tabindex="0"><title>{escape(title)}</title>'
        f'<path class="line" d="{path}" stroke-width="{wide:.1f}"/>{head}'
        f'<path class="hit" d="{path}"/></g>'
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text class="factor" x="{x}" y="{y}">{escape(text)}</text>'


def _tuple(values: Tensor) -> str:
    return f"({words.numbers(values)})"


def _sum(W: Tensor, q: Tensor) -> str:
    """The first entry of W_hhᵀ q written out: down the first column of W_hh."""
    count = min(len(q), 4)
    products = " + ".join(
        f"{words.number(W[i, 0].item())} · {words.number(q[i].item())}" for i in range(count)
    )
    return f"its first entry is {products}{' + ...' if len(q) > count else ''}"
