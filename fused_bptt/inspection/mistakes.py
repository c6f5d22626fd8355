"""The known mistakes of BPTT by hand, each as a change of the right method.

docs/design.md, section 6, shows most of them on one example. They were collected from questions
that people asked: discuss.pytorch.org topics 161390 (the elementwise chain), 187917 (1 - z²) and
15500 (gradients kept across windows), stats.stackexchange.com question 551574 (the side of diag).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from . import words
from .method import Case, Method, carried
from .words import sub


@dataclass(frozen=True)
class Mistake:
    """One way to be wrong."""

    name: str
    """A few words; unique."""
    family: str
    """Readings of one mistake, of which the first that fits is told, have one family."""
    changes: dict[str, Any]
    """Pieces of the :class:`Method`."""
    says: Callable[[int], str]
    """What was done and what to do, given the first wrong step, from the last one back."""
    line: str
    """The corrected line, in Python with rows for vectors, as in docs/design.md, section 8."""
    window: int = 0
    """Steps of a truncation; 0 for others."""
    by_step: bool = True
    """Whether a step's share is wrong in itself, and not only what is made of the shares."""

    def apply(self, method: Method) -> Method:
        """The method with this mistake in it."""
        return method.changed(**self.changes)


def known(case: Case) -> Iterator[Mistake]:
    """Every known mistake that this case's sizes and nonlinearity allow."""
    yield from _chains(case)
    yield from _slopes(case)
    yield from _losses(case)
    yield from _neighbours(case)
    yield from _biases()
    yield from _truncations(case)
    yield from _factors(case)


def _always(text: str) -> Callable[[int], str]:
    """The same words from whichever step."""
    return lambda t: text


def _sweep_line(case: Case) -> str:
    return f"q[t] = {words.slope_code(case.nonlinearity)} * (g[t] + q[t+1] @ W_hh)"


# The chain of Jacobians.


