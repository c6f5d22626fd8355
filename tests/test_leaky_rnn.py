"""The module with a leak, against its three forms as users write them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerance import Named, assert_close
from torch import Tensor

from fused_bptt import LeakyRNN

T, B, I, H = 6, 3, 2, 5  # noqa: E741
MASK = torch.tensor([[t in (0, 3) and b == 1 for b in range(B)] for t in range(T)])


def written(m: LeakyRNN, x: Tensor, noise: Tensor, mask: Tensor | None) -> list[Tensor]:
    a = m.leak
    first = torch.zeros(H).double() if m.initial is None else m.initial
    state, states, rates = first.expand(B, H), [], []
    for t in range(T):
        if mask is not None:
            state = torch.where(mask[t][:, None], first, state)
        drive = x[t] @ m.weight_ih.T + m.bias + noise[t]
        if m.form == "voltage":
            state = (1 - a) * state + a * (drive + torch.tanh(state) @ m.weight_hh.T)
            rate = torch.tanh(state)
        elif m.form == "rate":
            rate = torch.tanh(drive + state @ m.weight_hh.T)
            state = (1 - a) * state + a * rate
        else:
            state = rate = torch.tanh((1 - a) * state + a * (drive + state @ m.weight_hh.T))
        states.append(state)
        rates.append(rate)
    return [torch.stack(states), state, torch.stack(rates)]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("leak", [0.2, torch.linspace(0.1, 1, H)])
@pytest.mark.parametrize("form", ["inside", "rate", "voltage"])
def test_equals_the_form(form: str, leak: Any, batch_first: bool, reset: bool) -> None:
    kinds: dict[str, Any] = {"learn_leak": True, "learn_initial": True, "dtype": torch.float64}
    m = LeakyRNN(I, H, form=form, leak=leak, batch_first=batch_first, **kinds)
    torch.nn.init.normal_(m.initial)
    x = torch.randn(T, B, I).double().requires_grad_()
    noise = torch.randn(T, B, H).double()
    mask = MASK if reset else None

    def turned(value: Tensor) -> Tensor:
        return value.transpose(0, 1) if batch_first else value

    options = {"noise": turned(noise), "return_rates": True, "reset": mask}
    options["reset"] = None if mask is None else turned(mask)
    output, last, rates = m(turned(x), **options)
    leaves = [x, *m.parameters()]

    def all_of(values: list[Tensor]) -> Named:
        bars = torch.autograd.grad(sum((v.sin() * v).sum() for v in values), leaves)
        return {str(i): v.detach() for i, v in enumerate((*values, *bars))}

    found = all_of([turned(output), last, turned(rates)])
    assert_close(found, all_of(written(m, x, noise, mask)))


def test_noise_is_the_generators() -> None:
    m = LeakyRNN(I, H, dt=20, tau=100, noise_std=0.3, scale_noise=True, form="voltage")
    x = torch.randn(T, B, I)
    results = [m(x, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    drawn = torch.randn(T, B, H, generator=torch.Generator().manual_seed(1))
    given = m(x, noise=drawn * 0.3 * (2 / 0.2) ** 0.5)[0]
    assert torch.allclose(results[0], given)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("form", {"leak": 0.1, "form": "a"}),
        ("leak", {}),
        ("leak", {"leak": 0.1, "dt": 1.0, "tau": 2.0}),
        ("leak", {"dt": 1.0}),
        ("leak", {"leak": torch.ones(3)}),
        ("leak", {"leak": 1.5}),
        ("nonlinearity", {"leak": 0.1, "nonlinearity": "sine"}),
        ("noise_std", {"leak": 0.1, "noise_std": -1.0}),
    ],
)
def test_wrong_arguments_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}.*: expected .*got"):
        LeakyRNN(I, H, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [("input", {"input": torch.zeros(T, B, 9)}), ("bptt_window", {"bptt_window": -1})],
)
def test_wrong_calls_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*got"):
        LeakyRNN(I, H, leak=0.1)(**{"input": torch.zeros(T, B, I), **options})
