"""``fused_bptt.diagnose``: which step and which factor of somebody's BPTT is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_lowercase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import words
from .given import Given, Layout, read
from .method import SEQUENCES, SUMS, Case, Method, Results
from .mistakes import Mistake, known
from .trace import Loss, check_module, sum_of_last, trace

#: Somebody's numbers by name, or a function ``(rnn, x, hx)`` that computes them.
Numbers = Mapping[str, Any] | Callable[[nn.RNNBase, Tensor, Tensor | None], Mapping[str, Any]]

#: Two mistakes at once are tried up to this many steps, with truncations up to the second number.
_PAIR_STEPS, _PAIR_WINDOW = 32, 3

#: What a table shows at most of an array.
_TABLE_STEPS, _TABLE_ROWS = 12, 8


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``str()`` of it is the answer to read."""

    verdict: Literal["right", "mistake", "ambiguous", "unknown"]
    """``"mistake"``: exactly one explanation fits; ``"ambiguous"``: several fit equally."""
    sentence: str
    """What is right, what is wrong from which step back, and what to do."""
    mistakes: tuple[tuple[str, ...], ...]
    """Each explanation that fits: the name of one mistake, or of two that were made together."""
    lines: tuple[str, ...]
    """The corrected lines, in Python with rows for vectors."""
    right_steps: tuple[int, ...]
    """Steps, 1 to T, whose shares are right, as far as that can be known."""
    wrong_steps: tuple[int, ...]
    """Steps whose shares are wrong; with no explanation and no shares given, both are empty."""
    notes: tuple[str, ...]
    """What was read otherwise than it was given."""
    table: str
    """The numbers side by side."""

    def __str__(self) -> str:
        """Sentence, notes, corrected lines and table."""
        parts = [self.sentence, *self.notes]
        parts += [f"    {line}" for line in self.lines]
        return "\n".join([*parts, "", self.table])


@dataclass(frozen=True)
class _Explanation:
    """Mistakes made together, and what they give."""

    mistakes: tuple[Mistake, ...]
    results: Results

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(mistake.name for mistake in self.mistakes)


def diagnose(
    rnn: nn.RNNBase,
    x: Tensor,
    numbers: Numbers,
    hx: Tensor | None = None,
    loss: Loss = sum_of_last,
    *,
    decimals: int | None = None,
) -> Diagnosis:
    """Finds what is wrong with gradients that were computed by hand.

    The numbers are compared with the right ones, and with those that each known mistake gives, and
    any two together. Whoever wants to be told the factor gives each step's shares: one total can be
    reached in more than one way.

    Args:
        rnn: the :class:`fused_bptt.RNN` or :class:`torch.nn.RNN` whose gradients they are.
        x: its input, as for :func:`fused_bptt.trace`.
        numbers: a mapping from names to arrays (tensors, NumPy arrays or lists), of one layer and
            direction; or a function of ``(rnn, x, hx)`` that returns one. A function that is right,
            or wrong in a way that these numbers leave open, is tried again on other weights,
            inputs and states of the same shapes. The names and shapes:

            - ``weight_ih_l0`` [H, I], ``weight_hh_l0`` [H, H], ``bias_ih_l0`` [H], ``bias_hh_l0``
              [H], and so for other layers: the gradient, or [T, ...] each step's share of it;
            - ``input``, of x's shape; ``hx`` [B, H];
            - ``delta`` (∂L/∂h_t) and ``q`` (∂L/∂z_t) [T, B, H], arranged as x is.

        hx: initial state. Default: zero.
        loss: ``loss(output, h_n)``. Default: the sum of h_n.
        decimals: how many decimals were written down. Default: seen from the numbers.

    Returns:
        The :class:`Diagnosis`.

    Raises:
        ValueError, TypeError: a name, a shape or an argument does not fit (name, expected, got).
    """
    if not callable(numbers):
        return _diagnose(rnn, x, numbers, hx, loss, decimals)
    found = _diagnose(rnn, x, numbers(rnn, x, hx), hx, loss, decimals)
    if found.verdict in ("mistake", "unknown"):
        return found
    harder = _harder(rnn, x, hx)
    there = _diagnose(harder[0], harder[1], numbers(*harder), harder[2], loss, decimals)
    if there.verdict == "right" or (found.verdict == "ambiguous" and there.verdict == "unknown"):
        return found
    if found.verdict == "right":
        said = "These numbers are right, but not those of other weights, inputs and h_0. "
        return replace(there, sentence=said + there.sentence)
    note = "Several mistakes give these numbers; other weights, inputs and h_0 told them apart."
    return replace(there, notes=(*there.notes, note))


