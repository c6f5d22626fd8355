"""fused_bptt.diagnose: every known mistake is made on purpose and named; nothing else is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from helpers import raised
from torch import Tensor, nn

import fused_bptt
from fused_bptt import Diagnosis, diagnose
from fused_bptt.inspection.method import SUMS, Case, Method, Results
from fused_bptt.inspection.mistakes import Mistake, known
from fused_bptt.inspection.trace import trace

STEPS, ROWS, INPUTS, HIDDEN = 5, 2, 3, 4
SUFFIX = "_l0"


def every_output(output: Tensor, h_n: Tensor) -> Tensor:
    """Asks something else of every state."""
    weights = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).cos()
    return (output * weights).sum() + output.square().sum()


def generic(nonlinearity: str) -> tuple[nn.RNN, Tensor, Tensor]:
    """Nothing is zero, equal or symmetric, so that every mistake shows."""
    torch.manual_seed(0)
    rnn = nn.RNN(INPUTS, HIDDEN, nonlinearity=nonlinearity, dtype=torch.float64)
    x = torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)
    hx = torch.randn(1, ROWS, HIDDEN, dtype=torch.float64)
    if nonlinearity == "relu":  # a state that is 0 at a step with an exact z
        with torch.no_grad():
            for parameter in rnn.parameters():
                parameter[0] = 0
    return rnn, x, hx


@functools.cache
def case_of(nonlinearity: str) -> Case:
    rnn, x, hx = generic(nonlinearity)
    return Case.of(trace(rnn, x, hx, every_output))


def totals(results: Results) -> dict[str, Any]:
    return {name + SUFFIX: results.total(name) for name in SUMS}


def shares(results: Results) -> dict[str, Any]:
    return {name + SUFFIX: results.steps(name) for name in SUMS}


def found_with(nonlinearity: str, numbers: Mapping[str, Any], **options: Any) -> Diagnosis:
    rnn, x, hx = generic(nonlinearity)
    return diagnose(rnn, x, numbers, hx, every_output, **options)


ALL = [
    (nonlinearity, mistake)
    for nonlinearity in ("tanh", "relu")
    for mistake in known(case_of(nonlinearity))
]


def by_name(nonlinearity: str, name: str) -> Mistake:
    return next(mistake for kind, mistake in ALL if (kind, mistake.name) == (nonlinearity, name))


def family(nonlinearity: str, names: tuple[str, ...]) -> set[str]:
    return {by_name(nonlinearity, name).family for name in names}


@pytest.mark.parametrize(
    ("nonlinearity", "mistake"), ALL, ids=[f"{kind}-{mistake.name}" for kind, mistake in ALL]
)
@pytest.mark.parametrize("given", [totals, shares])
def test_each_mistake_is_named(nonlinearity: str, mistake: Mistake, given: Any) -> None:
    results = mistake.apply(Method.right(case_of(nonlinearity))).results()
    found = found_with(nonlinearity, given(results))
    assert found.verdict == "mistake", found
    (names,) = found.mistakes
    assert family(nonlinearity, names) == {mistake.family}, found
    assert mistake.line in found.lines
    assert found.wrong_steps
    assert "✗" in found.table


def test_names_are_unique_and_every_mistake_shows_in_this_case() -> None:
    for nonlinearity in ("tanh", "relu"):
        case = case_of(nonlinearity)
        right = Method.right(case).results()
        mistakes = list(known(case))
        assert len({mistake.name for mistake in mistakes}) == len(mistakes)
        for mistake in mistakes:
            wrong = mistake.apply(Method.right(case)).results()
            assert any((right.total(n) - wrong.total(n)).abs().max() > 1e-6 for n in SUMS)


def test_the_list_of_the_issue_is_complete() -> None:
    names = "\n".join(mistake.name for _, mistake in ALL)
    for wanted in (
        "chain multiplied elementwise",
        "W_hh not transposed",
        "diag on the wrong side",
        "1 - z² for the slope",
        "bias_ih gradient missing",
        "bias_hh gradient doubled",
        "truncated after 3 steps",
        "h_t in place of h_{t-1}",
        "loss on h_T alone",
        "divided by",
        "x_{t-1} in place of x_t",
        "x_{t+1} in place of x_t",
        "stale gradient",
        f"divided by {ROWS}",
        "relu' at 0 taken as 1",
    ):
        assert wanted in names


def test_loss_on_all_states_where_it_reads_the_last() -> None:
    rnn, x, hx = generic("tanh")
    case = Case.of(trace(rnn, x, hx))
    wrong = next(each for each in known(case) if each.name == "loss on all h_t")
    numbers = totals(wrong.apply(Method.right(case)).results())
    assert diagnose(rnn, x, numbers, hx).mistakes == (("loss on all h_t",),)


def test_the_right_method_is_written_again_independently() -> None:
    """The mistakes are changes of `Method.right`, which has to be autograd's."""
    for nonlinearity in ("tanh", "relu"):
        rnn, x, hx = generic(nonlinearity)
        x.requires_grad_()
        every_output(*rnn(x, hx)).backward()
        numbers: dict[str, Any] = {name + SUFFIX: getattr(rnn, name + SUFFIX).grad for name in SUMS}
        numbers["input"] = x.grad
        found = diagnose(rnn, x, numbers, hx, every_output)
        assert found.verdict == "right"
        assert found.right_steps == (1, 2, 3, 4, 5)
        assert str(found).startswith("All ")


