"""One small case with everything that is told of it: by hand, by this library, by torch, and wrong.

What ``fused-bptt explain`` prints and draws; no words and no layout are here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..module import RNN
from .diagnosis import Diagnosis, diagnose
from .method import Case, Method, Results
from .mistakes import Mistake, known
from .trace import Trace, trace

#: What is taken when nothing is asked for: the example of docs/design.md, section 5.
X = (1.0, 2.0, 3.0)
W_IH = (0.5, -0.2)
W_HH = (0.4, -0.3, 0.6, 0.2)

#: The names that the gradients have in the lesson, and the parameters that they belong to.
PARAMETERS = {
    "dW_ih": "weight_ih_l0",
    "dW_hh": "weight_hh_l0",
    "db_ih": "bias_ih_l0",
    "db_hh": "bias_hh_l0",
}


@dataclass(frozen=True)
class Lesson:
    """The case x_1 ... x_T of one input, its trace, and its gradients in several ways."""

    rnn: nn.RNN
    x: Tensor
    """[T, 1]."""
    trace: Trace
    gradients: dict[str, dict[str, Tensor]]
    """``"by hand"``, ``"fused_bptt.RNN"``, ``"torch.nn.RNN"`` to the names of ``PARAMETERS``."""
    mistake: Mistake
    """The chain multiplied elementwise."""
    wrong: Results
    right: Results
    diagnosis: Diagnosis
    """What :func:`fused_bptt.diagnose` says of the shares that the mistake gives."""

    @property
    def furthest_apart(self) -> float:
        """Largest difference of any number between the three ways."""
        first, *others = self.gradients.values()
        return max(
            (first[name] - other[name]).abs().max().item() for other in others for name in first
        )


def network(
    hidden_size: int, nonlinearity: str, seed: int | None, weights: dict[str, list[float]]
) -> nn.RNN:
    """A float64 ``nn.RNN`` of one input.

    Args:
        hidden_size: H.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        seed: draws the weights as ``nn.RNN`` does; None takes the example's W_ih and W_hh, for
            which H is 2, and no biases.
        weights: values by the names of parameters, row after row, in place of those.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        rnn = nn.RNN(1, hidden_size, nonlinearity=nonlinearity, dtype=torch.float64)
    if seed is None:
        weights = {"weight_ih_l0": [*W_IH], "weight_hh_l0": [*W_HH], **weights}
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if name in weights:
                values = torch.tensor(weights[name], dtype=torch.float64)
                parameter.copy_(values.view(parameter.shape))
            elif seed is None:
                parameter.zero_()
    return rnn


def teach(rnn: nn.RNN, x: Tensor) -> Lesson:
    """The lesson of one case; the loss is the sum of h_T.

    Args:
        rnn: float64, of one input, layer and direction.
        x: float64 [T, 1].
    """
    traced = trace(rnn, x)
    case = Case.of(traced)
    right = Method.right(case)
    mistake = next(each for each in known(case) if each.name == "chain multiplied elementwise")
    wrong = mistake.apply(right).results()
    gradients = {
        "by hand": by_hand(rnn, x),
        "fused_bptt.RNN": _by_autograd(RNN.from_torch(rnn), x),
        "torch.nn.RNN": _by_autograd(rnn, x),
    }
    found = diagnose(rnn, x, {"weight_ih_l0": wrong.steps("weight_ih")})
    return Lesson(rnn, x, traced, gradients, mistake, wrong, right.results(), found)


def by_hand(rnn: nn.RNN, x: Tensor) -> dict[str, Tensor]:
    """The gradients with nothing but numbers and loops, as on paper."""
    W_ih, W_hh, b_ih, b_hh = (parameter.tolist() for parameter in rnn.parameters())
    H, T, inputs = len(W_ih), len(x), x[:, 0].tolist()
    W_ih, b = [row[0] for row in W_ih], [b_ih[i] + b_hh[i] for i in range(H)]
    tanh = rnn.nonlinearity == "tanh"

    h = [[0.0] * H]
    for t in range(1, T + 1):
        z = [
            W_ih[i] * inputs[t - 1] + b[i] + sum(W_hh[i][j] * h[t - 1][j] for j in range(H))
            for i in range(H)
        ]
        h.append([math.tanh(each) if tanh else max(each, 0.0) for each in z])

    dW_ih, db = [0.0] * H, [0.0] * H
    dW_hh = [[0.0] * H for _ in range(H)]
    delta = [1.0] * H  # the loss is the sum of h_T
    for t in range(T, 0, -1):
        slope = [1 - each * each if tanh else float(each > 0) for each in h[t]]
        q = [slope[i] * delta[i] for i in range(H)]
        for i in range(H):
            dW_ih[i] += q[i] * inputs[t - 1]
            db[i] += q[i]
            for j in range(H):
                dW_hh[i][j] += q[i] * h[t - 1][j]
        delta = [sum(W_hh[i][j] * q[i] for i in range(H)) for j in range(H)]

    found = {"dW_ih": [[each] for each in dW_ih], "dW_hh": dW_hh, "db_ih": db, "db_hh": db}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def _by_autograd(rnn: nn.RNNBase, x: Tensor) -> dict[str, Tensor]:
    with torch.enable_grad():
        _, h_n = rnn(x)
        parameters = [getattr(rnn, name) for name in PARAMETERS.values()]
        return dict(zip(PARAMETERS, torch.autograd.grad(h_n.sum(), parameters), strict=True))