def _diagnose(
    rnn: nn.RNNBase,
    x: Tensor,
    numbers: Mapping[str, Any],
    hx: Tensor | None,
    loss: Loss,
    decimals: int | None,
) -> Diagnosis:
    layer, reverse, suffix = _walk_of(rnn, numbers)
    traced = trace(rnn, x, hx, loss, layer=layer, reverse=reverse)
    T, B, I = traced.x.shape  # noqa: E741
    batched = x.dim() == 3
    layout = Layout(
        T, B, I, traced.h.size(2), batched, rnn.batch_first and batched, reverse, suffix
    )
    if rnn.bidirectional and "input" in numbers:
        raise ValueError(
            "input: expected an rnn of one direction, as two add up in the gradient of x, got two"
        )
    given = read(numbers, layout, rnn.weight_hh_l0.dtype, decimals)  # type: ignore[arg-type]
    case = Case.of(traced)
    found = _judge(case, given)
    if found.verdict == "unknown" and any(each.per_step for each in given):
        turned = [_turned(each) for each in given]
        other = _judge(case, turned)
        if other.verdict != "unknown":
            note = "Your steps are in the order of the backward pass, the last one first; read so."
            return replace(other, notes=(note, *other.notes))
    return found


def _judge(case: Case, given: list[Given]) -> Diagnosis:
    right = Method.right(case).results()
    notes = tuple(each.note for each in given if each.note)

    def said(
        verdict: Literal["right", "mistake", "ambiguous", "unknown"],
        sentence: str,
        explanations: Sequence[_Explanation] = (),
        wrong: Sequence[int] = (),
        seen: bool = True,
    ) -> Diagnosis:
        lines = [mistake.line for each in explanations for mistake in each.mistakes]
        return Diagnosis(
            verdict,
            sentence,
            tuple(each.names for each in explanations),
            tuple(dict.fromkeys(lines)),
            tuple(t for t in range(1, case.T + 1) if t not in wrong) if seen else (),
            tuple(wrong),
            notes,
            _table(given, right),
        )

    if _all_fit(given, right):
        count = sum(each.values.numel() for each in given)
        what = {1: "The number is", 2: "Both numbers are"}.get(count, f"All {count} numbers are")
        return said("right", f"{what} right.")
    explanations = _explanations(case, given)
    fine = [each.label for each in given if each.fits(_value(each, right))]
    off = [each for each in given if each.label not in fine]
    if not any(each.values.any() for each in off) and all(
        len(each.mistakes) > 1 for each in explanations
    ):
        named = words.join([each.label for each in off])
        zero = "is zero" if len(off) == 1 else "are zero"
        sentence = f"{named} {zero} in every number: was anything added there, and backward run?"
        return said("unknown", sentence, seen=False)
    if not explanations:
        wrong = _wrong_given(given, right)
        sentence = _unknown(case, given, right, wrong)
        return said("unknown", sentence, wrong=wrong, seen=any(each.per_step for each in given))
    start = f"{words.join(fine)} {'is' if len(fine) == 1 else 'are'} right. " if fine else ""
    wrong_of = [_wrong_modelled(each.results, right, off) for each in explanations]
    if len(explanations) == 1:
        sentence = start + _sentence(case, explanations[0], off)
        return said("mistake", sentence, explanations, wrong_of[0])
    common = sorted(set.intersection(*map(set, wrong_of)), reverse=True)
    readings = [
        f"({letter}) {_sentence(case, each, off)}"
        for letter, each in zip(ascii_lowercase, explanations, strict=False)
    ]
    sentence = (
        f"{start}{len(explanations)} explanations give exactly these numbers: {' '.join(readings)}"
        f"{_what_would_tell(given, explanations)}"
    )
    return said("ambiguous", sentence, explanations, common)


# What fits.


def _value(given: Given, results: Results) -> Tensor:
    return results.steps(given.name) if given.per_step else results.total(given.name)


def _all_fit(given: Sequence[Given], results: Results) -> bool:
    return all(each.fits(_value(each, results)) for each in given)