PAIRS = [
    (first, second)
    for first, second in combinations(
        [mistake for kind, mistake in ALL if kind == "tanh" and mistake.window in (0, 2)], 2
    )
    if first.family != second.family and not first.changes.keys() & second.changes.keys()
]


@pytest.mark.parametrize(
    ("first", "second"), PAIRS[::11], ids=[f"{a.name}+{b.name}" for a, b in PAIRS[::11]]
)
def test_two_mistakes_are_not_taken_for_one(first: Mistake, second: Mistake) -> None:
    results = second.apply(first.apply(Method.right(case_of("tanh")))).results()
    found = found_with("tanh", totals(results))
    families = [family("tanh", names) for names in found.mistakes]
    expected = {first.family, second.family}
    assert expected in families or equal_to_one(results, families), found
    if expected in families:
        assert found.verdict == ("mistake" if len(families) == 1 else "ambiguous")


def equal_to_one(results: Results, families: list[set[str]]) -> bool:
    """Two factors may undo each other, or make a third: then the numbers are those of one."""
    right = Method.right(case_of("tanh")).results()
    same = all(torch.allclose(results.total(name), right.total(name)) for name in SUMS)
    return same or any(len(each) == 1 for each in families)


def test_three_mistakes_are_not_named() -> None:
    method = Method.right(case_of("tanh"))
    for name in ("1 - z² for the slope", "h_t in place of h_{t-1}", "W_hh not transposed"):
        method = by_name("tanh", name).apply(method)
    found = found_with("tanh", shares(method.results()))
    assert (found.verdict, found.mistakes) == ("unknown", ())
    assert "No known mistake gives these numbers, alone or with another" in found.sentence
    assert "The first wrong step, from the last back, is step 5" in found.sentence


def test_nothing_known_fits() -> None:
    right = Method.right(case_of("tanh")).results()
    numbers = shares(right)
    numbers["weight_ih_l0"][2] += 0.01  # step 3
    found = found_with("tanh", {"weight_ih_l0": numbers["weight_ih_l0"]})
    assert found.verdict == "unknown"
    assert "Steps 5 and 4 are right. The first wrong step, from the last back, is step 3" in (
        found.sentence
    )
    assert found.wrong_steps == (3,)
    assert found.right_steps == (1, 2, 4, 5)
    total = found_with("tanh", {"weight_ih_l0": numbers["weight_ih_l0"].sum(0)})
    assert total.verdict == "unknown"
    assert total.right_steps == total.wrong_steps == ()
    assert "Give each step's share" in total.sentence


@pytest.mark.parametrize("given", [totals, shares])
def test_all_zeros_are_no_two_mistakes(given: Callable[[Results], dict[str, Any]]) -> None:
    numbers = given(Method.right(case_of("tanh")).results())
    zeros = {"weight_ih_l0": torch.zeros_like(numbers["weight_ih_l0"])}
    found = found_with("tanh", zeros | {"bias_hh_l0": numbers["bias_hh_l0"]})
    assert found.verdict == "unknown"
    assert found.mistakes == ()
    assert found.sentence.startswith("weight_ih_l0 is zero in every number: was anything added")


def test_a_constant_factor_that_is_no_size_is_said() -> None:
    right = Method.right(case_of("tanh")).results()
    numbers = {name: 0.37 * value for name, value in totals(right).items()}
    assert "Every number is 0.37 times the right one" in found_with("tanh", numbers).sentence


