"""A stack of layers that keeps every k-th state; the rest is computed again in the backward pass.

The sequence is cut into blocks of k steps. Forward, a block goes through all layers and leaves
nothing behind but the states that the next one begins with. Backward, from the last block to the
first, it is computed once more, and its gradients are added to those of the blocks after it: where
there is an operator for a part of a layer, in the order in which the plain call adds its chunks,
which are counted from the end: the same sums, the same bits. Elsewhere by torch's own graph of the
block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import _noise, _ops
from ._autograd import _transformed, layer
from ._noise import StateNoise


def layers(
    x: Tensor,
    hx: Tensor,
    phi: int,
    every: int,
    dropout: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
    window: int,
    noise: StateNoise | None,
    clip: _ops.Clip,
    all_layers: bool,
    parameters: Sequence[Tensor],
) -> tuple[list[Tensor], Tensor]:
    """Layers in one direction, differentiable in x, hx, reset_state and the parameters.

    Args:
        x: [T, B, I].
        hx: [L, B, H].
        phi: code of the nonlinearity, ``_ops.TANH`` to ``_ops.IDENTITY``.
        every: k; on the CPU, in float32 and float64, rounded up to whole chunks.
        dropout: probability of zeroing an output of every layer but the last. The masks are not
            kept either; they come from a seed, which is drawn from torch's generator.
        reset, reset_state: bool [T, B], where the state is replaced, and by what, [L, B, H] or
            None for zero; or None both.
        window: no gradient is carried over its multiples in time; 0 for none.
        noise: zoneout or recurrent dropout; its masks come from the same seed. Or None.
        clip: of the gradient of every state, as in ``_ops.linear_recurrence``; without noise.
        all_layers: whether every layer's h is wanted.
        parameters: of each layer: weight_ih, weight_hh[, bias_ih, bias_hh].

    Returns:
        The last layer's h [T, B, H], or that of every layer; and each layer's last h [L, B, H].
    """
    exact = _ops.has_layer(x) and noise is None
    if exact:
        chunk = _ops.chunk_steps(x.size(1))
        every = -(-every // chunk) * chunk
    elif window:
        every = -(-every // window) * window
    generator = None if noise is None else noise.generator
    random = dropout > 0 or (noise is not None and noise.training)
    device = None if generator is None else generator.device
    seed = int(torch.randint(1 << 62, (), generator=generator, device=device)) if random else 0
    depth = hx.size(0)
    run = _Run(phi, every, dropout, seed, depth, reset, window, noise, clip, all_layers, exact)
    *outputs, h_n = Checkpointed.apply(run, x, hx, reset_state, *parameters)  # type: ignore[no-untyped-call]
    return outputs, h_n


def useful() -> bool:
    """Whether there is a graph to be kept small, and it is torch's own.

    A compiler and the transforms of ``torch.func`` decide for themselves what they keep.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not _transformed()


