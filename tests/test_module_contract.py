"""fused_bptt.RNN is built, shown, saved, moved and refused exactly as nn.RNN is."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, ids, variants
from helpers import everything, outputs, raised
from tolerance import assert_close, assert_exact
from torch import nn

import fused_bptt

CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "sizes": ((3, 5), {}),
    "keywords": ((), {"input_size": 3, "hidden_size": 5}),
    "positional-layers": ((3, 5, 2), {}),
    "positional-nonlinearity": ((3, 5, 2, "relu"), {}),
    "positional-everything": ((3, 5, 2, "relu", False, True, 0.5, True), {}),
    "tanh": ((3, 5), {"nonlinearity": "tanh"}),
    "relu": ((3, 5), {"nonlinearity": "relu"}),
    "no-bias": ((3, 5), {"bias": False}),
    "batch-first": ((3, 5), {"batch_first": True}),
    "dropout": ((3, 5, 2), {"dropout": 0.25}),
    "dropout-integer": ((3, 5, 2), {"dropout": 1}),
    "bidirectional": ((3, 5, 3), {"bidirectional": True}),
    "float64": ((3, 5), {"dtype": torch.float64}),
    "bfloat16": ((3, 5), {"dtype": torch.bfloat16}),
    "meta": ((3, 5), {"device": "meta"}),
}

WRONG_CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "no-hidden-size": ((3,), {}),
    "input-size-float": ((3.0, 5), {}),
    "input-size-zero": ((0, 5), {}),
    "input-size-negative": ((-1, 5), {}),
    "hidden-size-string": ((3, "5"), {}),
    "hidden-size-zero": ((3, 0), {}),
    "no-layers": ((3, 5, 0), {}),
    "layers-negative": ((3, 5, -2), {}),
    "bias": ((3, 5), {"bias": 1}),
    "batch-first": ((3, 5), {"batch_first": "yes"}),
    "dropout-large": ((3, 5), {"dropout": 1.5}),
    "dropout-negative": ((3, 5), {"dropout": -0.1}),
    "dropout-bool": ((3, 5), {"dropout": True}),
    "proj-size": ((3, 5), {"proj_size": 2}),
    "unknown": ((3, 5), {"hidden": 2}),
    "too-many": ((3, 5, 1, "tanh", True, False, 0.0, False, 0, "cpu", None, 7), {}),
    "mode": ((3, 5), {"mode": "LSTM"}),
    "dtype-integer": ((3, 5), {"dtype": torch.int64}),
}

FLOAT = torch.float32


def x(*shape: int, dtype: torch.dtype = FLOAT, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


WRONG_CALLS: dict[str, Callable[[nn.RNNBase], object]] = {
    "one-dimension": lambda m: m(x(3)),
    "four-dimensions": lambda m: m(x(1, 5, 2, 3)),
    "input-size": lambda m: m(x(5, 2, 4)),
    "input-size-unbatched": lambda m: m(x(5, 4)),
    "input-float64": lambda m: m(x(5, 2, 3, dtype=torch.float64)),
    "input-bfloat16": lambda m: m(x(5, 2, 3, dtype=torch.bfloat16)),
    "input-integer": lambda m: m(x(5, 2, 3, dtype=torch.int64)),
    "input-elsewhere": lambda m: m(x(5, 2, 3, device="meta")),
    "hx-elsewhere": lambda m: m(x(5, 2, 3), x(1, 2, 5, device="meta")),
    "hx-float64": lambda m: m(x(5, 2, 3), x(1, 2, 5, dtype=torch.float64)),
    "hx-two-dimensions": lambda m: m(x(5, 2, 3), x(1, 5)),
    "hx-three-dimensions-unbatched": lambda m: m(x(5, 3), x(1, 1, 5)),
    "hx-layers": lambda m: m(x(5, 2, 3), x(2, 2, 5)),
    "hx-batch": lambda m: m(x(5, 2, 3), x(1, 3, 5)),
    "hx-hidden-size": lambda m: m(x(5, 2, 3), x(1, 2, 4)),
    "hx-hidden-size-unbatched": lambda m: m(x(5, 3), x(1, 4)),
    "packed-input-size": lambda m: m(nn.utils.rnn.pack_sequence([x(5, 4)])),
    "packed-float64": lambda m: m(nn.utils.rnn.pack_sequence([x(5, 3, dtype=torch.float64)])),
    "packed-hx-batch": lambda m: m(nn.utils.rnn.pack_sequence([x(5, 3)]), x(1, 2, 5)),
    "no-input": lambda m: m(),
    "unknown-argument": lambda m: m(x(5, 2, 3), h0=x(1, 2, 5)),
    "weight-float64": lambda m: mixed_weights(m, "weight_hh_l0", torch.float64)(x(5, 2, 3)),
    "weight-bfloat16": lambda m: mixed_weights(m, "weight_hh_l0", torch.bfloat16)(x(5, 2, 3)),
}


def mixed_weights(module: nn.RNNBase, name: str, dtype: torch.dtype) -> nn.RNNBase:
    module = copy.deepcopy(module)
    setattr(module, name, nn.Parameter(getattr(module, name).to(dtype)))
    return module


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_same_module(name: str) -> None:
    args, kwargs = CONSTRUCTIONS[name]
    torch.manual_seed(1)
    theirs = nn.RNN(*args, **kwargs)
    torch.manual_seed(1)
    ours = fused_bptt.RNN(*args, **kwargs)
    assert isinstance(ours, nn.RNNBase)
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    public = {k: v for k, v in vars(theirs).items() if not k.startswith("_")}
    assert {k: v for k, v in vars(ours).items() if not k.startswith("_")} == public
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.shape == yours.shape
        assert mine.dtype == yours.dtype
        assert mine.device == yours.device
        assert mine.requires_grad
        assert mine.is_meta or torch.equal(mine, yours), "same seed, same weights"


@pytest.mark.parametrize("name", WRONG_CONSTRUCTIONS)
def test_same_refusal_to_be_built(name: str) -> None:
    args, kwargs = WRONG_CONSTRUCTIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dropout warning comes before some errors
        expected = raised(lambda: nn.RNN(*args, **kwargs))
        assert raised(lambda: fused_bptt.RNN(*args, **kwargs)) == expected


def test_same_warning_for_dropout_of_one_layer() -> None:
    with pytest.warns(UserWarning, match="dropout") as theirs:
        nn.RNN(3, 5, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout") as ours:
        fused_bptt.RNN(3, 5, dropout=0.5)
    assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_same_refusal_of_arguments(name: str) -> None:
    call = WRONG_CALLS[name]
    expected = raised(lambda: call(nn.RNN(3, 5)))
    assert raised(lambda: call(fused_bptt.RNN(3, 5))) == expected


def test_state_dict_goes_both_ways() -> None:
    case = Case("state", num_layers=2, bidirectional=True)
    source, target = case.module(nn.RNN), fused_bptt.RNN(**case.options).double()
    assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    back = nn.RNN(**case.options).double()
    assert str(back.load_state_dict(target.state_dict())) == "<All keys matched successfully>"
    assert_exact(back.state_dict(), source.state_dict())
    inputs = case.inputs()
    assert_close(everything(target, *inputs), everything(source, *inputs))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch-save": lambda module: saved_and_loaded(module),
}


def saved_and_loaded(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_whole_and_its_own(how: str) -> None:
    case = Case("copies", num_layers=2)
    module = case.module(fused_bptt.RNN)
    inputs = case.inputs()
    expected = everything(module, *inputs)
    duplicate = COPIES[how](module)
    assert type(duplicate) is fused_bptt.RNN
    assert_exact(everything(duplicate, *inputs), expected)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert_exact(everything(module, *inputs), expected)
    assert not outputs(duplicate, *inputs)["output"].any()


CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "double": lambda m: m.double(),
    "to-float64": lambda m: m.to(torch.float64),
    "half-and-back": lambda m: m.half().double(),
    "to-empty-and-filled": lambda m: filled(m.to("meta").to_empty(device="cpu").double()),
    "share-memory": lambda m: m.double().share_memory(),
    "flattened": lambda m: flattened(m.double()),
    "reset": lambda m: filled(m.double()),
    "frozen-and-thawed": lambda m: m.double().requires_grad_(False).requires_grad_(True),
}


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    module.reset_parameters()
    return module


def flattened(module: nn.Module) -> nn.Module:
    module.flatten_parameters()
    return module


@pytest.mark.parametrize("how", CONVERSIONS)
def test_conversions_reach_the_computation(how: str) -> None:
    case = Case("conversions", num_layers=2, bidirectional=True)
    ours, theirs = (
        CONVERSIONS[how](case.module(kind, torch.float32)) for kind in (fused_bptt.RNN, nn.RNN)
    )
    inputs = case.inputs()
    assert_close(everything(ours, *inputs), everything(theirs, *inputs))


def test_assigned_parameters_are_used() -> None:
    case = Case("assigned")
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = case.module(kind)
        module.weight_hh_l0 = nn.Parameter(2 * module.weight_hh_l0.detach())
        module.bias_ih_l0.data.mul_(3)
        results.append(everything(module, *case.inputs()))
    assert_close(*results)


def test_functional_call_uses_the_parameters_that_it_is_given() -> None:
    case = Case("functional-call", num_layers=2)
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = case.module(kind)
        given = {name: 0.5 * value.detach() for name, value in module.named_parameters()}
        output, h_n = torch.func.functional_call(module, given, case.inputs())
        results.append({"output": output, "h_n": h_n})
        before = outputs(module, *case.inputs())
        assert not torch.equal(before["output"], output)
    assert_close(*results)


INSTRUCTIVE = tuple(
    variants(
        Case("forms", num_layers=2),
        batch_first=(False, True),
        batched=(False, True),
        bidirectional=(False, True),
    )
)


@pytest.mark.parametrize("case", INSTRUCTIVE, ids=ids(INSTRUCTIVE))
def test_same_form_of_the_result(case: Case) -> None:
    """Shapes, strides of what is returned, and a tuple of two."""
    ours, theirs = (case.module(kind)(*case.inputs()) for kind in (fused_bptt.RNN, nn.RNN))
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.shape == yours.shape
        assert mine.stride() == yours.stride()
        assert mine.requires_grad == yours.requires_grad


def test_keyword_arguments_of_forward() -> None:
    case = Case("keywords")
    module = case.module(fused_bptt.RNN)
    x, hx = case.inputs()
    assert torch.equal(module(input=x, hx=hx)[0], module(x, hx)[0])


def test_output_and_h_n_are_not_one_memory() -> None:
    module = Case("in-place").module(fused_bptt.RNN)
    output, h_n = module(*Case("in-place").inputs())
    before = h_n.clone()
    with torch.no_grad():
        output.zero_()
    assert torch.equal(h_n, before)


@pytest.mark.parametrize("which", [0, 1], ids=["output", "h_n"])
def test_a_change_in_place_is_never_silently_wrong(which: int) -> None:
    """The gradient after a change of a result is right, or refused by autograd's own checks."""
    case = Case("in-place")

    def gradient(kind: type[nn.RNNBase]) -> torch.Tensor:
        x, hx = case.inputs()
        case.module(kind)(x, hx)[which].mul_(2).sum().backward()
        return x.grad

    try:
        found = gradient(fused_bptt.RNN)
    except RuntimeError as error:
        found, refused = None, str(error)
    if found is None:
        assert "inplace" in refused
    else:
        assert_close({"x": found}, {"x": gradient(nn.RNN)})


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bidirectional": True}], ids=str)
def test_a_result_may_be_changed_in_place(options: dict[str, bool]) -> None:
    """It is no view, so only a backward pass that needs the old values refuses."""
    for kind in (fused_bptt.RNN, nn.RNN):
        output, h_n = kind(3, 4, **options)(torch.randn(5, 2, 3))
        output.relu_()
        h_n.mul_(2)
        assert output.min() >= 0


def test_no_grad_and_inference_mode() -> None:
    case = Case("no-grad", num_layers=2)
    module = case.module(fused_bptt.RNN)
    expected = outputs(module, *case.inputs())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            output, h_n = module(*case.inputs())
        assert not output.requires_grad
        assert_exact({"output": output.clone(), "h_n": h_n.clone()}, expected)


def test_training_step_lowers_the_loss_as_torchs_does() -> None:
    case = Case("training", T=8, B=4, num_layers=2, batch_first=True)
    curves = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = case.module(kind)
        losses = []
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x, hx = case.inputs()
        for _ in range(20):
            optimizer.zero_grad()
            output, _ = module(x, hx)
            loss = (output - 0.3).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert losses[-1] < losses[0]
        curves.append({"losses": torch.stack(losses)})
    assert_close(*curves)