# The worked case, and that of the forum.

X = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)


def small(W_ih: Any, W_hh: Any, b_ih: Any, b_hh: Any, dtype: torch.dtype) -> nn.RNN:
    rnn = nn.RNN(1, 2, batch_first=True, dtype=dtype)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.tensor(W_ih)[:, None])
        rnn.weight_hh_l0.copy_(torch.tensor(W_hh))
        rnn.bias_ih_l0.copy_(torch.tensor(b_ih))
        rnn.bias_hh_l0.copy_(torch.tensor(b_hh))
    return rnn


def worked() -> nn.RNN:
    """That of docs/design.md, section 5."""
    return small([0.5, -0.2], [[0.4, -0.3], [0.6, 0.2]], [0, 0], [0, 0], torch.float64)


def forum(dtype: torch.dtype) -> nn.RNN:
    """Weights with which the forum's four numbers come out; the post does not give its own."""
    return small(
        [0.4891, 0.6721],
        [[0.1199, 0.3762], [-0.3212, -0.0536]],
        [-0.4602, -0.0612],
        [0.1094, -0.1501],
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_case_of_the_forum(dtype: torch.dtype) -> None:
    """discuss.pytorch.org/t/161390: 0.5162, 0.5511 by hand, 0.5053, 0.5356 by torch."""
    rnn, x = forum(dtype), X.to(dtype)
    rnn(x)[1].sum().backward()
    assert [round(value, 4) for value in rnn.weight_ih_l0.grad.flatten().tolist()] == [
        0.5053,
        0.5356,
    ]
    found = diagnose(rnn, x, {"weight_ih_l0": [0.5162, 0.5511]})
    assert found.mistakes == (("chain multiplied elementwise",),)
    assert (found.right_steps, found.wrong_steps) == ((2, 3), (1,))
    assert found.sentence == (
        "Steps 3 and 2 are right. From step 1 back, the product (1-h₃²)W_hh was multiplied "
        "elementwise by (1-h₂²)W_hh; carry q₂ = (q₃ W_hh) ⊙ (1-h₂²) and multiply that by W_hh."
    )
    assert found.lines == ("q[t] = (1 - h[t]**2) * (g[t] + q[t+1] @ W_hh)",)
    assert found.table.splitlines()[1] == "weight_ih_l0  0.5162, 0.5511  ✗  0.5053, 0.5356"


def as_in_the_forum(rnn: nn.RNNBase, x: Tensor, hx: Tensor | None) -> dict[str, Tensor]:
    """Written out by hand for three steps, as it was asked about."""
    W_ih, W_hh = rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach()  # type: ignore[union-attr]
    b = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()  # type: ignore[operator]
    h_0 = torch.zeros(1, 2).to(W_hh) if hx is None else hx
    h_1 = torch.tanh(x[0] @ W_ih.T + b + h_0 @ W_hh.T)
    h_2 = torch.tanh(x[1] @ W_ih.T + b + h_1 @ W_hh.T)
    h_3 = torch.tanh(x[2] @ W_ih.T + b + h_2 @ W_hh.T)
    step_3 = (1 - h_3**2) * x[2]
    step_2 = ((1 - h_3**2) @ W_hh) * (1 - h_2**2) * x[1]
    step_1 = ((1 - h_3**2) @ W_hh) * ((1 - h_2**2) @ W_hh) * (1 - h_1**2) * x[0]
    return {"weight_ih_l0": torch.stack([step_1.T, step_2.T, step_3.T])}


def test_a_function_is_called() -> None:
    found = diagnose(forum(torch.float64), X, as_in_the_forum)
    assert found.mistakes == (("chain multiplied elementwise",),)
    assert "weight_ih_l0, step 1" in found.table


@pytest.mark.parametrize(
    ("mistake", "numbers"),
    [  # the table of docs/design.md, section 6: dW_ih, and the first row of dW_hh
        ("Jacobians multiplied elementwise", (0.8927, 3.3256, 0.1563, -0.0491)),
        ("Jacobians in the wrong order", (0.6883, 3.2897, 0.1563, -0.0491)),
        ("W_hh not transposed", (0.0353, 3.4447, 0.0402, 0.0004)),
        ("slope inside the product with W_hh", (1.7249, 3.2203, 0.3449, -0.1297)),
        ("1 - z² for the slope", (-6.7122, 4.9450, -2.0579, 0.3648)),
        ("slope left out at the last step", (3.6096, 2.7048, 0.9775, -0.2167)),
        ("h_t in place of h_{t-1}", (0.7522, 3.2674, 0.2960, -0.0658)),
        ("truncated after 1 steps (stopped)", (0.2634, 2.9542, 0.0743, -0.0141)),
    ],
)
def test_the_table_of_the_design(mistake: str, numbers: tuple[float, ...]) -> None:
    case = Case.of(trace(worked(), X))
    made = next(each for each in known(case) if each.name == mistake)
    results = made.apply(Method.right(case)).results()
    got = [*results.total("weight_ih").flatten().tolist(), *results.total("weight_hh")[0].tolist()]
    assert [round(value, 4) for value in got] == list(numbers)


def test_several_that_fit_equally_are_all_told_and_what_would_tell() -> None:
    """With h_0 = 0, the share of step 1 in dW_hh does not show what is wrong with it."""
    rnn = worked()
    case = Case.of(trace(rnn, X))
    by_names = {each.name: each for each in known(case)}
    wrong = by_names["truncated after 2 steps (stopped)"].apply(Method.right(case)).results()
    assert diagnose(rnn, X, {"weight_hh_l0": wrong.total("weight_hh")}).verdict == "right"
    halved = by_names["bias gradients shared out between the two"]
    half = halved.apply(Method.right(case)).results()
    found = diagnose(rnn, X, {"bias_ih_l0": half.total("bias_ih")})
    assert found.verdict == "ambiguous"
    assert set(found.mistakes) == {
        ("bias gradients shared out between the two",),
        ("divided by 2",),
    }
    assert "2 explanations give exactly these numbers: (a)" in found.sentence
    assert "Your weight_ih would tell which." in found.sentence
    told = diagnose(
        rnn,
        X,
        {"bias_ih_l0": half.total("bias_ih"), "weight_ih_l0": half.total("weight_ih")},
    )
    assert told.mistakes == (("bias gradients shared out between the two",),)
    assert told.sentence.startswith("weight_ih_l0 is right. ")


def by_hand(W: str = "W_hh", first: str = "h0") -> Any:
    """A function that computes all sums, with what is carried and what step 1 meets as said."""

    def compute(rnn: nn.RNNBase, x: Tensor, hx: Tensor | None) -> dict[str, Tensor]:
        found = trace(rnn, x, hx)
        matrix = found.W_hh if W == "W_hh" else found.W_hh.T
        q, later = [], torch.zeros_like(found.h0)
        for t in reversed(range(found.T)):
            q.insert(0, found.slope[t] * (found.g[t] + later))
            later = q[0] @ matrix
        states = found.h_prev.clone()
        if first == "zero":
            states[0] = 0
        sums = torch.stack(q).flatten(0, 1).T
        return {
            "weight_ih_l0": sums @ found.x.flatten(0, 1),
            "weight_hh_l0": sums @ states.flatten(0, 1),
        }

    return compute


def test_a_function_that_is_right_here_alone_is_found_out() -> None:
    assert diagnose(worked(), X, by_hand()).verdict == "right"
    found = diagnose(worked(), X, by_hand(first="zero"))
    assert found.mistakes == (("h_0 left out",),)
    assert found.sentence.startswith(
        "These numbers are right, but not those of other weights, inputs and h_0. "
    )


def test_a_function_is_tried_again_where_one_case_leaves_it_open() -> None:
    rnn = worked()
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.eye(2) / 2)  # its own transpose, and order does not matter
    assert diagnose(rnn, X, by_hand(W="transposed")).mistakes == (("W_hh not transposed",),)


