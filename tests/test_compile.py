"""torch.compile, torch.export, AOTInductor and ONNX: the same numbers as the eager call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_runs, data_of
from tolerance import Named, assert_close, assert_exact
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_bptt

OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"nonlinearity": "relu"},
    "stacked": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no-bias": {"bias": False},
}
I, H = 3, 4  # noqa: E741


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def rnn(**options: Any) -> fused_bptt.RNN:
    return fused_bptt.RNN(I, H, dtype=torch.float64, **options)


def sequence(*shape: int) -> Tensor:
    return torch.randn(*shape, I, dtype=torch.float64, requires_grad=True)


def packed(*lengths: int, dtype: torch.dtype = torch.float64) -> PackedSequence:
    """In the order given, longest first."""
    sequences = pack_sequence([torch.randn(length, I, dtype=dtype) for length in lengths])
    sequences.data.requires_grad_()
    return sequences


def run(call: Callable[..., Any], module: nn.Module, x: Any, *hx: Tensor) -> Named:
    """Both results and all gradients of `call`, which computes `module`."""
    leaves = {"x": data_of(x), **dict(module.named_parameters())}
    output, h_n = call(x, *hx)
    (data_of(output).sin().sum() + (h_n * h_n).sum()).backward()
    found = {"output": data_of(output).detach(), "h_n": h_n.detach()}
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        found[f"grad {name}"], leaf.grad = leaf.grad, None
    return found


def compiled(call: Callable[..., Any], backend: Any = "aot_eager", **settings: Any) -> Any:
    return torch.compile(call, backend=backend, fullgraph=True, **settings)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_module(options: dict[str, Any]) -> None:
    module, x = rnn(**options), sequence(5, 2)
    assert_exact(run(compiled(module), module, x), run(module, module, x))


def test_module_with_initial_state() -> None:
    module, x = rnn(bidirectional=True), sequence(5)  # unbatched
    hx = torch.randn(2, H, dtype=torch.float64)
    assert_exact(run(compiled(module), module, x, hx), run(module, module, x, hx))


@pytest.mark.parametrize("with_hx", [False, True])
def test_packed(with_hx: bool) -> None:
    """Other lengths, and another number of sequences, are no reason to compile again."""
    module = rnn(num_layers=2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    call = compiled(module, counter, dynamic=True)
    counts = []
    for lengths in ((7, 5, 5, 4, 2, 2), (4, 4, 2), (9, 6, 5, 2, 2)):
        x = packed(*lengths)
        hx = [torch.randn(4, len(lengths), H, dtype=torch.float64)] if with_hx else []
        assert_exact(run(call, module, x, *hx), run(module, module, x, *hx))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_inductor(dtype: torch.dtype) -> None:
    """bfloat16 on the CPU goes another way: not through the operator of a whole layer."""
    module = fused_bptt.RNN(I, H, dtype=dtype)
    x = torch.randn(5, 2, I, dtype=dtype, requires_grad=True)
    call = compiled(module, "inductor")
    with torch.no_grad():
        assert_exact({"h": call(x)[0]}, {"h": module(x)[0]})


def test_training_with_inductor() -> None:
    module, x = rnn(), sequence(5, 2)
    ours = run(compiled(module, "inductor", dynamic=True), module, x)
    assert_close(ours, run(module, module, x))


@pytest.mark.parametrize("marked", [False, True], ids=["dynamic=True", "mark_dynamic"])
def test_compiled_once_for_every_length_and_batch(marked: bool) -> None:
    module = rnn(num_layers=2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    call = compiled(module, counter, dynamic=None if marked else True)
    counts = []
    for T, B in ((5, 2), (7, 3), (1000, 2), (2, 9)):
        x = sequence(T, B)
        if marked:
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(x, 1)
        assert_exact(run(call, module, x), run(module, module, x))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 4


def test_graphs_do_not_grow_with_the_length() -> None:
    """What is compiled for T = 10,000 is what is compiled for T = 10, forward and backward."""

    def graphs(T: int) -> list[list[str]]:
        found: list[list[str]] = []

        def record(graph: torch.fx.GraphModule, _: Any) -> Any:
            found.append([str(node.target) for node in graph.graph.nodes])
            return make_boxed_func(graph)

        torch._dynamo.reset()
        module = rnn(bidirectional=True)
        call = compiled(module, aot_autograd(fw_compiler=record, bw_compiler=record))
        run(call, module, sequence(T, 2))
        return found

    short, long = graphs(10), graphs(10_000)
    assert short == long
    assert [len([name for name in names if "fused_bptt" in name]) for names in short] == [1, 1]


def test_without_gradients() -> None:
    module, x = rnn(), sequence(5, 2)
    call = compiled(module)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output, h_n = call(x)
        assert_exact({"output": output}, {"output": module(x)[0].detach()})
        assert_exact({"h_n": h_n}, {"h_n": module(x)[1].detach()})


def test_autocast() -> None:
    module = fused_bptt.RNN(I, H)
    x = torch.randn(5, 2, I, requires_grad=True)

    def call(x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, h_n = module(x)
            return output.float(), h_n.float()

    assert_exact(run(compiled(call), module, x), run(call, module, x))


def test_the_compiler_is_loaded_when_something_is_compiled() -> None:
    assert_runs(
        "import sys, torch, fused_bptt\n"
        "x = torch.zeros(3, 2, 4, requires_grad=True)\n"
        "fused_bptt.RNN(4, 5)(x)[0].sum().backward()\n"
        "assert 'torch._dynamo' not in sys.modules"
    )


# ------------------------------------------------------------- transforms inside torch.compile


def loss(weights: list[Tensor], x: Tensor) -> Tensor:
    output, h_n = fused_bptt.rnn(x, None, weights, bidirectional=True)
    return output.sin().sum() + h_n.square().sum()


def last(weights: list[Tensor], x: Tensor) -> Tensor:
    return fused_bptt.rnn(x, None, weights, bidirectional=True)[1]


def pull(weights: list[Tensor], x: Tensor) -> Any:
    value, back = vjp(loss, weights, x)
    return back(torch.ones_like(value))


TRANSFORMS: dict[str, Callable[[list[Tensor], Tensor, Tensor], Any]] = {
    "grad": lambda weights, x, y: grad(loss)(weights, x),
    "grad-of-grad": lambda weights, x, y: grad(
        lambda x: grad(loss, argnums=1)(weights, x).square().sum()
    )(x),
    "vjp": lambda weights, x, y: pull(weights, x),
    # Not of two parts of one tensor: torch 2.13 fails there by itself, even with a linear layer.
    "jvp": lambda weights, x, y: jvp(lambda x: loss(weights, x), (x,), (y,)),
    "vmap": lambda weights, x, y: vmap(loss, in_dims=(None, 0))(weights, torch.stack([x, y])),
    "vmap-weights": lambda weights, x, y: vmap(loss, in_dims=(0, None))(
        [torch.stack([value, 2 * value]) for value in weights], x
    ),
    "vmap-grad": lambda weights, x, y: vmap(grad(loss), in_dims=(None, 0))(
        weights, torch.stack([x, y])
    ),
    "jacrev": lambda weights, x, y: jacrev(last)(weights, x),
    "jacfwd": lambda weights, x, y: jacfwd(last, argnums=1)(weights, x),
    "hessian": lambda weights, x, y: hessian(loss, argnums=1)(weights, x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_inside(transform: Callable[[list[Tensor], Tensor, Tensor], Any]) -> None:
    """Dynamo by itself drops the backward of an autograd.Function here: wrong, not refused."""
    weights = [value.detach() for value in rnn(bidirectional=True).parameters()]
    x, y = sequence(3, 2).detach(), sequence(3, 2).detach()
    ours, theirs = (
        dict(enumerate(torch.utils._pytree.tree_leaves(call(weights, x, y))))
        for call in (compiled(transform), transform)
    )
    assert_close(*({str(key): value for key, value in each.items()} for each in (ours, theirs)))


def test_gradients_of_each_sample_of_a_module() -> None:
    module = rnn(batch_first=True)
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def of_sample(parameters: Named, x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x.unsqueeze(0),))[0].sin().sum()

    def per_sample(parameters: Named, x: Tensor) -> Named:
        return vmap(grad(of_sample), in_dims=(None, 0))(parameters, x)

    x = sequence(6, 5).detach()
    assert_close(compiled(per_sample)(parameters, x), per_sample(parameters, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_each_sample_are_compiled_once(dtype: torch.dtype) -> None:
    """For every length and number of samples, with the operator of a whole layer and without."""
    module = rnn().to(dtype)
    weights = [value.detach() for value in module.parameters()]

    def of_sample(weights: list[Tensor], x: Tensor) -> Tensor:
        return fused_bptt.rnn(x, None, weights)[0].sin().sum()

    per_sample = vmap(grad(of_sample), in_dims=(None, 1))
    counter = CompileCounterWithBackend("aot_eager")
    call = compiled(per_sample, counter, dynamic=True)
    for T, samples in ((5, 6), (5, 5), (7, 4), (6, 9)):  # the first are no other sizes
        x = sequence(T, samples).detach().to(dtype)
        found, expected = (dict(enumerate(of(weights, x))) for of in (call, per_sample))
        assert_exact(*({str(key): bar for key, bar in of.items()} for of in (found, expected)))
    assert counter.frame_count == 1


def test_gradient_penalty() -> None:
    """A gradient inside, and the backward pass through it outside."""
    module, x = rnn(), sequence(5, 2)

    def call(x: Tensor) -> Any:
        return grad(lambda x: module(x)[0].sin().sum())(x), module(x)[1]

    assert_close(run(compiled(call), module, x), run(call, module, x))


def test_torch_refuses_the_graph_of_a_compiled_gradient() -> None:
    """With its own words; the way round is the gradient inside, as above."""
    x = sequence(5, 2)
    output, _ = compiled(rnn())(x)
    (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()


# ----------------------------------------------------------------------------- torch.export

T_AND_B = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_export(options: dict[str, Any], strict: bool, tmp_path: Path) -> None:
    module = rnn(**options).eval()
    program = torch.export.export(
        module, (sequence(5, 2).detach(),), dynamic_shapes=(T_AND_B,), strict=strict
    )
    torch.export.save(program, tmp_path / "rnn.pt2")
    loaded = torch.export.load(tmp_path / "rnn.pt2").module()
    for T, B in ((5, 2), (50, 7), (2, 3)):
        x = sequence(T, B).detach()
        output, h_n = loaded(x)
        expected, expected_h_n = module(x)
        assert_exact({"output": output}, {"output": expected.detach()})
        assert_exact({"h_n": h_n}, {"h_n": expected_h_n.detach()})


def test_aot_inductor(tmp_path: Path) -> None:
    """Packaged with dynamic T and B, and used by a process that has not seen the module."""
    module = fused_bptt.RNN(I, H, num_layers=2).eval()
    x, hx = torch.randn(5, 2, I), torch.randn(2, 2, H)
    shapes = (T_AND_B, {1: T_AND_B[1]})
    program = torch.export.export(module, (x, hx), dynamic_shapes=shapes)
    package = str(tmp_path / "rnn.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the compiler's own making
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=package,
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # half the time
        )
    x, hx = torch.randn(50, 7, I), torch.randn(2, 7, H)
    torch.save((x, hx, *module(x, hx)), tmp_path / "case.pt")
    assert_runs(
        "import torch, fused_bptt\n"
        f"run = torch._inductor.aoti_load_package({package!r})\n"
        f"x, hx, *expected = torch.load({str(tmp_path / 'case.pt')!r})\n"
        "for ours, theirs in zip(run(x, hx), expected):\n"
        "    assert torch.equal(ours, theirs)"
    )


# ------------------------------------------------------------------------------------- ONNX


ONNX_OPTIONS = OPTIONS | {
    phi: {"nonlinearity": phi, "bidirectional": True} for phi in ("sigmoid", "softplus", "identity")
}


def to_onnx(module: nn.Module, *args: Tensor, shapes: tuple[Any, ...]) -> Any:
    from fused_bptt import onnx as translation

    return torch.onnx.export(
        module.eval(),
        args,
        dynamo=True,
        verbose=False,
        dynamic_shapes=shapes,
        custom_translation_table=translation.TRANSLATIONS,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter's own making
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("options", ONNX_OPTIONS.values(), ids=ONNX_OPTIONS)
def test_onnx(options: dict[str, Any], with_hx: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = fused_bptt.RNN(I, H, **options)
    states = module.num_layers * (2 if module.bidirectional else 1)

    def inputs(T: int, B: int) -> list[Tensor]:
        x = torch.randn(B, T, I) if module.batch_first else torch.randn(T, B, I)
        return [x, torch.randn(states, B, H)] if with_hx else [x]

    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic}, {1: dynamic}) if with_hx else ({0: dynamic, 1: dynamic},)
    to_onnx(module, *inputs(5, 2), shapes=shapes).save(tmp_path / "rnn.onnx")

    model = onnx.load(tmp_path / "rnn.onnx")
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("RNN") == module.num_layers
    session = runtime.InferenceSession(tmp_path / "rnn.onnx")
    for T, B in ((5, 2), (50, 7), (1, 1)):
        values = inputs(T, B)
        names = [node.name for node in session.get_inputs()]
        found = session.run(
            None, {n: value.numpy() for n, value in zip(names, values, strict=True)}
        )
        for ours, theirs in zip(found, module(*values), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs.detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx_has_no_packed_sequence() -> None:
    pytest.importorskip("onnxscript")

    class OnRows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fused_bptt.RNN(I, H)

        def forward(self, data: Tensor, batch_sizes: Tensor, hx: Tensor) -> Tensor:
            return self.rnn(PackedSequence(data, batch_sizes), hx)[0].data

    x = packed(3, 2, dtype=torch.float32)
    with pytest.raises(Exception, match="a PackedSequence has no counterpart in ONNX"):
        to_onnx(OnRows(), x.data.detach(), x.batch_sizes, torch.zeros(1, 2, H), shapes=({}, {}, {}))
