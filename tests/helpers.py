"""What the test files share: run a module or an op, and name everything that comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_bptt

Named = dict[str, Tensor]

LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_TYPES = (torch.float64, *LOW_PRECISION)


def data_of(sequence: Tensor | PackedSequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def cotangent(like: Tensor, seed: int) -> Tensor:
    """The same random numbers for the same shape and seed, whatever the type."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return values.to(like)


def outputs(module: nn.Module, x: Tensor | PackedSequence, hx: Tensor | None = None) -> Named:
    """Output and h_n."""
    output, h_n = module(x, hx)
    return {"output": data_of(output).detach(), "h_n": h_n.detach()}


def everything(
    module: nn.Module,
    x: Tensor | PackedSequence,
    hx: Tensor | None = None,
    rounded_to: torch.dtype | None = None,
) -> Named:
    """Output, h_n, and the gradients of all leaves for a random cotangent of both.

    `rounded_to` rounds the cotangents to another type, as if the outputs were of that type.
    """
    leaves = {"x": data_of(x), **dict(module.named_parameters())}
    if hx is not None:
        leaves["hx"] = hx
    for leaf in leaves.values():
        leaf.grad = None
    output, h_n = module(x, hx)
    found = {"output": data_of(output), "h_n": h_n}
    cotangents = [
        cotangent(value, seed).to(rounded_to or value.dtype).to(value.dtype)
        for seed, value in enumerate(found.values())
    ]
    torch.autograd.backward(list(found.values()), cotangents)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"no gradient for {name}"
        found[f"grad {name}"] = leaf.grad
    return {name: value.detach().clone() for name, value in found.items()}


def run_case(case: Case, kind: type[nn.RNNBase], dtype: torch.dtype = torch.float64) -> Named:
    """Everything about a case, computed by nn.RNN or by fused_bptt.RNN."""
    return everything(case.module(kind, dtype), *case.inputs(dtype))


def truth(case: Case, dtype: torch.dtype) -> Named:
    """Everything about a case in float64, from the numbers as `dtype` holds them."""
    module = case.module(nn.RNN, dtype).double()
    x, hx = case.inputs(dtype)

    def widen(leaf: Tensor) -> Tensor:
        return leaf.detach().double().requires_grad_()

    wide = x._replace(data=widen(x.data)) if isinstance(x, PackedSequence) else widen(x)
    return everything(module, wide, None if hx is None else widen(hx), rounded_to=dtype)


def raised(call: Callable[[], object]) -> tuple[type[BaseException], str]:
    """Type and message of what a call raises."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError(f"expected an exception, got {result!r}")


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    """For another process that has to find the same package, and these helpers."""
    paths = [Path(__file__).parent, Path(fused_bptt.__file__).parents[1]]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **(changes or {})}


def run_python(
    code: str, timeout: float = 60, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(env),
        check=False,
    )


def assert_runs(code: str, timeout: float = 60, env: dict[str, str] | None = None) -> str:
    """The output of a program that has to succeed in time; a hang fails."""
    try:
        done = run_python(code, timeout, env)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"no end after {timeout:g} s") from error
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
