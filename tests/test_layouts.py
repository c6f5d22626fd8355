"""Inputs, weights and cotangents of any layout: the right values, and not one warning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Case
from helpers import FLOAT_TYPES, cotangent, everything
from tolerance import assert_close, assert_exact
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fused_bptt

Layout = Callable[[Tensor], Tensor]


def transposed(value: Tensor) -> Tensor:
    return value.mT.contiguous().mT if value.dim() > 1 else strided(value)


def strided(value: Tensor) -> Tensor:
    """Every other element of a larger tensor, with NaN between."""
    wide = value.new_full((*value.shape[:-1], 2 * value.shape[-1]), torch.nan)
    wide[..., ::2] = value
    return wide[..., ::2]


def reversed_memory(value: Tensor) -> Tensor:
    """First dimension laid out last."""
    order = tuple(reversed(range(value.dim())))
    return value.permute(order).contiguous().permute(order)


def offset(value: Tensor) -> Tensor:
    """Not aligned to a vector: begins one element into its storage."""
    flat = torch.cat([value.new_full((1,), torch.nan), value.flatten()])
    return flat[1:].view(value.shape)


def expanded(value: Tensor) -> Tensor:
    """One slice repeated by a stride of zero."""
    return value[:1].expand(value.shape)


LAYOUTS: dict[str, Layout] = {
    f.__name__: f for f in (transposed, strided, reversed_memory, offset, expanded)
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())

CASE = Case("layouts", T=5, B=4, I=6, H=17, num_layers=2, bidirectional=True)


def laid_out(value: Tensor, layout: Layout) -> Tensor:
    result = layout(value.detach())
    assert value.dim() == 1 or layout is offset or not result.is_contiguous()
    return result.requires_grad_()


@layouts
@pytest.mark.parametrize("batch_first", [False, True])
def test_input_and_hx(layout: Layout, batch_first: bool) -> None:
    case = Case("layouts", T=5, B=4, I=6, H=17, num_layers=2, batch_first=batch_first)
    x, hx = (laid_out(value, layout) for value in case.inputs())
    assert_close(*(everything(case.module(kind), x, hx) for kind in (fused_bptt.RNN, nn.RNN)))


@layouts
def test_weights(layout: Layout) -> None:
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = CASE.module(kind)
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(laid_out(parameter, layout)))
        results.append(everything(module, *CASE.inputs()))
    assert_close(*results)


@layouts
def test_cotangents(layout: Layout) -> None:
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = CASE.module(kind)
        x, hx = CASE.inputs()
        output, h_n = module(x, hx)
        torch.autograd.backward(
            [output, h_n], [layout(cotangent(value, 5)) for value in (output, h_n)]
        )
        results.append({"x": x.grad, "hx": hx.grad, "w": module.weight_hh_l0.grad})
    assert_close(*results)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_the_layout_does_not_change_the_bits(dtype: torch.dtype) -> None:
    case = Case("layouts", T=5, B=4, I=6, H=17)
    module = case.module(fused_bptt.RNN, dtype)
    x, hx = case.inputs(dtype)
    expected = everything(module, x, hx)
    module.weight_hh_l0 = nn.Parameter(laid_out(module.weight_hh_l0, transposed))
    assert_exact(everything(module, x, laid_out(hx, strided)), expected)


def test_the_loss_of_the_last_state_alone() -> None:
    """The cotangent of the output is absent, or zeros expanded from one element."""
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = CASE.module(kind)
        found = {}
        for name, loss in {
            "h_n": lambda output, h_n: h_n.sum(),
            "last": lambda output, h_n: output[-1].sum(),
            "sum": lambda output, h_n: output.sum(),
            "one": lambda output, h_n: output[2, 1, 3],
        }.items():
            x, hx = CASE.inputs()
            module.zero_grad()
            loss(*module(x, hx)).backward()
            found |= {f"{name} x": x.grad, f"{name} hx": hx.grad}
            found |= {f"{name} {n}": p.grad for n, p in module.named_parameters()}
        results.append(found)
    assert_close(*results)


def parametrized(kind: type[nn.RNNBase], how: str, name: str) -> nn.Module:
    module = CASE.module(kind)
    torch.manual_seed(11)  # spectral_norm draws its first vectors
    getattr(parametrizations, how)(module, name)
    # In training, spectral_norm goes one iteration further whenever the weight is read, and
    # nn.RNN reads it several times a call.
    return module.eval()


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize(
    "name", ["weight_ih_l0", "weight_hh_l0", "weight_hh_l0_reverse", "weight_ih_l1", "weight_hh_l1"]
)
def test_parametrizations(how: str, name: str) -> None:
    ours, theirs = (parametrized(kind, how, name) for kind in (fused_bptt.RNN, nn.RNN))
    assert_close(everything(ours, *CASE.inputs()), everything(theirs, *CASE.inputs()))


def test_parametrized_weights_are_computed_anew() -> None:
    """A step of the optimizer is seen by the next call, and removal leaves the weight."""
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = parametrized(kind, "weight_norm", "weight_hh_l0")
        found = {}
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for step in range(3):
            x, hx = CASE.inputs()
            output, _ = module(x, hx)
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
            found[f"step {step}"] = output.detach()
        parametrize.remove_parametrizations(module, "weight_hh_l0")
        found["removed"] = module(*CASE.inputs())[0].detach()
        results.append(found)
    assert_close(*results)


class Counted(nn.Module):
    """A parametrization that counts how often it is computed."""

    count = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.count += 1
        return 0.5 * weight


def test_a_parametrized_weight_is_computed_once_a_call() -> None:
    module = CASE.module(fused_bptt.RNN)
    counted = Counted()
    parametrize.register_parametrization(module, "weight_hh_l0", counted)
    counted.count = 0
    output, _ = module(*CASE.inputs())
    assert counted.count == 1
    output.sum().backward()
    assert counted.count == 1


class Masked(nn.Module):
    """A parametrization as used for Dale's law and sparsity: a fixed mask and signs."""

    def forward(self, weight: Tensor) -> Tensor:
        signs = torch.ones(weight.shape[-1], dtype=weight.dtype)
        signs[::3] = -1
        return weight.abs().tril() * signs


def test_an_own_parametrization() -> None:
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = CASE.module(kind)
        for name in ("weight_hh_l0", "weight_hh_l1_reverse", "bias_ih_l0"):
            parametrize.register_parametrization(
                module, name, Masked() if "weight" in name else nn.Tanh()
            )
        results.append(everything(module, *CASE.inputs()))
    assert_close(*results)


def test_one_tensor_as_two_weights() -> None:
    """Tied weights: their gradients add up."""
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = CASE.module(kind)
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_hh_l0_reverse = module.weight_hh_l0
        results.append(everything(module, *CASE.inputs()))
    assert_close(*results)
