"""replace_rnn, from_torch, to_torch: the same parameters, the same computation."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from cases import Case, ids
from helpers import everything
from tolerance import assert_close
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fused_bptt

CASES = (
    Case("plain"),
    Case("relu", nonlinearity="relu", num_layers=2, bidirectional=True),
    Case("no-bias", bias=False, batch_first=True),
    Case("dropout", num_layers=2, dropout=0.3),
)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_from_torch_and_back(case: Case) -> None:
    theirs = case.module(nn.RNN).eval()
    ours = fused_bptt.RNN.from_torch(theirs)
    back = ours.to_torch()
    assert type(ours) is fused_bptt.RNN
    assert type(back) is nn.RNN
    for module in (ours, back):
        assert repr(module) == repr(theirs)
        assert not module.training
        for (name, mine), (_, yours) in zip(
            module.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert mine is yours, f"{name} is shared"
    expected = everything(theirs, *case.inputs())
    assert_close(everything(ours, *case.inputs()), expected)
    assert_close(everything(back, *case.inputs()), expected)


def test_from_torch_shares_what_an_optimizer_changes() -> None:
    theirs = CASES[0].module(nn.RNN)
    ours = fused_bptt.RNN.from_torch(theirs)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ours(*CASES[0].inputs())[0].square().sum().backward()
        optimizer.step()
    inputs = CASES[0].inputs()
    assert_close(everything(ours, *inputs), everything(theirs, *inputs))


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), nn.GRU(3, 4), nn.Linear(3, 4), None])
def test_from_torch_refuses_what_is_no_rnn(module: Any) -> None:
    with pytest.raises(TypeError):
        fused_bptt.RNN.from_torch(module)


class Model(nn.Module):
    """An RNN in every kind of place where one is found."""

    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.RNN(4, 6, batch_first=True)
        self.shared = self.direct
        self.listed = nn.ModuleList([nn.RNN(6, 6), nn.Linear(6, 6), nn.RNN(6, 6, 2, "relu")])
        self.named = nn.ModuleDict({"deep": nn.Sequential(nn.Sequential(nn.RNN(6, 5)))})
        self.lstm = nn.LSTM(5, 3)
        self.gru = nn.GRU(3, 3)
        self.nothing = None

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.direct(x)
        x = x + self.shared(x[..., :4])[0]
        x, _ = self.listed[0](x)
        x, _ = self.listed[2](self.listed[1](x))
        x, _ = self.named["deep"](x)
        return self.gru(self.lstm(x)[0])[0]


def run_model(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return {"output": output.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}


def test_replaces_every_one_in_place() -> None:
    model = Model().double()
    expected = run_model(model)
    parameters = dict(model.named_parameters())
    lstm, gru = model.lstm, model.gru
    assert fused_bptt.replace_rnn(model) is model
    assert not any(type(module) is nn.RNN for module in model.modules())
    assert sum(type(module) is fused_bptt.RNN for module in model.modules()) == 4
    assert type(model.shared) is fused_bptt.RNN
    assert model.shared is model.direct
    assert model.lstm is lstm
    assert model.gru is gru
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in parameters)
    assert_close(run_model(model), expected)


def test_replacing_again_changes_nothing() -> None:
    model = fused_bptt.replace_rnn(Model())
    modules = list(model.modules())
    fused_bptt.replace_rnn(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_a_model_that_is_an_rnn() -> None:
    model = CASES[0].module(nn.RNN)
    replaced = fused_bptt.replace_rnn(model)
    assert type(replaced) is fused_bptt.RNN
    inputs = CASES[0].inputs()
    assert_close(everything(replaced, *inputs), everything(model, *inputs))


def test_a_model_without_any() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert fused_bptt.replace_rnn(model) is model


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_kept(training: bool) -> None:
    model = nn.Sequential(nn.RNN(3, 4, 2, dropout=0.5))
    model[0].train(training)
    fused_bptt.replace_rnn(model)
    assert model[0].training is training


def test_hooks_are_kept() -> None:
    model = nn.Sequential(CASES[0].module(nn.RNN))
    calls = []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: calls.append("before")),
        model[0].register_forward_hook(lambda *_: calls.append("after")),
        model[0].register_full_backward_hook(lambda *_: calls.append("backward")),
        model[0].register_state_dict_post_hook(lambda *_: calls.append("state")),
    ]
    fused_bptt.replace_rnn(model)
    x, hx = CASES[0].inputs()
    output, _ = model[0](x, hx)
    output.sum().backward()
    model.state_dict()
    assert calls == ["before", "after", "backward", "state"]
    for handle in handles[:3]:
        handle.remove()
    model[0](x, hx)
    assert len(calls) == 4, "handles remove their hooks from the new module"


def test_hooks_of_parameters_are_kept() -> None:
    model = nn.Sequential(CASES[0].module(nn.RNN))
    model[0].weight_hh_l0.register_hook(lambda grad: 2 * grad)
    x, hx = CASES[0].inputs()
    expected = everything(model[0], x, hx)
    fused_bptt.replace_rnn(model)
    assert_close(everything(model[0], x, hx), expected)


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(nn.RNN(3, 4))
    model[0].weight_hh_l0.requires_grad_(False)
    fused_bptt.replace_rnn(model)
    assert not model[0].weight_hh_l0.requires_grad
    assert model[0].weight_ih_l0.requires_grad


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_modules_compute_the_same(how: str) -> None:
    """Replaced with its parametrization, or named: never changed silently."""
    case = CASES[0]
    model = nn.Sequential(case.module(nn.RNN))
    getattr(parametrizations, how)(model[0], "weight_hh_l0")
    model.eval()  # spectral_norm moves its vectors in training
    expected = everything(model[0], *case.inputs())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused_bptt.replace_rnn(model)
    replaced = not isinstance(model[0], nn.RNN)
    assert replaced or any("0" in str(warning.message) for warning in caught)
    assert_close(everything(model[0], *case.inputs()), expected)


class Subclass(nn.RNN):
    """A user's own: its forward may be anything."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        output, h_n = super().forward(input, hx)
        return 2 * output, h_n


