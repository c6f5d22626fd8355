"""``fused-bptt explain``: BPTT of a tiny case, step by step, and what the usual mistake does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_bptt.cli import options
from fused_bptt.cli.errors import UserError
from fused_bptt.inspection import lesson, page, words
from fused_bptt.inspection.diagnosis import diagnose
from fused_bptt.inspection.lesson import Lesson

if TYPE_CHECKING:
    from argparse import _SubParsersAction

#: A case that is read number by number ends here.
LARGEST = 64

_GIVEN = {
    "weight_ih_l0": ("--W-ih", "W_ih, H numbers (default: as --seed says)"),
    "weight_hh_l0": (
        "--W-hh",
        "W_hh, H · H numbers, row after row; the row receives (default: as --seed says)",
    ),
    "bias_ih_l0": ("--b-ih", "b_ih, H numbers (default: as --seed says)"),
    "bias_hh_l0": ("--b-hh", "b_hh, H numbers (default: as --seed says)"),
}


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its options."""
    parser = subparsers.add_parser(
        "explain",
        help="backpropagation through time, step by step, on a tiny case",
        description="Work the gradients of a tiny RNN of one input step by step: by hand, with "
        "fused_bptt.RNN and with torch.nn.RNN; and show the usual mistake. The loss is the sum of "
        "the last state.",
    )
    size = options.positive_int
    parser.add_argument("--T", type=size, metavar="STEPS", help="steps (default: 3)")
    parser.add_argument("--H", type=size, metavar="UNITS", help="hidden units (default: 2)")
    parser.add_argument(
        "--seed",
        type=options.seed,
        metavar="N",
        help="of the weights, drawn as torch.nn.RNN draws them (default: the weights of "
        "docs/design.md and no biases with 2 hidden units, 0 with others)",
    )
    parser.add_argument(
        "--nonlinearity",
        choices=("tanh", "relu"),
        default="tanh",
        help="of the recurrence (default: %(default)s)",
    )
    numbers: dict[str, Any] = {"type": options.finite, "nargs": "+", "metavar": "NUMBER"}
    parser.add_argument("--x", help="inputs, T numbers (default: 1 2 3 ...)", **numbers)
    for name, (option, what) in _GIVEN.items():
        parser.add_argument(option, dest=name, help=what, **numbers)
    parser.add_argument(
        "--yours",
        help="your own gradient of W_ih, H numbers, to diagnose (default: none)",
        **numbers,
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a page that shows all of it (default: none)",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the lesson, write the page; 0.

    Raises:
        UserError: sizes and numbers do not fit together, or the page cannot be written.
    """
    told = _lesson(given)
    print("\n\n".join(_sections(told)))
    if given.yours:
        yours = torch.tensor(given.yours, dtype=torch.float64).view(-1, 1)
        print(f"\nYOUR dW_ih\n{diagnose(told.rnn, told.x, {'weight_ih_l0': yours})}")
    if given.html:
        try:
            given.html.write_text(page.page(told), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {given.html}: it cannot be written ({error}).") from None
        print(f"\nPage: {given.html}")
    return 0


def _lesson(given: argparse.Namespace) -> Lesson:
    T = given.T or (len(given.x) if given.x else 3)
    H = given.H or (len(given.weight_ih_l0) if given.weight_ih_l0 else 2)
    for option, value in (("--T", T), ("--H", H)):
        if value > LARGEST:
            raise UserError(
                f"{option} {value}: a case to be read has at most {LARGEST}; for larger ones there "
                "are fused_bptt.trace and fused_bptt.GradientMonitor."
            )
    sizes = dict.fromkeys(_GIVEN, H) | {"weight_hh_l0": H * H}
    weights = {name: getattr(given, name) for name in _GIVEN if getattr(given, name)}
    for name, values in weights.items():
        _check(_GIVEN[name][0], values, sizes[name], f"H = {H}")
    if given.x:
        _check("--x", given.x, T, f"T = {T}")
    if given.yours:
        _check("--yours", given.yours, H, f"H = {H}")
    seed = given.seed
    if seed is None and len(lesson.W_IH) != H:
        seed = 0
    rnn = lesson.network(H, given.nonlinearity, seed, weights)
    x = torch.tensor(given.x or [float(t) for t in range(1, T + 1)], dtype=torch.float64)
    return lesson.teach(rnn, x[:, None])


def _check(option: str, values: Sequence[float], count: int, size: str) -> None:
    if len(values) != count:
        raise UserError(f"{option}: expected {count} numbers, as {size}, got {len(values)}.")


def _sections(told: Lesson) -> list[str]:
    return [
        _the_case(told),
        _forward(told),
        _backward(told),
        _shares(told),
        _three_ways(told),
        _mistake(told),
    ]


def _the_case(told: Lesson) -> str:
    found = told.trace
    phi = found.nonlinearity
    return "\n".join(
        [
            f"BPTT of one layer: T = {found.T} steps, H = {found.h.size(2)}, one input, {phi}, "
            f"h_0 = 0, loss L = sum of h_{found.T}.",
            f"W_ih = {words.matrix(found.W_ih)}    b = b_ih + b_hh = {words.matrix(found.b)}",
            f"W_hh = {words.matrix(found.W_hh)}    (rows parted by |; the row receives)",
        ]
    )


def _forward(told: Lesson) -> str:
    found = told.trace
    slope = "1 - h_t²" if found.nonlinearity == "tanh" else "[h_t > 0]"
    rows: list[tuple[str, ...]] = [("t", "x_t", "z_t", "h_t", f"slope {slope}")]
    for t in range(found.T):
        arrays = (found.x, found.z, found.h, found.slope)
        rows.append((str(t + 1), *(words.matrix(array[t, 0]) for array in arrays)))
    return (
        f"FORWARD   z_t = W_ih x_t + b + W_hh h_(t-1),   h_t = {found.nonlinearity}(z_t)\n"
        f"{_table(rows)}"
    )


def _backward(told: Lesson) -> str:
    found = told.trace
    rows: list[tuple[str, ...]] = [("t", "g_t", "W_hhᵀ q_(t+1)", "δ_t = ∂L/∂h_t", "q_t = ∂L/∂z_t")]
    for t in reversed(range(found.T)):
        later = found.delta[t, 0] - found.g[t, 0]
        rows.append(
            (
                str(t + 1),
                *map(words.matrix, (found.g[t, 0], later, found.delta[t, 0], found.q[t, 0])),
            )
        )
    return (
        "BACKWARD  δ_t = g_t + W_hhᵀ q_(t+1),   q_t = slope ⊙ δ_t,   from the last step to the "
        f"first\n{_table(rows)}\n{found.flow()}"
    )


def _shares(told: Lesson) -> str:
    found = told.trace
    rows: list[tuple[str, ...]] = [("t", "dW_ih: q_t x_t", "dW_hh: q_t h_(t-1)ᵀ", "db: q_t")]
    names = ("W_ih", "W_hh", "b")

    def cells(values: Sequence[Tensor]) -> tuple[str, ...]:
        return words.matrix(values[0]), words.matrix(values[1]), words.matrix(values[2])

    for t in range(found.T, 0, -1):
        rows.append((str(t), *cells([found.share(name, t) for name in names])))
    rows.append(("sum", *cells([found.gradient(name) for name in names])))
    return f"EACH STEP'S SHARE\n{_table(rows)}"


def _three_ways(told: Lesson) -> str:
    rows: list[tuple[str, ...]] = []
    for name in lesson.PARAMETERS:
        for i, (way, values) in enumerate(told.gradients.items()):
            rows.append((name if i == 0 else "", way, words.matrix(values[name])))
    return (
        "THREE WAYS TO ONE GRADIENT\n"
        f"{_table(rows)}\nLargest difference: {told.furthest_apart:.1e}."
    )


def _mistake(told: Lesson) -> str:
    start = "THE USUAL MISTAKE: the chain of Jacobians multiplied elementwise\n"
    if told.diagnosis.verdict == "right":
        return f"{start}It shows from three steps on: only then does a share pass two Jacobians."
    right, wrong = told.right.steps("weight_ih"), told.wrong.steps("weight_ih")
    rows: list[tuple[str, ...]] = [("share in dW_ih", "right", "with the mistake")]
    for t in reversed(range(len(right))):
        cross = "" if words.same(right[t], wrong[t]) else "  ✗"
        rows.append((f"step {t + 1}", words.matrix(right[t]), words.matrix(wrong[t]) + cross))
    rows.append(("sum", words.matrix(right.sum(0)), words.matrix(wrong.sum(0)) + "  ✗"))
    line = "\n".join(f"    {line}" for line in told.diagnosis.lines)
    return (
        f"{start}{_table(rows)}\n\nfused_bptt.diagnose, given the numbers with the mistake, says:\n"
        f"{told.diagnosis.sentence}\n{line}"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(f"  {line}" for line in lines)
