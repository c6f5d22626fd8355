"""What PyTorch offers around a module in training does to this one what it does to nn.RNN."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import LENGTHS, Case, ids
from helpers import everything
from tolerance import Named, assert_close, assert_exact
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, stateless
from torch.utils.checkpoint import checkpoint

import fused_bptt

CASES = (
    Case("one-layer", T=7, B=3, I=4, H=9),
    Case("relu", T=7, B=3, I=4, H=9, nonlinearity="relu"),
    Case("stacked", T=5, B=3, I=4, H=6, num_layers=2, bidirectional=True, batch_first=True),
    Case("packed", T=6, B=5, I=4, H=6, lengths=LENGTHS["unsorted"], bidirectional=True),
)
every_case = pytest.mark.parametrize("case", CASES, ids=ids(CASES))


class Through(nn.Module):
    """A module called by something else."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *args: Any) -> Any:
        return self.call(self.module, *args)


def through(case: Case, call: Callable[..., Any]) -> tuple[Named, Named]:
    """Everything about a case by `call`, and by the plain module."""
    module = case.module(fused_bptt.RNN)
    found = everything(Through(module, call), *case.inputs())
    plain = everything(module, *case.inputs())
    return {name.replace("grad module.", "grad "): value for name, value in found.items()}, plain


@pytest.mark.parametrize("use_reentrant", [False, True])
@every_case
def test_checkpoint(case: Case, use_reentrant: bool) -> None:
    """The forward pass is computed again in the backward pass, to the same bits."""
    calls = []

    def call(module: nn.Module, x: Any, hx: Tensor) -> Any:
        # checkpoint looks for tensors that need a gradient among its arguments: not inside x
        data = x.data if case.lengths else x

        def of(data: Tensor, hx: Tensor) -> Any:
            calls.append(1)
            output, h_n = module(x._replace(data=data) if case.lengths else data, hx)
            return (output.data if case.lengths else output), h_n

        return checkpoint(of, data, hx, use_reentrant=use_reentrant)

    assert_exact(*through(case, call))
    assert len(calls) == 2


class Hooks:
    """Pack to something that is no tensor at all, and count."""

    def __init__(self) -> None:
        self.packed = self.unpacked = 0

    def pack(self, tensor: Tensor) -> Any:
        self.packed += 1
        return tensor.detach().clone().numpy()

    def unpack(self, array: Any) -> Tensor:
        self.unpacked += 1
        return torch.from_numpy(array)