def test_a_subclass_is_left_and_named() -> None:
    model = nn.ModuleDict({"plain": nn.RNN(3, 4), "own": nn.Sequential(Subclass(3, 4))})
    with pytest.warns(UserWarning, match=r"own\.0.*Subclass") as caught:
        fused_bptt.replace_rnn(model)
    assert len(caught) == 1
    assert "plain" not in str(caught[0].message)
    assert type(model["plain"]) is fused_bptt.RNN
    assert type(model["own"][0]) is Subclass


def test_a_model_that_is_a_subclass_is_left_and_named() -> None:
    model = Subclass(3, 4)
    with pytest.warns(UserWarning, match="Subclass"):
        assert fused_bptt.replace_rnn(model) is model


def test_a_scripted_module_is_left_and_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.RNN(3, 4))
    model = nn.ModuleDict({"plain": nn.RNN(3, 4), "compiled": scripted})
    with pytest.warns(UserWarning, match="compiled") as caught:
        fused_bptt.replace_rnn(model)
    assert len(caught) == 1
    assert type(model["plain"]) is fused_bptt.RNN
    assert model["compiled"] is scripted


def test_what_is_saved_after_is_loaded_before() -> None:
    """A state_dict goes from a model with replaced RNNs to one without, and back."""
    plain, replaced = Model(), fused_bptt.replace_rnn(Model())
    plain.load_state_dict(replaced.state_dict())
    replaced.load_state_dict(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), replaced.parameters(), strict=True)
    )


def test_a_hook_that_knows_its_module_is_kept() -> None:
    """`register_load_state_dict_pre_hook` keeps a weak reference to the module that is replaced."""
    model = nn.Sequential(nn.RNN(3, 4))
    called = []
    model[0].register_load_state_dict_pre_hook(lambda module, *_: called.append(module))
    state = model.state_dict()
    fused_bptt.replace_rnn(model)
    gc.collect()
    model.load_state_dict(state)
    assert called == [model[0]]
