"""Who is timed on the GPU, all with the same interface: prepare(cell) gives two things to call.

Each call computes on data that stays in place: the output alone, nothing kept for a gradient; or
the output and the gradients of x, h_0 and every weight, for a given cotangent of the output.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.gpu.cells import Cell

Call = Callable[[], Any]
OURS, BASELINE = "fused_bptt.RNN", "nn.RNN"


@dataclass(frozen=True)
class Prepared:
    forward: Call
    forward_backward: Call
    captured: bool = True  # whether a CUDA graph can hold it


def _module(cell: Cell, kind: type[nn.RNNBase], dtype: torch.dtype) -> tuple[nn.RNNBase, Any, Any]:
    """The same weights and inputs for every rival."""
    torch.manual_seed(0)
    model = nn.RNN(cell.I, cell.H, cell.layers, bidirectional=cell.bidirectional).to(cell.dtype)
    module = kind(cell.I, cell.H, cell.layers, bidirectional=cell.bidirectional).to(cell.dtype)
    module.load_state_dict(model.state_dict())
    x: Any = torch.randn(cell.T, cell.B, cell.I).to(cell.dtype)
    directions = 2 if cell.bidirectional else 1
    hx = torch.randn(cell.layers * directions, cell.B, cell.H).to(cell.dtype)
    module, hx = module.to("cuda", dtype), hx.to("cuda", dtype).requires_grad_()
    if cell.packed:
        x = pack_padded_sequence(x.to("cuda", dtype), cell.lengths())
        return module, x._replace(data=x.data.requires_grad_()), hx
    return module, x.to("cuda", dtype).requires_grad_(), hx


def _data(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def prepare_module(
    cell: Cell, kind: type[nn.RNNBase], dtype: torch.dtype | None = None
) -> Prepared:
    """nn.RNN or fused_bptt.RNN, eager."""
    module, x, hx = _module(cell, kind, dtype or cell.dtype)
    leaves = [_data(x), hx, *module.parameters()]
    with torch.no_grad():
        cotangent = torch.randn_like(_data(module(x, hx)[0]))

    def forward() -> Tensor:
        with torch.no_grad():
            return _data(module(x, hx)[0])

    def forward_backward() -> list[Tensor]:
        output = _data(module(x, hx)[0])
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    return Prepared(forward, forward_backward)


def prepare_compiled(cell: Cell) -> Prepared:
    """torch.compile of a loop over time in Python, which it unrolls."""
    module, x, hx = _module(cell, nn.RNN, cell.dtype)
    w_ih, w_hh, b_ih, b_hh = module.parameters()
    cotangent = torch.randn(cell.T, cell.B, cell.H, device="cuda").to(cell.dtype)

    @torch.compile(fullgraph=True)
    def walk(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = weights
        u = nn.functional.linear(x, w_ih, b_ih + b_hh)
        steps = []
        for t in range(cell.T):
            h = torch.tanh(u[t] + h @ w_hh.T)
            steps.append(h)
        return torch.stack(steps)

    leaves = [x, hx, w_ih, w_hh, b_ih, b_hh]

    def forward() -> Tensor:
        with torch.no_grad():
            return walk(x, hx[0], w_ih, w_hh, b_ih, b_hh)

    def forward_backward() -> list[Tensor]:
        output = walk(x, hx[0], w_ih, w_hh, b_ih, b_hh)
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    return Prepared(forward, forward_backward)


def prepare_flashrnn(cell: Cell) -> Prepared:
    """FlashRNN's fused Elman, one head; W_ih x is a product before it, as for everyone."""
    from flashrnn import flashrnn

    module, x, hx = _module(cell, nn.RNN, cell.dtype)
    w_ih, w_hh, b_ih, b_hh = module.parameters()
    cotangent = torch.randn(cell.B, cell.T, cell.H, device="cuda").to(cell.dtype)
    leaves = [x, w_ih, w_hh, b_ih, b_hh]
    dtype = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

    def walk() -> Tensor:
        u = nn.functional.linear(x.transpose(0, 1), w_ih)
        states, _ = flashrnn(
            u.view(cell.B, cell.T, 1, 1, cell.H).contiguous(),
            w_hh.view(1, 1, cell.H, cell.H),
            (b_ih + b_hh).view(1, 1, cell.H),
            states=hx.view(1, cell.B, 1, 1, cell.H),
            function="elman",
            backend="cuda_fused",
            dtype=dtype[cell.dtype],
        )
        return states[0].reshape(cell.B, cell.T, cell.H)

    def forward() -> Tensor:
        with torch.no_grad():
            return walk()

    def forward_backward() -> list[Tensor]:
        output = walk()
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    return Prepared(forward, forward_backward, captured=False)