def _explanations(case: Case, given: Sequence[Given]) -> list[_Explanation]:
    """Single mistakes that give the numbers; where none does, pairs of them."""
    right = Method.right(case)
    mistakes = list(known(case))
    found: list[_Explanation] = []
    for mistake in mistakes:
        if not any(mistake.family == each.mistakes[0].family for each in found):
            results = mistake.apply(right).results()
            if _all_fit(given, results):
                found.append(_Explanation((mistake,), results))
    if found or case.T > _PAIR_STEPS or sum(each.values.numel() for each in given) < 2:
        return found
    families: set[frozenset[str]] = set()
    short = [mistake for mistake in mistakes if mistake.window <= _PAIR_WINDOW]
    for first, second in combinations(short, 2):
        family = frozenset((first.family, second.family))
        if first.changes.keys() & second.changes.keys() or family in families:
            continue
        results = second.apply(first.apply(right)).results()
        if _all_fit(given, results):
            families.add(family)
            found.append(_Explanation((first, second), results))
    return found


# Which steps.


def _wrong_given(given: Sequence[Given], right: Results) -> list[int]:
    """Steps, last first, at which the given rows differ; none where only totals are given."""
    wrong: set[int] = set()
    for each in given:
        if each.per_step:
            close = each.close(right.steps(each.name)).flatten(1).all(1)
            wrong |= {t + 1 for t, same in enumerate(close.tolist()) if not same}
    return sorted(wrong, reverse=True)


def _wrong_modelled(results: Results, right: Results, given: Sequence[Given]) -> list[int]:
    """Steps, last first, whose share or row the mistakes change in the gradients that are given."""
    wrong: set[int] = set()
    for each in given:
        name = "q" if each.name == "hx" else each.name
        theirs, ours = results.steps(name), right.steps(name)
        scale = ours.abs().max()
        apart = (theirs - ours).flatten(1).abs().amax(1) > 1e-10 * scale
        wrong |= {t + 1 for t, differs in enumerate(apart.tolist()) if differs}
    return sorted(wrong, reverse=True)


# What is said.


def _sentence(case: Case, explanation: _Explanation, given: Sequence[Given]) -> str:
    """What one explanation says of the arrays that are wrong."""
    right = Method.right(case)
    if len(explanation.mistakes) == 1:
        wrong = _wrong_modelled(explanation.results, right.results(), given)
        return _told(explanation.mistakes[0], wrong, case, _where(case, wrong))
    parts = []
    for mistake in explanation.mistakes:
        alone = _wrong_modelled(mistake.apply(right).results(), right.results(), given)
        where = f"from step {alone[0]} back, " if alone and alone[0] == len(alone) else ""
        parts.append(_told(mistake, alone, case, where).rstrip("."))
    return f"Two mistakes together: (1) {parts[0]}; (2) {parts[1]}."


def _told(mistake: Mistake, wrong: Sequence[int], case: Case, where: str) -> str:
    said = mistake.says(wrong[0] if wrong else case.T)
    if not mistake.by_step:
        where = ""
    return where + (words.capital(said) if where.endswith(". ") or not where else said)


def _where(case: Case, wrong: Sequence[int]) -> str:
    """Which steps are right, and the beginning of what is said of the others."""
    right = [t for t in range(1, case.T + 1) if t not in wrong]
    if not right:
        return "No step is right: "
    start = f"{words.capital(words.steps(right))} {'is' if len(right) == 1 else 'are'} right. "
    if not wrong:
        return start
    if wrong[0] == len(wrong):
        return f"{start}From step {wrong[0]} back, "
    return f"{start}In {words.steps(wrong)}, "


def _unknown(case: Case, given: Sequence[Given], right: Results, wrong: Sequence[int]) -> str:
    start = "No known mistake gives these numbers, alone or with another."
    if case.T > _PAIR_STEPS:
        start = "No known mistake gives these numbers."
    ratio = _ratio(given, right)
    if ratio is not None:
        return f"{start} Every number is {ratio:.6g} times the right one."
    if not wrong:
        named = words.join([each.label for each in given if not each.fits(_value(each, right))])
        return f"{start} {named}: wrong. Give each step's share, [T, ...], to see which step is."
    first = wrong[0]
    of = next(
        each
        for each in given
        if each.per_step and not each.close(right.steps(each.name))[first - 1].all()
    )
    before = [t for t in range(case.T, 0, -1) if t > first]
    are = "is" if len(before) == 1 else "are"
    opening = f" {words.capital(words.steps(before))} {are} right." if before else ""
    yours, theirs = of.values[first - 1], right.steps(of.name)[first - 1]
    return (
        f"{start}{opening} The first wrong step, from the last back, is step {first}: "
        f"{of.label} is {words.numbers(theirs)}, and yours {words.numbers(yours)}."
    )