# The mistakes as people write them: their code, and nothing of fused_bptt.


def loop(rnn: nn.RNN, x: Tensor, hx: Tensor | None, **wrong: Any) -> dict[str, Tensor]:
    """BPTT of the sum of all states, in plain code with one thing wrong."""
    W_ih, W_hh = rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach()
    b = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
    phi = torch.tanh if rnn.nonlinearity == "tanh" else torch.relu
    z, h = [], [torch.zeros(x.size(1), len(W_hh), dtype=x.dtype) if hx is None else hx[0]]
    T = len(x)
    for t in range(T):
        z.append(x[t] @ W_ih.T + b + h[t] @ W_hh.T)
        h.append(phi(z[t]))
    dW_ih, dW_hh = torch.zeros_like(W_ih), torch.zeros_like(W_hh)
    db_ih, db_hh = torch.zeros_like(b), torch.zeros_like(b)
    later = torch.zeros_like(h[0])
    for t in reversed(range(T)):
        if wrong.get("loss") == "last" and t < T - 1:
            delta = later
        else:
            delta = torch.ones_like(later) + later
        if rnn.nonlinearity == "relu":
            slope = (z[t] >= 0 if wrong.get("slope") == "at zero" else z[t] > 0).double()
        elif wrong.get("slope") == "z":
            slope = 1 - z[t] ** 2
        elif wrong.get("slope") == "tanh(h)":
            slope = 1 - torch.tanh(h[t + 1]) ** 2
        else:
            slope = 1 - h[t + 1] ** 2
        q = slope * delta
        share = delta if wrong.get("share") == "delta" else q
        dW_ih += share.T @ {"-1": x[t - 1], "+1": x[t + 1] if t + 1 < T else 0 * x[t]}.get(
            wrong.get("input", ""), x[t]
        )
        states = h[1:][t - 1] if wrong.get("h") == "wraps" else h[t]
        dW_hh += share.T @ (h[t + 1] if wrong.get("h") == "t" else states)
        db_ih += share.sum(0) * wrong.get("bias", 1)
        db_hh += share.sum(0)
        if wrong.get("side"):  # the Jacobian with its columns scaled, and not its rows
            later = torch.stack([(W_hh * slope[row]).T @ delta[row] for row in range(len(delta))])
        elif wrong.get("transpose"):
            later = q @ W_hh.T
        else:
            later = q @ W_hh
    return {
        "weight_ih_l0": dW_ih,
        "weight_hh_l0": dW_hh,
        "bias_ih_l0": db_ih,
        "bias_hh_l0": db_hh,
    }