def prepare_xma(cell: Cell) -> Prepared:
    """XMA's Triton kernels, one head, batch first; W_ih x is a product before them."""
    from xma.layers.rnn.op import rnn

    module, x, hx = _module(cell, nn.RNN, cell.dtype)
    w_ih, w_hh, b_ih, b_hh = module.parameters()
    cotangent = torch.randn(cell.B, cell.T, cell.H, device="cuda").to(cell.dtype)
    leaves = [x, hx, w_ih, w_hh, b_ih, b_hh]

    def walk() -> Tensor:
        u = nn.functional.linear(x.transpose(0, 1), w_ih, b_ih + b_hh)
        # It computes h W where nn.RNN computes h Wᵀ.
        output, _ = rnn(u.unsqueeze(2), w_hh.T.unsqueeze(0).contiguous(), hx[0].unsqueeze(1))
        return output.squeeze(2)

    def forward() -> Tensor:
        with torch.no_grad():
            return walk()

    def forward_backward() -> list[Tensor]:
        output = walk()
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    return Prepared(forward, forward_backward, captured=False)


def prepare_jax(cell: Cell) -> Prepared:
    """One jit of a scan, and of its vjp; timed until its own device is done."""
    import jax
    import jax.numpy as jnp

    kinds = {torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16, torch.float16: jnp.float16}
    precision = "tensorfloat32" if cell.precision == "tf32" else "highest"
    module, x, hx = _module(cell, nn.RNN, cell.dtype)

    def array(value: Tensor) -> Any:
        return jnp.asarray(value.detach().float().cpu().numpy(), kinds[cell.dtype])

    arrays = (array(x), array(hx[0]), *map(array, module.parameters()))
    cotangent = jnp.ones((cell.T, cell.B, cell.H), kinds[cell.dtype])

    def walk(x: Any, h_0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def step(h: Any, u: Any) -> tuple[Any, Any]:
            h = jnp.tanh(u + h @ w_hh.T)
            return h, h

        return jax.lax.scan(step, h_0, x @ w_ih.T + b_ih + b_hh)[1]

    @jax.jit
    def both(g: Any, *arrays: Any) -> Any:
        output, pull = jax.vjp(walk, *arrays)
        return output, pull(g)

    only = jax.jit(walk)

    def forward() -> Any:
        with jax.default_matmul_precision(precision):
            return jax.block_until_ready(only(*arrays))

    def forward_backward() -> Any:
        with jax.default_matmul_precision(precision):
            return jax.block_until_ready(both(cotangent, *arrays))

    return Prepared(forward, forward_backward, captured=False)


def prepare_ours(cell: Cell) -> Prepared:
    import fused_bptt

    return prepare_module(cell, fused_bptt.RNN)


def prepare_cudnn(cell: Cell) -> Prepared:
    return prepare_module(cell, nn.RNN)


def rivals(cell: Cell) -> dict[str, Callable[[Cell], Prepared]]:
    """Who can compute this cell and is installed; ours first."""
    found = {OURS: prepare_ours, BASELINE: prepare_cudnn}
    plain = cell.layers == 1 and not cell.bidirectional and not cell.packed
    # Unrolled, a loop of 1024 steps takes many minutes to compile.
    if plain and cell.T <= 128 and (cell.B, cell.H) in ((1, 64), (64, 256)):
        found["torch.compile of a loop"] = prepare_compiled
    if plain and cell.precision != "fp32" and importlib.util.find_spec("flashrnn"):
        found["FlashRNN"] = prepare_flashrnn
    if plain and importlib.util.find_spec("xma"):
        found["XMA"] = prepare_xma
    if plain and importlib.util.find_spec("jax"):
        found["JAX jit(scan)"] = prepare_jax
    return found
