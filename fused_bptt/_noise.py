"""A layer whose state is held or dropped at random: zoneout and recurrent dropout.

Both are recurrences with a leak, h_t = k_t ⊙ h_{t-1} + a_t ⊙ r_t, r_t = φ(u_t + W h_{t-1}), whose k
and a are drawn: zoneout is k = m_t, a = 1 - m_t; dropout is k = 0 and a = m, of which r is the
output. So the layer is that of _leaky_layer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _ops
from ._autograd import _split, _stack
from ._leaky_layer import leaky_layer
from ._steps import Steps, batch_rows


class StateNoise(NamedTuple):
    """What happens to the state, as in :func:`fused_bptt.rnn`; at most one of the two."""

    recurrent_dropout: float
    zoneout: float
    training: bool
    generator: torch.Generator | None

    def check(self) -> None:
        """Raises where the options do not fit (name, expected, got)."""
        dropout, zoneout = self.recurrent_dropout, self.zoneout
        if not 0 <= dropout < 1:
            raise ValueError(f"recurrent_dropout: expected a probability in [0, 1), got {dropout}")
        if not 0 <= zoneout <= 1:
            raise ValueError(f"zoneout: expected a probability in [0, 1], got {zoneout}")
        if dropout and zoneout:
            raise ValueError(
                f"recurrent_dropout, zoneout: expected one of them to be 0, got {dropout} and "
                f"{zoneout}"
            )
        if self.training:
            check_generator(self.generator)

    def none(self) -> bool:
        """Whether the layer is the plain one."""
        return self.zoneout == 0 and not (self.training and self.recurrent_dropout > 0)

    def drawn(
        self, probability: float, shape: Sequence[int], device: torch.device, groups: int = 1
    ) -> Tensor:
        """True with this probability, bool; the same masks for every dtype of what they mask.

        On the CPU the generator draws a seed, of which :func:`fused_bptt._ops.flags` makes them for
        G ``groups`` of a last dimension G * H; elsewhere it draws numbers in float32.
        """
        drawn = drawn_from(self.generator)
        if device.type != "cpu":
            return torch.rand(shape, device=device, **drawn) < probability
        seed = torch.randint(2**63 - 1, (), device=device, **drawn)
        like = torch.empty(shape, dtype=torch.bool, device=device)
        return _ops.flags(like, groups, probability, seed)


def drawn_from(generator: torch.Generator | None) -> dict[str, Any]:
    """The argument of torch's factories; none for none: with ``generator=None`` they refuse a size
    that is symbolic, as it is in a compiled graph of dynamic shapes."""
    return {} if generator is None else {"generator": generator}


def check_generator(generator: torch.Generator | None) -> None:
    """Raises where a pass that is computed again (torch.utils.checkpoint) would draw from it.

    It would draw other numbers than the pass that it repeats, silently; torch's own generator is
    put back.
    """
    if generator is None or torch.compiler.is_dynamo_compiling():
        return
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "generator: expected None where the forward pass is computed again in a backward "
            "pass (torch.utils.checkpoint puts only torch's own generator back), got one"
        )


def layer(
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    phi: int,
    directions: int,
    parameters: Sequence[Tensor],
    reset: Tensor | None,
    reset_state: Tensor | None,
    window: int,
    noise: StateNoise,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_bptt._autograd.layer` with ``noise``; its other arguments and results.

    Zoneout (Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations",
    2016): m_t is drawn for each step, row, direction and unit; without ``training`` it is its
    mean. Dropout (Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks", 2016): m is drawn for each row, direction and unit.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _stack(parameters, directions)
    bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    wide = weight_ih.size(0)
    if noise.zoneout > 0:
        if noise.training:
            shape = (*x.shape[:-1], wide)
            keep, gain = noise.drawn(noise.zoneout, shape, x.device, directions), None
        else:
            keep = x.new_full((wide,), noise.zoneout)
            gain = 1 - keep
        initial = h0
    else:
        kept = 1 - noise.recurrent_dropout
        mask = noise.drawn(kept, h0.shape, h0.device).to(h0.dtype) / kept
        keep, initial = x.new_zeros(wide), mask * h0
        reset_state = None if reset_state is None else mask * reset_state
        of_rows = mask.transpose(0, 1).flatten(1)
        if batch_sizes is None:
            gain = of_rows.expand(x.size(0), *of_rows.shape)  # the memory of one step
        else:
            gain = of_rows.index_select(0, batch_rows(batch_sizes).to(x.device))
    operands = (x, weight_ih, weight_hh, bias, keep, gain, initial, None, None)
    walk = (batch_sizes, directions - 1, phi, reset, reset_state, window)
    state, rate, last = leaky_layer(*operands, *walk)
    if noise.zoneout > 0:
        return state, last
    steps = Steps(rate, batch_sizes, directions, directions - 1)
    return rate, h0 if steps.rows == 0 else steps.last(_split(rate, directions))