def windows(rnn: nn.RNN, x: Tensor, hx: Tensor | None, size: int, stale: bool) -> dict[str, Tensor]:
    """Truncated BPTT with autograd, the gradients of the windows added up."""
    rnn.zero_grad()
    state, sums = hx, {name: torch.zeros_like(value) for name, value in rnn.named_parameters()}
    for part in x.split(size):
        if not stale:
            rnn.zero_grad()
        output, state = rnn(part, state)
        output.sum().backward()
        state = state.detach()
        for name, value in rnn.named_parameters():
            sums[name] += value.grad
    rnn.zero_grad()
    return sums


def mean(rnn: nn.RNN, x: Tensor, hx: Tensor | None, over: int) -> dict[str, Tensor]:
    found = torch.autograd.grad(rnn(x, hx)[0].sum() / over, list(rnn.parameters()))
    return {name: value for (name, _), value in zip(rnn.named_parameters(), found, strict=True)}


@pytest.mark.parametrize(
    ("code", "mistake"),
    [
        (functools.partial(loop), None),
        (functools.partial(loop, slope="z"), "1 - z² for the slope"),
        (functools.partial(loop, slope="tanh(h)"), "1 - tanh(h)² for the slope"),
        (functools.partial(loop, loss="last"), "loss on h_T alone"),
        (functools.partial(loop, side=True), "diag on the wrong side"),
        (functools.partial(loop, transpose=True), "W_hh not transposed"),
        (functools.partial(loop, share="delta"), "δ in place of q in the shares"),
        (functools.partial(loop, input="-1"), "x[t-1] in place of x_t, round the end"),
        (functools.partial(loop, input="+1"), "x_{t+1} in place of x_t"),
        (functools.partial(loop, h="t"), "h_t in place of h_{t-1}"),
        (functools.partial(loop, h="wraps"), "h[-1] in place of h_0"),
        (functools.partial(loop, bias=0), "bias_ih gradient missing"),
        (functools.partial(loop, bias=2), "bias_ih gradient doubled"),
        (functools.partial(windows, size=1, stale=False), "truncated after 1 steps (stopped)"),
        (functools.partial(windows, size=2, stale=False), "truncated after 2 steps (windows)"),
        (functools.partial(windows, size=3, stale=True), "stale gradient, windows of 3 (detached)"),
        (functools.partial(mean, over=2), "divided by 2"),
        (functools.partial(mean, over=5 * 2 * 4), "divided by 40"),
    ],
)
def test_what_people_write(code: Any, mistake: str | None) -> None:
    rnn, x, hx = generic("tanh")
    found = diagnose(rnn, x, code(rnn, x, hx), hx, lambda output, h_n: output.sum())
    if mistake is None:
        assert found.verdict == "right"
    elif code.keywords.get("size") == 1:  # which is truncation to one step in any of its forms
        assert family("tanh", found.mistakes[0]) == {"truncated 1"}
    else:
        assert found.mistakes == ((mistake,),), found


