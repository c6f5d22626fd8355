"""A stack of layers that keeps every k-th state; the rest is computed again in the backward pass.

The sequence is cut into blocks of k steps, counted from its end, as the CPU's kernels count their
chunks. Forward, a block goes through all layers and leaves nothing behind but the states that the
next one begins with. Backward, from the last block to the first, it is computed once more, and its
gradients are added to those of the blocks after it in the order in which the plain call adds its
chunks: the same sums, the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._autograd import _transformed, layer, layer_backward


def layers(
    x: Tensor,
    hx: Tensor,
    phi: int,
    every: int,
    dropout: float,
    reset: Tensor | None,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Layers in one direction, differentiable in x, hx and the parameters.

    Args:
        x: [T, B, I].
        hx: [L, B, H].
        phi: ``_ops.TANH`` or ``_ops.RELU``.
        every: k; on the CPU, in float32 and float64, rounded up to whole chunks.
        dropout: probability of zeroing an output of every layer but the last. The masks are not
            kept either; they come from a seed, which is drawn from torch's generator.
        reset: bool [T, B], where the state is replaced by zero, or None.
        parameters: of each layer: weight_ih, weight_hh[, bias_ih, bias_hh].

    Returns:
        The last layer's h [T, B, H], and each layer's last h [L, B, H].
    """
    if _ops.has_layer(x):
        chunk = _ops.chunk_steps(x.size(1))
        every = -(-every // chunk) * chunk
    seed = int(torch.randint(1 << 62, ())) if dropout > 0 else 0
    run = _Run(phi, every, dropout, seed, hx.size(0), reset)
    return Checkpointed.apply(run, x, hx, *parameters)  # type: ignore[no-any-return, no-untyped-call]


def useful() -> bool:
    """Whether there is a graph to be kept small, and it is torch's own.

    A compiler and the transforms of ``torch.func`` decide for themselves what they keep.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not _transformed()


class _Run:
    """What a call is, besides its tensors."""

    def __init__(
        self,
        phi: int,
        every: int,
        dropout: float,
        seed: int,
        depth: int,
        reset: Tensor | None,
    ) -> None:
        self.phi, self.every, self.dropout, self.seed, self.depth = phi, every, dropout, seed, depth
        self.reset = reset

    def blocks(self, T: int) -> list[tuple[int, int]]:
        """Where the blocks begin and end; the first one may be shorter."""
        ends = range(T, 0, -self.every) or [0]
        return [(max(0, end - self.every), end) for end in reversed(ends)]

    def reset_of(self, begin: int, end: int) -> Tensor | None:
        return None if self.reset is None else self.reset[begin:end]

    def of_layer(self, parameters: Sequence[Tensor], index: int) -> Sequence[Tensor]:
        step = len(parameters) // self.depth
        return parameters[index * step : (index + 1) * step]

    def block(
        self, x: Tensor, states: Tensor, parameters: Sequence[Tensor], begin: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """The block of steps that begins at step ``begin``.

        Returns:
            h of each layer, the last h of each layer, and the dropout between the layers: what h
            was multiplied by, one fewer than there are layers.
        """
        outputs, last, masks = [], [], []
        reset = self.reset_of(begin, begin + x.size(0))
        for index in range(self.depth):
            of_layer = self.of_layer(parameters, index)
            h, h_n = layer(x, states[index : index + 1], None, self.phi, 1, of_layer, reset)
            outputs.append(h)
            last.append(h_n)
            x = h
            if index + 1 < self.depth:
                mask = self._mask(h, begin, index)
                masks.append(mask)
                x = h if mask is None else h * mask
        return outputs, last, masks

    def _mask(self, h: Tensor, begin: int, index: int) -> Tensor | None:
        if self.dropout == 0:
            return None
        if self.dropout == 1:
            return torch.zeros_like(h)
        generator = torch.Generator(h.device)
        generator.manual_seed(self.seed + begin * self.depth + index)
        mask = torch.empty_like(h).bernoulli_(1 - self.dropout, generator=generator)
        return mask.div_(1 - self.dropout)

    def forward(
        self, x: Tensor, hx: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, the last states, and the states that the blocks begin with [K, L, B, H]."""
        blocks = self.blocks(x.size(0))
        output = x.new_empty(*x.shape[:2], hx.size(2))
        kept = hx.new_empty(len(blocks), *hx.shape)
        states = hx
        for number, (begin, end) in enumerate(blocks):
            kept[number] = states
            outputs, last, _ = self.block(x[begin:end], states, parameters, begin)
            output[begin:end] = outputs[-1]
            states = torch.cat(last)
        return output, states, kept

    def plain(self, x: Tensor, hx: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same function in torch's graph, everything kept."""
        found, states = [], hx
        for begin, end in self.blocks(x.size(0)):
            outputs, last, _ = self.block(x[begin:end], states, parameters, begin)
            found.append(outputs[-1])
            states = torch.cat(last)
        return torch.cat(found), states


class Checkpointed(torch.autograd.Function):
    """:func:`layers`; a graph of its gradients is that of the plain call."""

    @staticmethod
    def forward(
        ctx: Any, run: _Run, x: Tensor, hx: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        output, h_n, kept = run.forward(x, hx, parameters)
        ctx.run = run
        ctx.save_for_backward(x, hx, kept, *parameters)
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_n: Tensor | None) -> tuple[Tensor | None, ...]:
        x, hx, kept, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or _transformed(g, g_n):
            return None, *_recorded(ctx.run, x, hx, parameters, g, g_n, ctx.needs_input_grad[1:])
        need = ctx.needs_input_grad
        sums = _Sums(ctx.run, x, parameters, need[1], need[3:])
        states_bar = None if g_n is None else list(g_n.unsqueeze(1))
        blocks = list(enumerate(ctx.run.blocks(x.size(0))))
        for number, (begin, end) in reversed(blocks):
            of_block = None if g is None else g[begin:end]
            states_bar = sums.add(x, kept[number], begin, end, of_block, states_bar)
        hx_bar = None if states_bar is None else torch.cat(states_bar)
        return None, sums.x_bar, hx_bar, *sums.bars


class _Sums:
    """The gradients of x and the parameters, to which block after block adds its part."""

    def __init__(
        self,
        run: _Run,
        x: Tensor,
        parameters: Sequence[Tensor],
        need_x: bool,
        need: Sequence[bool],
    ) -> None:
        self.run, self.parameters = run, parameters
        self.x_bar = torch.empty_like(x) if need_x else None
        self.bars = [
            torch.zeros_like(parameter, memory_format=torch.contiguous_format) if needed else None
            for parameter, needed in zip(parameters, need, strict=True)
        ]
        step = len(parameters) // run.depth
        for at in range(0, len(parameters), step):  # both biases have one gradient
            if step == 4:
                both = self.bars[at + 2] if self.bars[at + 2] is not None else self.bars[at + 3]
                self.bars[at + 2] = self.bars[at + 3] = both

    def add(
        self,
        x: Tensor,
        states: Tensor,
        begin: int,
        end: int,
        g: Tensor | None,
        states_bar: list[Tensor] | None,
    ) -> list[Tensor]:
        """Adds a block's part; from the cotangents of its last states, those of its first."""
        run = self.run
        of_block, reset = x[begin:end], run.reset_of(begin, end)
        outputs, _, masks = run.block(of_block, states, self.parameters, begin)
        found: list[Tensor] = []
        for index in reversed(range(run.depth)):
            inputs = of_block
            mask = masks[index - 1] if index else None
            if index:
                inputs = outputs[index - 1] if mask is None else outputs[index - 1] * mask
            g_n = None if states_bar is None else states_bar[index]
            need_x = index > 0 or self.x_bar is not None
            g, h0_bar = self._layer(
                index, g, g_n, outputs[index], inputs, states[index : index + 1], need_x, reset
            )
            found.append(h0_bar)
            if g is not None and mask is not None:
                g = g * mask
        if self.x_bar is not None and g is not None:
            self.x_bar[begin:end] = g
        return found[::-1]

    def _layer(
        self,
        index: int,
        g: Tensor | None,
        g_n: Tensor | None,
        h: Tensor,
        x: Tensor,
        h0: Tensor,
        need_x: bool,
        reset: Tensor | None,
    ) -> tuple[Tensor | None, Tensor]:
        weight_ih, weight_hh, *_ = self.run.of_layer(self.parameters, index)
        bars = self.run.of_layer(self.bars, index)[:3]  # type: ignore[arg-type]
        totals = [*bars, *[None] * (3 - len(bars))]
        walk = (g, g_n, h, x, weight_ih, weight_hh, h0, None, 0, self.run.phi)
        if _ops.has_layer(x):
            x_bar = torch.empty_like(x) if need_x else None
            weights = (totals[0], totals[1], totals[2])
            return x_bar, _ops.layer_backward_(*walk, x_bar, *weights, reset)
        need_ih, need_hh, need_bias = (total is not None for total in totals)
        needed = (need_x, need_ih, need_hh, need_bias)
        x_bar, h0_bar, *parts, _ = layer_backward(*walk, *needed, reset=reset)
        for total, part in zip(totals, parts, strict=True):
            if total is not None and part is not None:
                total += part
        assert h0_bar is not None
        return x_bar, h0_bar


def _recorded(
    run: _Run,
    x: Tensor,
    hx: Tensor,
    parameters: Sequence[Tensor],
    g: Tensor | None,
    g_n: Tensor | None,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again."""
    with torch.enable_grad():
        outputs = run.plain(x, hx, parameters)
    pairs = [(y, c) for y, c in zip(outputs, (g, g_n), strict=True) if c is not None]
    inputs = [value for value, needed in zip((x, hx, *parameters), need, strict=True) if needed]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            inputs,
            [c for _, c in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if needed else None for needed in need]