def _vectors_elementwise(case: Case, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """From the third-last step back, c ⊙ (φ' W_hh) where (c ⊙ φ') W_hh is right."""
    delta, later = torch.empty_like(g), torch.zeros_like(g[0])
    for t in range(case.T - 1, -1, -1):
        delta[t] = g[t] + later
        later = (slope[t] * g[t]) @ case.W_hh + later * (slope[t] @ case.W_hh)
    return delta, slope * delta


def _matrices_elementwise(case: Case, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """∂h_T/∂h_t as J_T ⊙ ... ⊙ J_{t+1}; the rows of the product are weighted by each g."""
    delta = torch.empty_like(g)
    weighted = g.new_zeros(*g.shape[1:], g.size(2))  # [B, H, H]
    for t in range(case.T - 1, -1, -1):
        delta[t] = g[t] + weighted.sum(1)
        weighted = slope[t][:, :, None] * case.W_hh * (weighted + g[t][:, :, None])
    return delta, slope * delta


def _wrong_order(case: Case, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """J_{t+1} ... J_T in place of J_T ... J_{t+1}."""
    delta = g.clone()
    for s in range(1, case.T):
        if not g[s].any():
            continue
        product = None
        for t in range(s, 0, -1):
            jacobian = slope[t][:, :, None] * case.W_hh
            product = jacobian if product is None else jacobian @ product
            delta[t - 1] += torch.einsum("bh,bhk->bk", g[s], product)
    return delta, slope * delta


def _slope_too_early(case: Case, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """J_t as W_hh diag(φ'(z_t)) in place of diag(φ'(z_t)) W_hh."""
    delta = g.clone()
    for t in range(case.T - 1, 0, -1):
        delta[t - 1] += slope[t] * (delta[t] @ case.W_hh)
    return delta, slope * delta


def _slope_inside(case: Case, slope: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """q_t = φ' ⊙ g_t + W_hhᵀ (φ' ⊙ q_{t+1})."""
    delta, q = g.clone(), slope * g
    for t in range(case.T - 2, -1, -1):
        delta[t] += q[t + 1] @ case.W_hh
        q[t] += (slope[t] * q[t + 1]) @ case.W_hh
    return delta, q


def _chains(case: Case) -> Iterator[Mistake]:
    line = _sweep_line(case)
    name = case.nonlinearity

    def carry(t: int) -> str:
        """The step that should be carried."""
        later = f"q{sub(t + 1)} W_hh"
        if case.g[t - 1].any():
            later = f"g{sub(t)} + {later}"
        return f"carry q{sub(t)} = ({later}) ⊙ {words.slope(name, t)} and multiply that by W_hh."

    def elementwise(t: int) -> str:
        return (
            f"the product {words.slope(name, t + 2)}W_hh was multiplied elementwise by "
            f"{words.slope(name, t + 1)}W_hh; {carry(t + 1)}"
        )

    def matrices(t: int) -> str:
        return (
            f"the Jacobians J{sub(t + 2)} and J{sub(t + 1)}, J_t = diag(φ'(z_t)) W_hh, were "
            f"multiplied elementwise and not as matrices; {carry(t + 1)}"
        )

    yield Mistake(
        "chain multiplied elementwise",
        "elementwise",
        {"sweep": _vectors_elementwise},
        elementwise,
        line,
    )
    yield Mistake(
        "Jacobians multiplied elementwise",
        "elementwise matrices",
        {"sweep": _matrices_elementwise},
        matrices,
        line,
    )
    yield Mistake(
        "Jacobians in the wrong order",
        "order",
        {"sweep": _wrong_order},
        lambda t: (
            f"the Jacobians were multiplied in the wrong order, J{sub(t + 1)} J{sub(t + 2)} "
            f"in place of J{sub(t + 2)} J{sub(t + 1)}: the later step stands on the left; "
            + carry(t + 1)
        ),
        line,
    )
    yield Mistake(
        "W_hh not transposed",
        "transpose",
        {"sweep": partial(carried, W=case.W_hh.T)},
        lambda t: (
            f"q{sub(t + 1)} was carried back through W_hh and not through its transpose; "
            "W_hhᵀ q with columns is q @ W_hh with rows."
        ),
        line,
    )
    yield Mistake(
        "diag on the wrong side",
        "diag",
        {"sweep": _slope_too_early},
        lambda t: (
            f"the slope {words.slope(name, t + 1)} multiplied after W_hhᵀ and not before it: "
            f"the Jacobian is diag(φ'(z{sub(t + 1)})) W_hh and not W_hh diag(φ'(z{sub(t + 1)})); "
            f"δ{sub(t)} = g{sub(t)} + W_hhᵀ ({words.slope(name, t + 1)} ⊙ δ{sub(t + 1)})."
        ),
        line,
    )
    yield Mistake(
        "slope inside the product with W_hh",
        "diag inside",
        {"sweep": _slope_inside},
        lambda t: (
            f"the slope {words.slope(name, t)} multiplied q{sub(t + 1)} before W_hhᵀ; it is "
            f"the last factor: q{sub(t)} = {words.slope(name, t)} ⊙ "
            f"(g{sub(t)} + W_hhᵀ q{sub(t + 1)})."
        ),
        line,
    )
    yield Mistake(
        "W_hh gradient transposed",
        "transposed",
        {"transposed": True},
        _always(
            "the gradient of W_hh is transposed: the row of a weight is the unit that "
            "receives, so a share is q_t h_{t-1}ᵀ and not h_{t-1} q_tᵀ."
        ),
        "dW_hh += q[t].T @ h[t-1]",
        by_step=False,
    )


# The slope φ'.


def _slopes(case: Case) -> Iterator[Mistake]:
    line = _sweep_line(case)
    ones = torch.ones_like(case.slope)
    if case.nonlinearity == "tanh":
        yield Mistake(
            "1 - z² for the slope",
            "z",
            {"slope": 1 - case.z**2},
            lambda t: (
                f"the slope was taken as 1-z{sub(t)}²; tanh'(z) = 1-tanh²(z), which is "
                f"1-h{sub(t)}²."
            ),
            line,
        )
        yield Mistake(
            "1 - tanh(h)² for the slope",
            "tanh of h",
            {"slope": 1 - case.h.tanh() ** 2},
            lambda t: (
                f"the slope was taken at h{sub(t)} and not at z{sub(t)}: h is tanh(z) "
                f"already, so tanh'(z{sub(t)}) = 1-h{sub(t)}²."
            ),
            line,
        )
    else:
        at_zero = case.z == 0
        for value, said in ((1.0, "1"), (0.5, "½")):
            yield Mistake(
                f"relu' at 0 taken as {said}",
                f"relu {said}",
                {"slope": torch.where(at_zero, value, case.slope)},
                _always(f"relu'(0) was taken as {said}; torch takes 0 there."),
                line,
            )
    yield Mistake(
        "slope left out",
        "no slope",
        {"slope": ones},
        lambda t: f"the slope {words.slope(case.nonlinearity, t)} was left out.",
        line,
    )
    last = case.slope.clone()
    last[-1] = 1
    yield Mistake(
        "slope left out at the last step",
        "no last slope",
        {"slope": last},
        lambda t: (
            f"the slope of the last step was left out: q{sub(case.T)} = "
            f"{words.slope(case.nonlinearity, case.T)} ⊙ g{sub(case.T)} and not g{sub(case.T)}."
        ),
        line,
    )
    yield Mistake(
        "δ in place of q in the shares",
        "delta",
        {"delta_for_q": True},
        lambda t: (
            f"the share was made of δ{sub(t)} = ∂L/∂h{sub(t)}; the weights meet "
            f"z{sub(t)}, so it is made of q{sub(t)} = {words.slope(case.nonlinearity, t)} "
            f"⊙ δ{sub(t)}."
        ),
        "dW_ih += q[t].T @ x[t]; dW_hh += q[t].T @ h[t-1]; db += q[t].sum(0)",
    )


# What the loss asks for.


def _losses(case: Case) -> Iterator[Mistake]:
    last = torch.zeros_like(case.g)
    last[-1] = case.g[-1]
    yield Mistake(
        "loss on h_T alone",
        "loss",
        {"g": last},
        lambda t: (
            f"g{sub(t)} was left out: the loss reads h{sub(t)} itself, not only the last state."
        ),
        "delta[t] = g[t] + q[t+1] @ W_hh  # at every step",
    )
    yield Mistake(
        "loss on all h_t",
        "loss",
        {"g": case.g[-1].expand_as(case.g)},
        lambda t: (
            f"h{sub(t)} was given what the loss asks of h{sub(case.T)}; here it asks it of "
            "the last state alone."
        ),
        "delta[t] = g[t] + q[t+1] @ W_hh  # g[t] = 0 where the loss does not read h[t]",
    )


# Which step's state and input meet q_t.


def _neighbours(case: Case) -> Iterator[Mistake]:
    line = "dW_hh += q[t].T @ h[t-1]"
    yield Mistake(
        "h_t in place of h_{t-1}",
        "state",
        {"states": case.h},
        _always("dW_hh was made with h_t; in z_t the weight meets the state before it, h_{t-1}."),
        line,
    )
    wrapped = torch.cat([case.h[-1:], case.h[:-1]])
    yield Mistake(
        "h[-1] in place of h_0",
        "wrapped state",
        {"states": wrapped},
        lambda t: (
            f"the share of step 1 in dW_hh was made with h{sub(case.T)}: in Python, h[t-1] "
            "at t = 0 is the last state. It is made with h_0."
        ),
        line + "  # with h[0] the initial state",
    )
    without = case.h_prev.clone()
    without[0] = 0
    yield Mistake(
        "h_0 left out",
        "no initial state",
        {"states": without},
        _always("the share of step 1 in dW_hh is q₁ h₀ᵀ, and it was left out."),
        line,
    )
    zero = torch.zeros_like(case.x[:1])
    for name, family, shifted, said in (
        ("x_{t-1} in place of x_t", "earlier x", torch.cat([zero, case.x[:-1]]), "x_{t-1}"),
        ("x_{t+1} in place of x_t", "later x", torch.cat([case.x[1:], zero]), "x_{t+1}"),
        ("x[t-1] in place of x_t, round the end", "round x", case.x.roll(1, 0), "x[t-1]"),
    ):
        yield Mistake(
            name,
            family,
            {"inputs": shifted},
            _always(
                f"q_t was multiplied by {said}; z_t contains x_t, so its "
                "share in dW_ih is q_t x_tᵀ."
            ),
            "dW_ih += q[t].T @ x[t]",
        )


def _biases() -> Iterator[Mistake]:
    line = "db_ih += q[t].sum(0); db_hh += q[t].sum(0)"
    both = "both biases are added in z_t, so each receives all of Σ_t q_t."
    for piece in ("bias_ih", "bias_hh"):
        for factor, done in ((0.0, "missing"), (2.0, "doubled")):
            yield Mistake(
                f"{piece} gradient {done}",
                f"{piece} {done}",
                {piece: factor},
                _always(f"the gradient of {piece} is {done}: {both}"),
                line,
                by_step=False,
            )
    for factor, done in ((2.0, "doubled"), (0.5, "shared out between the two")):
        yield Mistake(
            f"bias gradients {done}",
            f"biases {done}",
            {"bias_ih": factor, "bias_hh": factor},
            _always(f"the gradients of the biases are {done}: {both}"),
            line,
            by_step=False,
        )


# What is cut off, and what is kept too long.


def _windows(T: int) -> list[int]:
    """Truncation lengths that are tried: every short one, and the round ones that people take."""
    round_ones = (35, 40, 50, 64, 70, 75, 80, 100, 128, 150, 200, 250, 256, 500, 512, 1000)
    return [*range(1, min(T, 33)), *(k for k in round_ones if k < T)]


def _last_steps(case: Case, slope: Tensor, g: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The sweep stops k steps before the end."""
    delta, q = carried(case, slope, g)
    inside = (torch.arange(case.T) >= case.T - window)[:, None, None]
    return delta * inside, q * inside


def _each_loss(case: Case, slope: Tensor, g: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """What each g_s asks goes back k steps, its own among them."""
    delta, part = g.clone(), g
    for _ in range(window - 1):
        part = torch.cat([(slope[1:] * part[1:]) @ case.W_hh, torch.zeros_like(g[:1])])
        delta = delta + part
    return delta, slope * delta


def _inside(case: Case, window: int) -> Tensor:
    """[T] False at the last step of every window of k."""
    return (torch.arange(case.T) + 1) % window != 0


def _truncations(case: Case) -> Iterator[Mistake]:
    line = "for t in reversed(range(T)):  # all of them"
    for k in _windows(case.T):
        if k == 1:
            said = "the past was taken as a constant: nothing was carried back from a later step."
        else:
            said = (
                f"the gradient was truncated after {k} steps; the loss reaches every step before. "
                f"(Truncation is a choice, and then a right one: compare with windows of {k}.)"
            )

        for name, sweep in (("stopped", _last_steps), ("each loss", _each_loss)):
            yield Mistake(
                f"truncated after {k} steps ({name})",
                f"truncated {k}",
                {"sweep": partial(sweep, window=k)},
                _always(said),
                line,
                k,
            )
        keep = _inside(case, k)
        yield Mistake(
            f"truncated after {k} steps (windows)",
            f"truncated {k}",
            {"sweep": partial(carried, keep=keep)},
            _always(
                f"the state was detached between windows of {k}: nothing was carried back from "
                "one window to the one before. (That is a choice, and then a right one.)"
                if k > 1
                else said
            ),
            line,
            k,
        )
        count = -(-case.T // k)
        times = (count - torch.arange(case.T) // k).double()
        detached = {"sweep": partial(carried, keep=keep), "times": times}
        earlier = case.g[: (count - 1) * k].any()  # else only the last window has a gradient
        for name, changes in (("detached", detached), ("kept", {"times": times})):
            if name == "detached" and not earlier:
                continue
            yield Mistake(
                f"stale gradient, windows of {k} ({name})",
                f"stale {k}",
                changes,
                _always(
                    f"the gradient was not cleared between windows (here of {k}), so the share of "
                    "an earlier window is in every later one again."
                ),
                "optimizer.zero_grad()  # before each window's backward()",
                k,
            )


# Factors.


def _factors(case: Case) -> Iterator[Mistake]:
    B, H = case.h.shape[1:]
    sizes = {name: size for name, size in (("T", case.T), ("B", B), ("H", H)) if size > 1}
    readings: dict[int, list[str]] = {}
    for count in (1, 2, 3):
        for names in combinations(sizes, count):
            size = math.prod(sizes[name] for name in names)
            readings.setdefault(size, []).append(f"{'·'.join(names)} = {size}")
    for size, said in readings.items():
        named = words.join(said, "or")
        averaged = " (the batch averaged)" if size == B else ""
        yield Mistake(
            f"divided by {size}",
            f"divided {size}",
            {"scale": 1 / size},
            _always(
                f"every number is the right one divided by "
                f"{named}: a mean{averaged} was taken where the loss has a sum."
            ),
            "loss = output.sum()  # or divide the loss, and not its gradient",
            by_step=False,
        )
        also = ", or backward() ran twice without zero_grad()" if size == 2 else ""
        yield Mistake(
            f"times {size}",
            f"times {size}",
            {"scale": float(size)},
            _always(
                f"every number is the right one times {named}: a sum "
                f"was taken where the loss has a mean{also}."
            ),
            "loss = output.mean()",
            by_step=False,
        )
    if 2 not in readings:
        yield Mistake(
            "times 2",
            "times 2",
            {"scale": 2.0},
            _always(
                "every number is twice the right one: backward() ran twice without "
                "zero_grad(), or the ½ of a squared error was left out."
            ),
            "optimizer.zero_grad()",
            by_step=False,
        )
    yield Mistake(
        "wrong sign",
        "sign",
        {"scale": -1.0},
        _always(
            "every number has the wrong sign: the gradient points uphill, and the step goes "
            "against it."
        ),
        "W -= lr * dW  # and dW itself has no minus",
        by_step=False,
    )
