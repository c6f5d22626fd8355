"""The case that people work by hand: x = 1, 2, 3, two hidden units, loss = sum of h_3."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import Named, assert_close
from torch import Tensor, nn

import fused_bptt
from fused_bptt._reference import bptt_by_hand

X = (1.0, 2.0, 3.0)
W_IH = (0.5, -0.3)
W_HH = ((0.1, 0.4), (-0.2, 0.3))
B_IH = (0.01, -0.02)
B_HH = (0.03, 0.05)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_module(kind: type[nn.RNNBase], nonlinearity: str) -> Named:
    module = kind(1, 2, nonlinearity=nonlinearity, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.weight_ih_l0.copy_(tensor(W_IH)[:, None])
        module.weight_hh_l0.copy_(tensor(W_HH))
        module.bias_ih_l0.copy_(tensor(B_IH))
        module.bias_hh_l0.copy_(tensor(B_HH))
    x = tensor(X)[:, None].requires_grad_()  # unbatched: 3 steps of input size 1
    h0 = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    output, h_n = module(x, h0)
    h_n.sum().backward()
    return {
        "h": output.detach(),
        "dx": x.grad,
        "dW_ih": module.weight_ih_l0.grad,
        "dW_hh": module.weight_hh_l0.grad,
        "db_ih": module.bias_ih_l0.grad,
        "db_hh": module.bias_hh_l0.grad,
        "dh0": h0.grad,
    }


def by_equations(nonlinearity: str) -> Named:
    g = torch.zeros(3, 1, 2, dtype=torch.float64)
    g[2] = 1  # the loss reads the last state alone
    found = bptt_by_hand(
        tensor(X)[:, None, None],
        tensor(W_IH)[:, None],
        tensor(W_HH),
        tensor(B_IH) + tensor(B_HH),
        torch.zeros(1, 2, dtype=torch.float64),
        g,
        nonlinearity,
    )
    return {
        "h": found.h[:, 0],
        "dx": found.dx[:, 0],
        "dW_ih": found.dW_ih,
        "dW_hh": found.dW_hh,
        "db_ih": found.db,
        "db_hh": found.db,
        "dh0": found.dh0,
    }


def by_scalars(nonlinearity: str) -> Named:
    """The same again with nothing but numbers, as on paper."""
    phi = math.tanh if nonlinearity == "tanh" else lambda z: max(z, 0.0)
    slope = (lambda h: 1 - h * h) if nonlinearity == "tanh" else (lambda h: float(h > 0))
    h = [[0.0, 0.0]]
    for x in X:
        h.append(
            [
                phi(W_IH[i] * x + B_IH[i] + B_HH[i] + W_HH[i][0] * h[-1][0] + W_HH[i][1] * h[-1][1])
                for i in range(2)
            ]
        )
    dx, db = [0.0] * 3, [0.0, 0.0]
    dW_ih, dW_hh = [[0.0], [0.0]], [[0.0, 0.0], [0.0, 0.0]]
    dh = [1.0, 1.0]
    for t in (3, 2, 1):
        q = [slope(h[t][i]) * dh[i] for i in range(2)]
        for i in range(2):
            dx[t - 1] += W_IH[i] * q[i]
            dW_ih[i][0] += q[i] * X[t - 1]
            db[i] += q[i]
            for j in range(2):
                dW_hh[i][j] += q[i] * h[t - 1][j]
        dh = [W_HH[0][j] * q[0] + W_HH[1][j] * q[1] for j in range(2)]
    values = {
        "h": h[1:],
        "dx": [[value] for value in dx],
        "dW_ih": dW_ih,
        "dW_hh": dW_hh,
        "db_ih": db,
        "db_hh": db,
        "dh0": [dh],
    }
    return {name: tensor(value) for name, value in values.items()}


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_module_torch_equations_and_scalars_agree(nonlinearity: str) -> None:
    expected = by_scalars(nonlinearity)
    assert_close(by_module(nn.RNN, nonlinearity), expected)
    assert_close(by_equations(nonlinearity), expected)
    assert_close(by_module(fused_bptt.RNN, nonlinearity), expected)