def _ratio(given: Sequence[Given], right: Results) -> float | None:
    """The constant between all given numbers and the right ones, if there is one."""
    yours = torch.cat([each.values.flatten() for each in given])
    theirs = torch.cat([_value(each, right).flatten() for each in given])
    if len(yours) < 2 or not theirs.any():
        return None
    ratio = (yours @ theirs / (theirs @ theirs)).item()
    fits = all(each.fits(ratio * _value(each, right)) for each in given)
    return ratio if fits and ratio != 0 else None


def _what_would_tell(given: Sequence[Given], explanations: Sequence[_Explanation]) -> str:
    """Which other gradient differs between the explanations."""
    have = {(each.name, each.per_step) for each in given}
    for per_step in (False, True):
        for name in (*SUMS, *SEQUENCES):
            if (name, per_step or name in SEQUENCES) in have:
                continue
            values = [
                each.results.steps(name) if per_step else each.results.total(name)
                for each in explanations
            ]
            if not any(words.same(a, b) for a, b in combinations(values, 2)):
                what = f"each step's share of {name}" if per_step and name in SUMS else name
                return f" Your {what} would tell which."
    return (
        " Other weights, inputs or h_0 may tell which; a function in place of numbers tries them."
    )


def _table(given: Sequence[Given], right: Results) -> str:
    """Yours beside the right ones, a line for each row of an array; a cross where they differ."""
    rows = [("", "yours", "right")]
    for each in given:
        theirs, close = _value(each, right), each.close(_value(each, right))
        if not each.per_step:
            rows += _rows(each.label, each.values, theirs, close)
            continue
        for t in reversed(range(max(0, len(theirs) - _TABLE_STEPS), len(theirs))):
            rows += _rows(f"{each.label}, step {t + 1}", each.values[t], theirs[t], close[t])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _rows(label: str, yours: Tensor, right: Tensor, close: Tensor) -> list[tuple[str, str, str]]:
    if yours.size(-1) == 1 or yours.dim() == 1:  # a column is written as a row
        yours, right, close = (each.reshape(1, -1) for each in (yours, right, close))
    else:
        yours, right, close = (each.flatten(0, -2) for each in (yours, right, close))
    rows = []
    for i in range(min(len(yours), _TABLE_ROWS)):
        cross = "" if close[i].all() else "  ✗"
        cells = words.numbers(yours[i]) + cross, words.numbers(right[i])
        rows.append((label if i == 0 else "", *cells))
    return rows


# What is read.


def _turned(given: Given) -> Given:
    if not given.per_step:
        return given
    return replace(given, values=given.values.flip(0), rounding=given.rounding.flip(0))


def _walk_of(rnn: nn.RNNBase, numbers: Mapping[str, Any]) -> tuple[int, bool, str]:
    """The layer and direction whose parameters are named; the first layer where none is."""
    check_module(rnn)
    if not isinstance(numbers, Mapping):
        raise TypeError(f"numbers: expected a mapping of names, got {type(numbers).__qualname__}")
    suffixes = {}
    for layer in range(rnn.num_layers):
        for reverse in (False, True) if rnn.bidirectional else (False,):
            suffixes[f"_l{layer}{'_reverse' if reverse else ''}"] = (layer, reverse)
    named = {
        suffix
        for label in numbers
        for suffix in suffixes
        if label in {f"{name}{suffix}" for name in SUMS}
    }
    if len(named) > 1:
        raise ValueError(
            f"numbers: expected one layer and direction at a time, got {', '.join(sorted(named))}"
        )
    suffix = named.pop() if named else "_l0"
    return (*suffixes[suffix], suffix)


def _harder(rnn: nn.RNNBase, x: Tensor, hx: Tensor | None) -> tuple[nn.RNNBase, Tensor, Tensor]:
    """Weights, input and state of the same shapes in which no number is zero or twice there."""
    twin = copy.deepcopy(rnn)
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Sequence[int], like: Tensor) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 1.2 - 0.6).to(like)

    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(draw(parameter.shape, parameter))
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    batch = () if x.dim() == 2 else (x.size(0 if rnn.batch_first else 1),)
    shape = (states, *batch, rnn.hidden_size) if hx is None else hx.shape
    return twin, draw(x.shape, x), draw(shape, x)
