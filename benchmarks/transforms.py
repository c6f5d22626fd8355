"""Which implementation has which derivative and transform: each is tried, its result compared.

    python -m benchmarks.transforms               # tries everything, into benchmarks/results/
    python -m benchmarks.transforms --table       # and writes the table of docs/transforms.md

Every attempt is made with the same small case and compared with a loop over time in plain torch, in
float64. What needs a GPU or a package that is not there is not tried, and the file says so.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.pages import named, split
from benchmarks.readme import BEGIN, END
from fused_bptt.bench import machine

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "transforms.md"
RESULTS = "benchmarks/results/transforms.json"

T, B, I, H, N = 6, 4, 16, 64, 3  # noqa: E741
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
#: Far above rounding, far below any mistake.
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3}

#: (x [T, B, I], hx [1, B, H], the four weights) to (output, h_n), as nn.RNN.
Rnn = Callable[..., tuple[Tensor, Tensor]]
Found = list[Tensor]


class NothingToTryError(Exception):
    """The implementation has no counterpart of what is asked for."""


class NotTriedError(Exception):
    """Something is missing here."""


def inputs(device: str, dtype: torch.dtype) -> list[Tensor]:
    """x, hx, and the weights of nn.RNN."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((T, B, I), (1, B, H), (H, I), (H, H), (H,), (H,))
    scales = (1, 1, I**-0.5, H**-0.5, 1, 1)
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def loop(x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """What all are compared with."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    h, states = hx[0], []
    for step in x.unbind(0):
        h = torch.tanh(step @ weight_ih.mT + bias_ih + h @ weight_hh.mT + bias_hh)
        states.append(h)
    return torch.stack(states), h.unsqueeze(0)


# ----------------------------------------------------------------------------- what is tried


def loss_of(rnn: Rnn) -> Callable[..., Tensor]:
    def loss(*args: Tensor) -> Tensor:
        output, h_n = rnn(*args)
        return output.sin().sum() + h_n.square().sum()

    return loss


def order(rnn: Rnn, args: Found, times: int) -> Found:
    """A derivative of a derivative ... by backward through backward."""
    leaves = [value.clone().requires_grad_() for value in args]
    value = loss_of(rnn)(*leaves)
    for _ in range(times - 1):
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return list(torch.autograd.grad(value, leaves))


def reverse_mode(rnn: Rnn, args: Found) -> Found:
    return order(rnn, args, 1)


def second_order(rnn: Rnn, args: Found) -> Found:
    return order(rnn, args, 2)


def third_order(rnn: Rnn, args: Found) -> Found:
    return order(rnn, args, 3)


def forward_mode(rnn: Rnn, args: Found) -> Found:
    primal, tangent = jvp(rnn, tuple(args), tuple(value.cos() for value in args))
    return [*primal, *tangent]


def hessians(rnn: Rnn, args: Found) -> Found:
    return [hessian(loss_of(rnn), argnums=5)(*args)]


def vmap_inputs(rnn: Rnn, args: Found) -> Found:
    x, hx, *weights = args
    many = torch.stack([x * (1 + k) for k in range(N)])
    return list(vmap(rnn, (0, None, None, None, None, None))(many, hx, *weights))


def vmap_weights(rnn: Rnn, args: Found) -> Found:
    x, hx, *weights = args
    members = [torch.stack([value * (1 + k) for k in range(N)]) for value in weights]
    return list(vmap(rnn, (None, None, 0, 0, 0, 0))(x, hx, *members))


def per_sample(rnn: Rnn, args: Found) -> Found:
    x, hx, *weights = args

    def loss(x: Tensor, hx: Tensor, *weights: Tensor) -> Tensor:
        return loss_of(rnn)(x.unsqueeze(1), hx.unsqueeze(1), *weights)

    gradients = grad(loss, argnums=(2, 3, 4, 5))
    return list(vmap(gradients, (1, 1, None, None, None, None))(x, hx, *weights))


def compiled(rnn: Rnn, args: Found) -> Found:
    if rnn is loop:
        return reverse_mode(rnn, args)
    torch._dynamo.reset()
    return reverse_mode(torch.compile(rnn, backend="aot_eager", fullgraph=True), args)


def compiled_once(rnn: Rnn, args: Found) -> Found:
    x, hx, *weights = args
    if rnn is loop:
        return [loop(x[:steps], hx, *weights)[0] for steps in (2, 3, 5)]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    call = torch.compile(rnn, backend=counter, dynamic=True, fullgraph=True)
    found = [call(x[:steps].clone(), hx, *weights)[0] for steps in (2, 3, 5)]
    if counter.frame_count != 1:
        raise RuntimeError(f"{counter.frame_count} graphs for three lengths")
    return found


class Wrapped(nn.Module):
    """A function of tensors as the exporters want it."""

    def __init__(self, rnn: Rnn, weights: list[Tensor]) -> None:
        super().__init__()
        self.rnn = rnn
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x, hx, *self.weights)


def exported(rnn: Rnn, args: Found) -> Found:
    x, hx, *weights = args
    if rnn is loop:
        return list(loop(torch.cat([x, x]), hx, *weights))
    shapes = ({0: torch.export.Dim("T")}, None)
    program = torch.export.export(Wrapped(rnn, weights), (x, hx), dynamic_shapes=shapes)
    return list(program.module()(torch.cat([x, x]), hx))


def onnx(rnn: Rnn, args: Found) -> Found:
    """Of float32: the runtime has no RNN of float64."""
    x, hx, *weights = (value.float() for value in args)
    if rnn is loop:
        return list(loop(torch.cat([x, x]), hx, *weights))
    try:
        import onnxruntime
    except ImportError as error:
        raise NotTriedError("no onnxruntime") from error
    from fused_bptt.onnx import TRANSLATIONS

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rnn.onnx"
        torch.onnx.export(
            Wrapped(rnn, weights).eval(),
            (x, hx),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC}, None),
            custom_translation_table=TRANSLATIONS,
        ).save(path)
        session = onnxruntime.InferenceSession(path)
        names = [node.name for node in session.get_inputs()]
        values = [value.cpu().numpy() for value in (torch.cat([x, x]), hx)]
        found = session.run(None, dict(zip(names, values, strict=True)))
        return [torch.from_numpy(value) for value in found]


def packed(rnn: Rnn, args: Found) -> Found:
    """Gradients and second derivatives of sequences of several lengths."""
    x, hx, *weights = args
    lengths = torch.tensor([T, T - 1, T - 1, 2])
    leaves = [value.clone().requires_grad_() for value in weights]
    if rnn is loop:
        parts = [
            loop(x[:n, b : b + 1], hx[:, b : b + 1], *leaves)[0] for b, n in enumerate(lengths)
        ]
        value = torch.stack([part.sin().sum() for part in parts]).sum()
    elif getattr(rnn, "packs", False):
        output, _ = rnn(pack_padded_sequence(x, lengths), hx, *leaves)
        value = output.data.sin().sum()
    else:
        raise NothingToTryError
    first = torch.autograd.grad(value, leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)
    return [*(g.detach() for g in first), *second]


def in_eval_mode(rnn: Rnn, args: Found) -> Found:
    if rnn is loop:
        return reverse_mode(loop, args)
    if not hasattr(rnn, "module"):
        raise NothingToTryError
    rnn.module.eval()
    try:
        return reverse_mode(rnn, args)
    finally:
        rnn.module.train()


TRIED: dict[str, Callable[[Any, Found], Found]] = {
    "gradient": reverse_mode,
    "gradient in eval mode": in_eval_mode,
    "second order": second_order,
    "third order": third_order,
    "second order, `PackedSequence`": packed,
    "`jvp`": forward_mode,
    "`hessian`": hessians,
    "`vmap` over inputs": vmap_inputs,
    "`vmap` over weights": vmap_weights,
    "gradients of each sample": per_sample,
    "compiled whole, with gradient": compiled,
    "compiled once for every T": compiled_once,
    "exported for every T": exported,
    "ONNX (dynamo exporter) for every T": onnx,
}


# ----------------------------------------------------------------------------- who is tried


@dataclass
class Module:
    """A module with nn.RNN's parameters, as a function of them."""

    module: nn.RNNBase
    packs = True

    def __call__(self, x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(self.module, dict(zip(NAMES, weights, strict=True)), (x, hx))


def ours() -> tuple[Any, str, torch.dtype]:
    from fused_bptt import RNN

    return Module(RNN(I, H, dtype=torch.float64)), "cpu", torch.float64


def theirs_on_cpu() -> tuple[Any, str, torch.dtype]:
    return Module(nn.RNN(I, H, dtype=torch.float64)), "cpu", torch.float64


def a_gpu() -> None:
    if not torch.cuda.is_available():
        raise NotTriedError("no GPU")


def theirs_on_cudnn() -> tuple[Any, str, torch.dtype]:
    a_gpu()
    return Module(nn.RNN(I, H, dtype=torch.float64, device="cuda")), "cuda", torch.float64


def flashrnn() -> tuple[Any, str, torch.dtype]:
    a_gpu()
    if importlib.util.find_spec("flashrnn") is None:
        raise NotTriedError("no flashrnn")
    from flashrnn import flashrnn as walk

    def rnn(x: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        if isinstance(x, PackedSequence):
            raise NothingToTryError
        u = nn.functional.linear(x.transpose(0, 1), weight_ih)
        states, _ = walk(
            u.reshape(u.size(0), u.size(1), 1, 1, H).contiguous(),
            weight_hh.view(1, 1, H, H),
            (bias_ih + bias_hh).view(1, 1, H),
            states=hx.view(1, hx.size(1), 1, 1, H),
            function="elman",
            backend="cuda_fused",
            dtype="float32",
        )
        output = states[0].reshape(u.size(0), u.size(1), H).transpose(0, 1)
        return output, output[-1:]

    return rnn, "cuda", torch.float32


TORCHES = {
    "fused_bptt.RNN": ours,
    "nn.RNN, CPU": theirs_on_cpu,
    "nn.RNN, cuDNN": theirs_on_cudnn,
    "FlashRNN": flashrnn,
}


def with_jax() -> dict[str, Callable[[], Found]]:
    """The same with lax.scan, in the words of JAX."""
    if importlib.util.find_spec("jax") is None:
        raise NotTriedError("no jax")
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    args = [jnp.asarray(value.numpy()) for value in inputs("cpu", torch.float64)]
    traces = []

    def rnn(x: Any, hx: Any, *weights: Any) -> tuple[Any, Any]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        traces.append(x.shape)

        def step(h: Any, x: Any) -> tuple[Any, Any]:
            h = jnp.tanh(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)
            return h, h

        last, output = jax.lax.scan(step, hx[0], x)
        return output, last[None]

    def loss(*args: Any) -> Any:
        output, h_n = rnn(*args)
        return jnp.sin(output).sum() + (h_n**2).sum()

    numbers = tuple(range(6))

    def norm(of: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: sum((g**2).sum() for g in jax.grad(of, numbers)(*args))

    def stack(value: Any) -> Any:
        return jnp.stack([value * (1 + k) for k in range(N)])

    def sample(x: Any, hx: Any, *weights: Any) -> Any:
        return loss(x[:, None], hx[:, None], *weights)

    def once() -> Any:
        call, found = jax.jit(rnn), []
        traces.clear()
        for steps in (2, 3, 5):
            found.append(call(args[0][:steps], *args[1:])[0])
        if len(traces) != 1:
            raise RuntimeError(f"{len(traces)} graphs for three lengths")
        return found

    def export() -> Any:
        (steps,) = jax.export.symbolic_shape("T")
        shapes = [jax.ShapeDtypeStruct((steps, *args[0].shape[1:]), args[0].dtype), *args[1:]]
        program = jax.export.export(jax.jit(rnn))(*shapes)
        return program.call(jnp.concatenate([args[0]] * 2), *args[1:])

    tried = {
        reverse_mode: lambda: jax.grad(loss, numbers)(*args),
        second_order: lambda: jax.grad(norm(loss), numbers)(*args),
        third_order: lambda: jax.grad(norm(norm(loss)), numbers)(*args),
        forward_mode: lambda: jax.jvp(rnn, args, [jnp.cos(value) for value in args]),
        hessians: lambda: jax.hessian(loss, 5)(*args),
        vmap_inputs: lambda: jax.vmap(rnn, (0, *[None] * 5))(stack(args[0]), *args[1:]),
        vmap_weights: lambda: jax.vmap(rnn, (None, None, 0, 0, 0, 0))(
            *args[:2], *map(stack, args[2:])
        ),
        per_sample: lambda: jax.vmap(jax.grad(sample, (2, 3, 4, 5)), (1, 1, *[None] * 4))(*args),
        compiled: lambda: jax.jit(jax.grad(loss, numbers))(*args),
        compiled_once: once,
        exported: export,
    }

    def tensors(call: Callable[[], Any]) -> Found:
        return [torch.from_numpy(np.array(value)) for value in jax.tree.leaves(call())]

    return {
        name: functools.partial(tensors, tried[of]) for name, of in TRIED.items() if of in tried
    }


# ----------------------------------------------------------------------------- verdicts


def difference(found: Found, expected: Found) -> float:
    """The largest, of the largest value expected."""
    assert [value.shape for value in found] == [value.shape for value in expected]
    pairs = zip(found, expected, strict=True)
    return max(
        ((a.detach().double().cpu() - e.double()).abs().max() / e.abs().max()).item()
        for a, e in pairs
    )


def verdict(attempt: Callable[[], Found], expected: Found, allowed: float) -> dict[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = attempt()
    except NothingToTryError:
        return {"verdict": "nothing to try"}
    except NotTriedError as error:
        return {"verdict": "not tried", "reason": str(error)}
    except Exception as error:  # whatever it is, it is the finding
        plain = re.sub(r"\x1b\[\d+m", "", str(error))
        lines = [line.strip() for line in plain.splitlines() if line.strip()]
        return {"verdict": "no", "reason": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    error = difference(found, expected)
    if not error <= allowed:
        return {"verdict": "wrong", "reason": f"differs from the loop by {error:.1e}"}
    return {"verdict": "yes"}


def everything() -> Iterator[tuple[str, str, dict[str, str]]]:
    truth = {
        name: [value.detach() for value in of(loop, inputs("cpu", torch.float64))]
        for name, of in TRIED.items()
    }
    for who, make in TORCHES.items():
        try:
            rnn, device, dtype = make()
        except NotTriedError as error:
            for name in TRIED:
                yield name, who, {"verdict": "not tried", "reason": str(error)}
            continue
        for name, of in TRIED.items():
            allowed = ALLOWED[torch.float32 if of is onnx else dtype]
            attempt = functools.partial(of, rnn, inputs(device, dtype))
            yield name, who, verdict(attempt, truth[name], allowed)
    try:
        attempts = with_jax()
    except NotTriedError as error:
        attempts = {}
        missing = {"verdict": "not tried", "reason": str(error)}
    else:
        missing = {"verdict": "nothing to try"}
    for name in TRIED:
        attempt = attempts.get(name)
        found = missing if attempt is None else verdict(attempt, truth[name], 1e-9)
        yield name, "JAX `lax.scan`", found


def table(results: dict[str, Any]) -> str:
    """Of docs/transforms.md."""
    cells = results["cells"]
    columns = list(next(iter(cells.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    reasons: list[str] = []
    for name, row in cells.items():
        words = []
        for cell in row.values():
            word = "—" if cell["verdict"] == "nothing to try" else cell["verdict"]
            if cell["verdict"] == "not tried":
                word = f"not tried: {cell['reason']}"
            elif "reason" in cell:
                if cell["reason"] not in reasons:
                    reasons.append(cell["reason"])
                word += f" [{reasons.index(cell['reason']) + 1}]"
            words.append(word)
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    versions = results["software"]["packages"]
    notes = [f"{number}. `{reason}`" for number, reason in enumerate(reasons, 1)]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "jax") if versions[name])
    return "\n".join([*lines, "", *notes, "", f"{packages}; {results['machine']['cpu']}."])


def render(text: str) -> str:
    """The page with its table written anew."""
    before, _, after = split(text, BEGIN, END)
    made = table(json.loads((ROOT / RESULTS).read_text()))
    return f"{before}{BEGIN}\n{named(RESULTS, 'transforms')}\n\n{made}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transforms", description=__doc__)
    parser.add_argument("--table", action="store_true", help="write the table of the page, too")
    parser.add_argument("--only-table", action="store_true", help="of the results that are there")
    options = parser.parse_args()
    if not options.only_table:
        cells: dict[str, dict[str, Any]] = {name: {} for name in TRIED}
        for name, who, found in everything():
            cells[name][who] = found
            print(f"{who:16} {name:32} {' '.join(found.values())}", file=sys.stderr, flush=True)
        described = {
            "schema": 1,
            "machine": machine.describe_machine(),
            "software": machine.describe_software(),
            "cells": cells,
        }
        (ROOT / RESULTS).write_text(json.dumps(described, indent=1) + "\n")
    if options.table or options.only_table:
        PAGE.write_text(render(PAGE.read_text()))


if __name__ == "__main__":
    main()