@every_case
def test_saved_tensor_hooks(case: Case) -> None:
    hooks = Hooks()

    def call(module: nn.Module, *args: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
            return module(*args)

    assert_exact(*through(case, call))
    assert hooks.packed == hooks.unpacked > 0


@every_case
def test_save_on_cpu(case: Case) -> None:
    def call(module: nn.Module, *args: Any) -> Any:
        with torch.autograd.graph.save_on_cpu():
            return module(*args)

    assert_exact(*through(case, call))


@every_case
def test_deterministic_algorithms(case: Case) -> None:
    """No operator refuses, none warns, and none changes its bits."""
    module = case.module(fused_bptt.RNN)
    plain = everything(module, *case.inputs())
    torch.use_deterministic_algorithms(True)
    try:
        found = everything(module, *case.inputs())
    finally:
        torch.use_deterministic_algorithms(False)
    assert_exact(found, plain)


@every_case
def test_saved_and_loaded_as_weights_alone(case: Case) -> None:
    buffer = io.BytesIO()
    module = case.module(fused_bptt.RNN)
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = fused_bptt.RNN(**case.options).double()
    other.load_state_dict(state)
    assert_exact(everything(other, *case.inputs()), everything(module, *case.inputs()))


def test_loaded_as_a_safe_global() -> None:
    module = CASES[0].module(fused_bptt.RNN)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([fused_bptt.RNN, getattr, set]):
        loaded = torch.load(buffer, weights_only=True)
    assert_exact(everything(loaded, *CASES[0].inputs()), everything(module, *CASES[0].inputs()))


@every_case
def test_made_on_meta_and_filled(case: Case) -> None:
    """Built without memory, then given the weights of another: to_empty, and assign=True."""
    source = case.module(fused_bptt.RNN)
    with torch.device("meta"):
        empty, assigned = (fused_bptt.RNN(**case.options, dtype=torch.float64) for _ in range(2))
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to_empty(device="cpu").load_state_dict(source.state_dict())
    assigned.load_state_dict(source.state_dict(), assign=True)
    expected = everything(source, *case.inputs())
    for module in (empty, assigned):
        assert_exact(everything(module, *case.inputs()), expected)


@pytest.mark.parametrize("case", CASES[:3], ids=ids(CASES[:3]))
def test_run_on_meta(case: Case) -> None:
    """Shapes of results and gradients, without memory."""
    found = {}
    for device in ("cpu", "meta"):
        module = case.module(fused_bptt.RNN).to(device)
        x, hx = (value.detach().to(device).requires_grad_() for value in case.inputs())
        output, h_n = module(x, hx)
        (output.sum() + h_n.sum()).backward()
        gradients = [leaf.grad for leaf in (x, hx, *module.parameters())]
        found[device] = [(v.shape, v.stride(), v.dtype) for v in (output, h_n, *gradients)]
    assert found["meta"] == found["cpu"]


@pytest.mark.parametrize("call", [stateless.functional_call, torch.func.functional_call])
@pytest.mark.filterwarnings("ignore:.*stateless:FutureWarning")
@every_case
def test_stateless(case: Case, call: Any) -> None:
    """Gradients reach the tensors that take the parameters' places."""
    results = []
    for kind in (fused_bptt.RNN, nn.RNN):
        module = case.module(kind)
        given = {n: (p.detach() / 2).requires_grad_() for n, p in module.named_parameters()}
        output, h_n = call(module, given, case.inputs())
        data = output.data if case.lengths else output
        gradients = torch.autograd.grad(data.sin().sum() + h_n.sum(), list(given.values()))
        results.append(dict(zip(given, gradients, strict=True)))
    assert_close(*results)


class Symmetric(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return W.triu() + W.triu(1).mT


def every_weight(module: nn.Module, change: Callable[[nn.Module, str], Any]) -> nn.Module:
    for name, _ in list(module.named_parameters()):
        if name.startswith("weight_hh"):
            change(module, name)
    return module


PARAMETRIZATIONS: dict[str, Callable[[nn.Module, str], Any]] = {
    "own": lambda module, name: parametrize.register_parametrization(module, name, Symmetric()),
    "orthogonal": parametrizations.orthogonal,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


def parametrized(case: Case, kind: type[nn.RNNBase], how: str) -> nn.Module:
    torch.manual_seed(0)
    module = every_weight(case.module(kind), PARAMETRIZATIONS[how])
    # A power iteration a call, and nn.RNN reads its weights several times a call: not in eval mode.
    return module.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("how", PARAMETRIZATIONS)
@every_case
def test_parametrizations(case: Case, how: str) -> None:
    """Values and the gradients of what is behind the weights."""
    ours, theirs = (
        everything(parametrized(case, kind, how), *case.inputs())
        for kind in (fused_bptt.RNN, nn.RNN)
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("how", ["own", "orthogonal", "weight_norm", "spectral_norm"])
def test_parametrized_module_is_copied(how: str) -> None:
    module = parametrized(CASES[2], fused_bptt.RNN, how)
    expected = everything(module, *CASES[2].inputs())
    assert_exact(everything(copy.deepcopy(module), *CASES[2].inputs()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_grad_scaler(dtype: torch.dtype) -> None:
    """Under autocast, with scaled losses: overflow is seen and skipped, and the loss goes down."""
    rnn, head = fused_bptt.RNN(4, 9), nn.Linear(9, 1)
    optimizer = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    x = torch.randn(12, 16, 4)
    losses = []
    before = copy.deepcopy(rnn.state_dict())
    for step in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            output, _ = rnn(x)
            loss = (head(output) - 0.5).float().square().mean()
        if step == 0:  # an overflow, whatever the type
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 0:
            assert_exact(rnn.state_dict(), before)
            assert scaler.get_scale() == 2.0**19
        else:
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not any(torch.equal(value, before[name]) for name, value in rnn.state_dict().items())


def test_scaled_gradients_are_the_gradients() -> None:
    """What the scaler multiplies, it divides out: powers of two, to the same bits."""
    case = CASES[0]
    module = case.module(fused_bptt.RNN, torch.float32)
    x, hx = case.inputs(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    module(x, hx)[0].square().sum().backward()
    plain = {name: p.grad.clone() for name, p in module.named_parameters()}
    optimizer.zero_grad()
    scaler.scale(module(x, hx)[0].square().sum()).backward()
    scaler.unscale_(optimizer)
    assert_exact({name: p.grad for name, p in module.named_parameters()}, plain)


def test_what_inference_mode_gives_may_not_be_differentiated() -> None:
    """Torch's own rule, in its own words: never a wrong gradient."""
    module = fused_bptt.RNN(6, 6)
    with torch.inference_mode():
        output, _ = module(torch.randn(5, 3, 6))
    assert output.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        module(output)
