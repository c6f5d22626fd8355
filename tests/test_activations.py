"""sigmoid, softplus and identity: how exact the kernels are, and the plain recurrence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from primitives import Operators
from test_tanh import every_exponent, flushed, ulps_off, where_it_bends
from tolerance import ACTIVATION_ULPS, assert_close, assert_exact
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fused_bptt
from fused_bptt import _algebra, _ops
from fused_bptt.inspection.trace import trace

PHIS = {"sigmoid": _ops.SIGMOID, "softplus": _ops.SOFTPLUS, "identity": _ops.IDENTITY}
each_phi = pytest.mark.parametrize("name", PHIS)


def solved(z: Tensor, code: int) -> Tensor:
    """φ of every element: one step of as many recurrences as there are elements."""
    u = torch.cat([z, z.new_zeros(-len(z) % 64)]).view(1, -1, 1, 64)
    state = z.new_zeros(1, u.shape[1], 64)
    h, _ = Operators.recurrence(u, z.new_zeros(1, 64, 64), state, None, 0, code)
    return h.flatten()[: len(z)]


def slopes(h: Tensor, code: int) -> Tensor:
    """φ' where φ is h, as the linear recurrence takes it."""
    h = torch.cat([h, h.new_zeros(-len(h) % 64)]).view(1, -1, 1, 64)
    one = torch.ones_like(h)
    s, _ = _ops.linear_recurrence(h, one, h.new_zeros(1, 64, 64), None, None, 0, code, False)
    return s.flatten()


@pytest.mark.isa
@each_phi
def test_float32(name: str) -> None:
    z = torch.cat([every_exponent(torch.float32, 1 << 18), where_it_bends(torch.float32, 1 << 18)])
    z = torch.cat([z, torch.linspace(-87, 87, 100_001)])
    exact = _algebra.activate(flushed(z).double(), PHIS[name])
    normal = exact.abs() >= torch.finfo(torch.float32).tiny
    found = solved(z, PHIS[name])
    assert (found[~normal] == 0).all()
    assert ulps_off(found[normal], exact[normal].numpy(), torch.float32) <= ACTIVATION_ULPS


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_slope_of_softplus(dtype: torch.dtype) -> None:
    """1 - e^-h loses no digits where h is small."""
    h = torch.logspace(-30, 2, 10_000, dtype=dtype)
    found, exact = slopes(h, _ops.SOFTPLUS)[:10_000], -torch.expm1(-h.double())
    assert ((found.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * exact).all()


@pytest.mark.isa
@each_phi
def test_float64(name: str) -> None:
    z = torch.linspace(-700, 700, 100_001, dtype=torch.float64)
    z = torch.cat([z, torch.linspace(-3, 3, 100_001, dtype=torch.float64)])
    exact = _algebra.activate(z, PHIS[name])
    bound = (ACTIVATION_ULPS + 2) * torch.finfo(z.dtype).eps  # torch's own are not exact either
    assert ((solved(z, PHIS[name]) - exact).abs() <= bound * exact.abs()).all()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_phi
def test_values_without_digits(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 0], dtype=dtype)
    expected = _algebra.activate(z, PHIS[name])
    assert torch.allclose(solved(z, PHIS[name]), expected, equal_nan=True)


@each_phi
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    x, hx = torch.randn(4, 2, 2).double(), torch.randn(1, 2, 3).double()
    weights = [torch.randn(*s).double() * 0.5 for s in ((3, 2), (3, 3), (3,), (3,))]
    point = [value.requires_grad_() for value in (x, hx, *weights)]

    def function(x: Tensor, hx: Tensor, *weights: Tensor) -> Any:
        return fused_bptt.rnn(x, hx, weights, nonlinearity=name)

    h, found = hx[0], []
    for step in x:
        z = step @ weights[0].T + weights[2] + h @ weights[1].T + weights[3]
        h = _algebra.activate(z, PHIS[name])
        found.append(h)
    output, _ = function(*point)
    bars = torch.autograd.grad(output.square().sum(), point)
    expected = torch.autograd.grad(torch.stack(found).square().sum(), point)
    assert_close(
        {str(i): v for i, v in enumerate((output.detach(), *bars))},
        {str(i): v for i, v in enumerate((torch.stack(found).detach(), *expected))},
    )
    assert gradcheck(function, point, check_forward_ad=True)
    assert gradgradcheck(function, point)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@each_phi
def test_module(name: str, options: dict[str, Any]) -> None:
    """It is the stateless call with the module's weights, which are those of nn.RNN's seed."""
    torch.manual_seed(0)
    rnn = fused_bptt.RNN(2, 3, nonlinearity=name, dtype=torch.float64, **options)
    torch.manual_seed(0)
    other = torch.nn.RNN(2, 3, dtype=torch.float64, **options)
    assert_exact(rnn.state_dict(), dict(other.state_dict()))
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    output, h_n = rnn(x)
    weights = list(rnn.parameters())
    expected, last = fused_bptt.rnn(x, None, weights, nonlinearity=name, **options)
    assert_exact({"output": output, "h_n": h_n}, {"output": expected, "h_n": last})
    copied = copy.deepcopy(rnn)
    assert copied.nonlinearity == name
    assert_exact({"": copied(x)[0]}, {"": output})


def test_what_other_nonlinearities_do_not_have() -> None:
    names = "'tanh', 'relu', 'sigmoid', 'softplus', 'identity'"
    for wrong in ("gelu", None):
        message = rf"^Unknown nonlinearity '{wrong}'\. Select from {names}"
        with pytest.raises(ValueError, match=message):
            fused_bptt.RNN(2, 3, nonlinearity=wrong)
        with pytest.raises(ValueError, match="Unknown nonlinearity"):
            fused_bptt.RNN(2, 3, 1, wrong)
    rnn = fused_bptt.RNN(2, 3, nonlinearity="sigmoid")
    refused = r"^nonlinearity: expected 'tanh' or 'relu', got 'sigmoid'"
    with pytest.raises(ValueError, match=refused):
        rnn.to_torch()
    with pytest.raises(ValueError, match=refused):
        trace(rnn, torch.zeros(3, 1, 2))