def test_the_slope_of_relu_at_zero() -> None:
    rnn, x, hx = generic("relu")
    numbers = loop(rnn, x, hx, slope="at zero")
    found = diagnose(rnn, x, numbers, hx, lambda output, h_n: output.sum())
    assert found.mistakes == (("relu' at 0 taken as 1",),)
    assert "torch takes 0 there" in found.sentence


# How numbers may be given.


def test_transposed_gradients_are_recognised_and_named() -> None:
    right = Method.right(case_of("tanh")).results()
    found = found_with("tanh", {"weight_ih_l0": right.total("weight_ih").T})
    assert found.verdict == "right"
    assert found.notes == (
        "weight_ih_l0 is transposed: it is [4, 3], rows receive; yours is [3, 4].",
    )
    assert "transposed" in str(found)
    steps = found_with("tanh", {"weight_ih_l0": right.steps("weight_ih").mT})
    assert "Each step's share of weight_ih_l0 is transposed" in steps.notes[0]
    square = found_with("tanh", {"weight_hh_l0": right.total("weight_hh").T})
    assert square.mistakes == (("W_hh gradient transposed",),)
    assert "the row of a weight is the unit that receives" in square.sentence


def test_steps_in_the_order_of_the_backward_pass_are_recognised() -> None:
    right = Method.right(case_of("tanh")).results()
    found = found_with("tanh", {"q": right.q.flip(0)})
    assert found.verdict == "right"
    assert "the last one first" in found.notes[0]


@pytest.mark.parametrize("kind", ["list", "numpy", "steps in a list", "flat", "float32"])
def test_kinds_of_arrays(kind: str) -> None:
    rnn = worked()
    right = Method.right(Case.of(trace(rnn, X))).results()
    total = right.total("weight_ih")
    numbers: dict[str, Any] = {
        "list": total.tolist(),
        "numpy": np.asarray(total),
        "steps in a list": list(right.steps("weight_ih")),
        "flat": total.flatten(),
        "float32": total.float(),
    }
    assert diagnose(rnn, X, {"weight_ih_l0": numbers[kind]}).verdict == "right"