@dataclass(frozen=True)
class _Run:
    """What a call is, besides its differentiable tensors.

    ``exact``: the backward pass is made of ``_ops.layer_backward_``.
    """

    phi: int
    every: int
    dropout: float
    seed: int
    depth: int
    reset: Tensor | None
    window: int
    noise: StateNoise | None
    clip: _ops.Clip
    all_layers: bool
    exact: bool

    def blocks(self, T: int) -> list[tuple[int, int]]:
        """Where the blocks begin and end; the first one may be shorter.

        Where torch cuts at the windows of a block, which it counts from the block's beginning,
        blocks begin at multiples of the window, and the last one is the shorter one.
        """
        if self.window and not self.exact:
            begins = range(0, T, self.every) or [0]
            return [(begin, min(T, begin + self.every)) for begin in begins]
        ends = range(T, 0, -self.every) or [0]
        return [(max(0, end - self.every), end) for end in reversed(ends)]

    def cut_before(self, begin: int) -> bool:
        """Whether no gradient leaves a block that begins at ``begin`` for the one before it."""
        return self.window > 0 and begin % self.window == 0

    def reset_of(self, begin: int, end: int) -> Tensor | None:
        return None if self.reset is None else self.reset[begin:end]

    def of_layer(self, parameters: Sequence[Any], index: int) -> Sequence[Any]:
        step = len(parameters) // self.depth
        return parameters[index * step : (index + 1) * step]

    def wanted(self, outputs: list[Tensor]) -> list[Tensor]:
        return outputs if self.all_layers else outputs[-1:]

    def block(
        self,
        x: Tensor,
        states: Tensor,
        reset_state: Tensor | None,
        parameters: Sequence[Tensor],
        begin: int,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """The block of steps that begins at step ``begin``.

        Returns:
            h of each layer, the last h of each layer, and the dropout between the layers: what h
            was multiplied by, one fewer than there are layers.
        """
        outputs, last, masks = [], [], []
        reset = self.reset_of(begin, begin + x.size(0))
        for index in range(self.depth):
            other = None if reset_state is None else reset_state[index : index + 1]
            of_layer = self.of_layer(parameters, index)
            walk = (x, states[index : index + 1], None, self.phi, 1, of_layer, reset, other)
            if self.noise is None:
                h, h_n = layer(*walk, self.window, self.clip)
            else:
                h, h_n = _noise.layer(*walk, self.window, self._noise(x.device, begin, index))
            outputs.append(h)
            last.append(h_n)
            x = h
            if index + 1 < self.depth:
                mask = self.mask(h, begin, index)
                masks.append(mask)
                x = h if mask is None else h * mask
        return outputs, last, masks

    def _noise(self, device: torch.device, begin: int, index: int) -> StateNoise:
        """The noise of a block: zoneout's masks are its own, those of dropout are every block's."""
        assert self.noise is not None
        place = begin * self.depth + index if self.noise.zoneout else index
        generator = torch.Generator(device).manual_seed(self.seed + 2 * place + 1)
        return self.noise._replace(generator=generator)

    def mask(self, h: Tensor, begin: int, index: int) -> Tensor | None:
        """What the output h of layer ``index`` in the block is multiplied by; None for 1."""
        if self.dropout == 0:
            return None
        if self.dropout == 1:
            return torch.zeros_like(h)
        generator = torch.Generator(h.device)
        generator.manual_seed(self.seed + 2 * (begin * self.depth + index))
        mask = torch.empty_like(h).bernoulli_(1 - self.dropout, generator=generator)
        return mask.div_(1 - self.dropout)

    def forward(
        self, x: Tensor, hx: Tensor, reset_state: Tensor | None, parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The outputs, the last states, and the states that the blocks begin with [K, L, B, H]."""
        blocks = self.blocks(x.size(0))
        count = self.depth if self.all_layers else 1
        outputs = [x.new_empty(*x.shape[:2], hx.size(2)) for _ in range(count)]
        kept = hx.new_empty(len(blocks), *hx.shape)
        states = hx
        for number, (begin, end) in enumerate(blocks):
            kept[number] = states
            found, last, _ = self.block(x[begin:end], states, reset_state, parameters, begin)
            for output, h in zip(outputs, self.wanted(found), strict=True):
                output[begin:end] = h
            states = torch.cat(last)
        return outputs, states, kept

    def plain(
        self, x: Tensor, hx: Tensor, reset_state: Tensor | None, parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """The same outputs and last states in torch's graph, everything kept."""
        if self.exact:
            return self._whole(x, hx, reset_state, parameters)
        parts, states = [], hx
        for begin, end in self.blocks(x.size(0)):
            if begin > 0 and self.cut_before(begin):
                states = states.detach()
            found, last, _ = self.block(x[begin:end], states, reset_state, parameters, begin)
            parts.append(self.wanted(found))
            states = torch.cat(last)
        return [*map(torch.cat, zip(*parts, strict=True)), states]

    def _whole(
        self, x: Tensor, hx: Tensor, reset_state: Tensor | None, parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """:meth:`plain`, a layer at a time: these blocks may begin inside of a window."""
        outputs, last, blocks = [], [], self.blocks(x.size(0))
        for index in range(self.depth):
            here = slice(index, index + 1)
            other = None if reset_state is None else reset_state[here]
            walk = (x, hx[here], None, self.phi, 1, self.of_layer(parameters, index))
            x, h_n = layer(*walk, self.reset, other, self.window, self.clip)
            outputs.append(x)
            last.append(h_n)
            if index + 1 < self.depth and self.dropout > 0:
                masks = [self.mask(x.detach()[a:b], a, index) for a, b in blocks]
                x = x * torch.cat(masks)  # type: ignore[arg-type]
        return [*self.wanted(outputs), torch.cat(last)]


class Checkpointed(torch.autograd.Function):
    """:func:`layers`; a graph of its gradients is that of the plain call."""

    @staticmethod
    def forward(
        ctx: Any,
        run: _Run,
        x: Tensor,
        hx: Tensor,
        reset_state: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs, h_n, kept = run.forward(x, hx, reset_state, parameters)
        ctx.run = replace(run, reset=None)
        ctx.save_for_backward(x, hx, run.reset, reset_state, kept, *parameters)
        ctx.set_materialize_grads(False)
        return *outputs, h_n

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, hx, reset, reset_state, kept, *parameters = ctx.saved_tensors
        run, tensors = replace(ctx.run, reset=reset), (x, hx, reset_state, *parameters)
        need = ctx.needs_input_grad[1:]
        # What is computed again is of the dtypes that it had, whatever autocast says meanwhile.
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled() or _transformed(*cotangents):
                return None, *_recorded(run, tensors, cotangents, need)
            return None, *_summed(run, tensors, kept, cotangents, need)


def _summed(
    run: _Run,
    tensors: Sequence[Any],
    kept: Tensor,
    cotangents: Sequence[Tensor | None],
    need: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of ``tensors`` (x, hx, reset_state and the parameters), block by block."""
    x, hx, reset_state, *parameters = tensors
    *of_outputs, g_n = cotangents
    need_x, _, need_reset_state, *need_parameters = need
    x_bar = torch.empty_like(x) if need_x else None
    kind = _ExactSums if run.exact else _Sums
    sums = kind(run, reset_state, parameters, need_reset_state, need_parameters)
    states_bar = None if g_n is None else list(g_n.unsqueeze(1))
    for number, (begin, end) in reversed(list(enumerate(run.blocks(x.size(0))))):
        of_block = [None if g is None else g[begin:end] for g in of_outputs]
        of_layers = of_block if run.all_layers else [*[None] * (run.depth - 1), *of_block]
        part = None
        if states_bar is not None or any(g is not None for g in of_layers):
            given = (x[begin:end], kept[number], begin, of_layers, states_bar, need_x)
            part, states_bar = sums.add(*given)
        if x_bar is not None:
            x_bar[begin:end] = 0 if part is None else part
        if begin > 0 and run.cut_before(begin):
            states_bar = None
    hx_bar = torch.zeros_like(hx) if states_bar is None else torch.cat(states_bar)
    return [x_bar, hx_bar, sums.of_reset_state(), *sums.bars]


class _Sums:
    """The gradients of reset_state and the parameters, to which each block adds its part."""

    def __init__(
        self,
        run: _Run,
        reset_state: Tensor | None,
        parameters: Sequence[Tensor],
        need_reset_state: bool,
        need: Sequence[bool],
    ) -> None:
        self.run, self.reset_state, self.parameters = run, reset_state, parameters
        self.reset_state_bar = None
        if need_reset_state and reset_state is not None:
            self.reset_state_bar = torch.zeros_like(reset_state)
        self.bars = [
            torch.zeros_like(parameter, memory_format=torch.contiguous_format) if needed else None
            for parameter, needed in zip(parameters, need, strict=True)
        ]

    def of_reset_state(self) -> Tensor | None:
        """The gradient of reset_state, when all blocks have been added."""
        return self.reset_state_bar

    def add(
        self,
        x: Tensor,
        states: Tensor,
        begin: int,
        of_layers: list[Tensor | None],
        states_bar: list[Tensor] | None,
        need_x: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Adds the part of the block of x that begins at step ``begin``.

        Args:
            x: inputs of the block.
            states: that it begins with, [L, B, H].
            begin: its first step.
            of_layers: cotangents of each layer's output in the block; None for zero.
            states_bar: those of its last states, of each layer [1, B, H]; None for zero.
            need_x: whether the gradient of x is wanted.

        Returns:
            The cotangents of x, or None, and of the states that it begins with.
        """

        def leaf(value: Tensor, needed: bool) -> Tensor:
            return value.detach().requires_grad_(needed)

        totals = [self.reset_state_bar, *self.bars]
        given = [self.reset_state, *self.parameters]
        point = [
            None if value is None else leaf(value, total is not None)
            for value, total in zip(given, totals, strict=True)
        ]
        x, states = leaf(x, need_x), leaf(states, True)
        with torch.enable_grad():
            outputs, last, _ = self.run.block(x, states, point[0], point[1:], begin)  # type: ignore[arg-type]
        cotangents = [*of_layers, *([None] * len(last) if states_bar is None else states_bar)]
        pairs = [
            (y, c) for y, c in zip([*outputs, *last], cotangents, strict=True) if c is not None
        ]
        leaves = [value for value in (states, x, *point) if value is not None]
        wanted = [value for value in leaves if value.requires_grad]
        bars = torch.autograd.grad(
            [y for y, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True
        )
        found = {id(value): bar for value, bar in zip(wanted, bars, strict=True)}
        for value, total in zip(point, totals, strict=True):
            part = found.get(id(value))
            if total is not None and part is not None:
                total += part
        states_part = found[id(states)]
        states_part = torch.zeros_like(states) if states_part is None else states_part
        return found.get(id(x)), list(states_part.unsqueeze(1))


class _ExactSums(_Sums):
    """The same, with the operator that adds a part of a layer."""

    def __init__(self, run: _Run, *arguments: Any) -> None:
        super().__init__(run, *arguments)
        # Of each layer's reset_state, what W_hhᵀ multiplies once all is added.
        self.replaced = None if self.reset_state_bar is None else self.reset_state_bar.double()
        step = len(self.parameters) // run.depth
        for at in range(0, len(self.parameters), step):  # both biases have one gradient
            if step == 4:
                both = self.bars[at + 2] if self.bars[at + 2] is not None else self.bars[at + 3]
                self.bars[at + 2] = self.bars[at + 3] = both

    def of_reset_state(self) -> Tensor | None:
        """As :meth:`_Sums.of_reset_state`."""
        if self.replaced is None:
            return None
        assert self.reset_state is not None
        bars = []
        for index, replaced in enumerate(self.replaced.unsqueeze(1)):
            weight_hh = self.run.of_layer(self.parameters, index)[1]
            bars.append(_ops.carried_back(replaced, weight_hh, self.reset_state.dtype))
        return torch.cat(bars)

    def add(
        self,
        x: Tensor,
        states: Tensor,
        begin: int,
        of_layers: list[Tensor | None],
        states_bar: list[Tensor] | None,
        need_x: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """As :meth:`_Sums.add`."""
        run = self.run
        outputs, _, masks = run.block(x, states, self.reset_state, self.parameters, begin)
        reset = run.reset_of(begin, begin + x.size(0))
        found: list[Tensor] = []
        below: Tensor | None = None
        for index in reversed(range(run.depth)):
            g = of_layers[index]
            if below is not None:
                g = below if g is None else g + below
            mask = masks[index - 1] if index else None
            inputs = x
            if index:
                inputs = outputs[index - 1] if mask is None else outputs[index - 1] * mask
            weight_ih, weight_hh, *_ = run.of_layer(self.parameters, index)
            bars = [*run.of_layer(self.bars, index)[:3], None]
            other = None if self.reset_state is None else self.reset_state[index : index + 1]
            below = torch.empty_like(inputs) if index > 0 or need_x else None
            h0_bar = _ops.layer_backward_(
                g,
                None if states_bar is None else states_bar[index],
                outputs[index],
                inputs,
                weight_ih,
                weight_hh,
                states[index : index + 1],
                None,
                0,
                run.phi,
                below,
                bars[0],
                bars[1],
                bars[2],
                reset,
                other,
                run.window,
                begin,
                run.clip,
                None if self.replaced is None else self.replaced[index : index + 1],
            )
            found.append(h0_bar)
            if below is not None and mask is not None:
                below = below * mask
        return below, found[::-1]


def _recorded(
    run: _Run,
    inputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    need: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again."""
    x, hx, reset_state, *parameters = inputs
    assert x is not None
    assert hx is not None
    with torch.enable_grad():
        outputs = run.plain(x, hx, reset_state, parameters)  # type: ignore[arg-type]
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if c is not None]
    wanted = [v for v, needed in zip(inputs, need, strict=True) if needed and v is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            wanted,
            [c for _, c in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if needed else None for needed in need]