def test_numbers_are_as_exact_as_they_were_written() -> None:
    rnn = worked()
    exact = [0.7521556, 3.2674263]
    assert diagnose(rnn, X, {"weight_ih_l0": [0.7522, 3.2674]}).verdict == "right"
    assert diagnose(rnn, X, {"weight_ih_l0": [0.7523, 3.2674]}).verdict == "unknown"
    assert diagnose(rnn, X, {"weight_ih_l0": [0.75216, 3.26743]}).verdict == "right"
    assert diagnose(rnn, X, {"weight_ih_l0": [0.75217, 3.26743]}).verdict == "unknown"
    assert diagnose(rnn, X, {"weight_ih_l0": [0.75, 3.27]}).verdict == "unknown"
    assert diagnose(rnn, X, {"weight_ih_l0": [0.75, 3.27]}, decimals=2).verdict == "right"
    computed = torch.tensor(exact, dtype=torch.float64) * (1 + 1e-6)
    assert diagnose(rnn, X, {"weight_ih_l0": computed * 1.0000001234}).verdict == "unknown"
    scientific = {"weight_hh_l0": [[1.5625e-01, -4.9111e-02], [9.1049e-01, -1.9115e-01]]}
    assert diagnose(rnn, X, scientific).verdict == "right"


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_other_layers_and_directions(layer: int, reverse: bool) -> None:
    torch.manual_seed(0)
    rnn = nn.RNN(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    every_output(*rnn(x)).backward()
    numbers = {name + suffix: getattr(rnn, name + suffix).grad for name in SUMS}
    assert diagnose(rnn, x, numbers, loss=every_output).verdict == "right"
    case = Case.of(trace(rnn, x, loss=every_output, layer=layer, reverse=reverse))
    wrong = next(each for each in known(case) if each.name == "W_hh not transposed")
    results = wrong.apply(Method.right(case)).results()
    steps = results.steps("weight_ih")
    given = {"weight_ih" + suffix: steps.flip(0) if reverse else steps}  # as time goes
    found = diagnose(rnn, x, given, loss=every_output)
    assert found.mistakes == (("W_hh not transposed",),)
    assert (found.right_steps, found.wrong_steps, found.notes) == ((5,), (4, 3, 2, 1), ())


def test_batch_first_rows_and_states() -> None:
    rnn, x, hx = generic("tanh")
    first = nn.RNN(INPUTS, HIDDEN, batch_first=True, dtype=torch.float64)
    first.load_state_dict(rnn.state_dict())
    right = Method.right(case_of("tanh")).results()
    turned = {name: right.total(name).transpose(0, 1) for name in ("input", "delta", "q")}
    found = diagnose(
        first,
        x.transpose(0, 1),
        {**turned, "hx": right.total("hx")},
        hx,
        lambda output, h_n: every_output(output.transpose(0, 1), h_n),
    )
    assert found.verdict == "right"


def test_lower_precision() -> None:
    torch.manual_seed(0)
    rnn = fused_bptt.RNN(3, 8)
    x = torch.randn(20, 2, 3)
    rnn(x)[1].sum().backward()
    numbers = {name + SUFFIX: getattr(rnn, name + SUFFIX).grad for name in SUMS}
    assert diagnose(rnn, x, numbers).verdict == "right"


# Errors in words.


def refuse(numbers: Any) -> str:
    return raised(lambda: found_with("tanh", numbers))[1]


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("weight_ih_l0", (4, 4), "that is the shape of weight_hh"),
        ("weight_ih_l0", (2, 4, 3), "sum over the rows"),
        ("weight_hh_l0", (6, 4, 4), "there are 5 steps, and h_0 has no share"),
        ("weight_hh_l0", (16,), "the right number of entries in another shape"),
        ("bias_ih_l0", (3,), "expected shape [4], or [5, 4] with a share for each step, got [3]"),
        ("q", (2, 5, 4), "steps and batch are exchanged: x is [T, B, ...] here"),
        ("delta", (6, 2, 4), "leave the row of h_0 out"),
        ("hx", (4, 2), "it is transposed"),
        ("input", (5, 2, 4), "expected shape [5, 2, 3], got [5, 2, 4]"),
    ],
)
def test_wrong_shapes_are_told_in_words(name: str, shape: tuple[int, ...], says: str) -> None:
    said = refuse({name: torch.zeros(shape)})
    assert said.startswith(f"{name}: expected shape ")
    assert says in said


def test_numbers_that_are_not_finite_are_told() -> None:
    rows = torch.zeros(STEPS, HIDDEN, INPUTS)
    rows[2, 0, 1] = float("nan")
    found = found_with("tanh", {"weight_ih_l0": rows})
    assert found.verdict == "unknown"
    assert found.notes == ("weight_ih_l0: 1 of 60 numbers is not finite.",)


def test_other_refusals() -> None:
    said = raised(lambda: diagnose(nn.Linear(2, 3), torch.zeros(5, 3), {"q": []}))[1]  # type: ignore[arg-type]
    assert said == "rnn: expected a fused_bptt.RNN or torch.nn.RNN, got Linear"
    assert "expected at least one of weight_ih_l0" in refuse({})
    assert "expected names among weight_ih_l0" in refuse({"weight_ih": torch.zeros(4, 3)})
    assert "got 'W_ih'" in refuse({"W_ih": torch.zeros(4, 3)})
    assert "weight_ih_l0: expected an array of numbers" in refuse({"weight_ih_l0": "many"})
    assert "(complex numbers)" in refuse({"bias_ih_l0": [1j, 2, 3, 4]})
    assert "weight_ih_l0: expected an array of numbers" in refuse({"weight_ih_l0": [[1], [1, 2]]})
    assert refuse([1.0]) == "numbers: expected a mapping of names, got list"
    two = nn.RNN(3, 4, num_layers=2)
    numbers = {"bias_ih_l0": torch.zeros(4), "bias_ih_l1": torch.zeros(4)}
    said = raised(lambda: diagnose(two, torch.zeros(5, 3), numbers))[1]
    assert said == "numbers: expected one layer and direction at a time, got _l0, _l1"
    both = nn.RNN(3, 4, bidirectional=True)
    said = raised(lambda: diagnose(both, torch.zeros(5, 3), {"input": torch.zeros(5, 3)}))[1]
    assert said.startswith("input: expected an rnn of one direction")
