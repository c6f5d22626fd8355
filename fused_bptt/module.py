"""The module: parameters, state_dict and options of ``torch.nn.RNN``; no numerics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._noise import StateNoise
from .convert import same_state
from .functional import _NONLINEARITIES, rnn

#: Of ``nn.RNNBase``, which knows two; of the others it sees the first.
_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}

SequenceLike = Tensor | PackedSequence

#: Given (module, input, hx, output, h_n) and the options of the call, gives output and h_n on.
Observer = Callable[..., tuple[Any, Tensor]]


class RNN(nn.RNNBase):
    """A drop-in replacement of :class:`torch.nn.RNN`, fused forward and backward.

    h_t = φ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) (Elman, "Finding structure in time", 1990), with
    the constructor, attributes, parameters (``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``,
    ``bias_hh_l0``, ``..._reverse``), initialisation and ``state_dict`` of ``nn.RNN``. The same seed
    gives the same weights. One difference: the output is saved for the backward pass, so a change
    of it in place before ``backward()`` is refused by autograd.

    Args:
        input_size: I, number of input features.
        hidden_size: H, number of hidden units.
        num_layers: number of layers. Default 1.
        nonlinearity: φ, ``"tanh"`` or ``"relu"``; and, not in ``nn.RNN``, also
            ``"sigmoid"``, ``"softplus"`` or ``"identity"``. Default ``"tanh"``.
        bias: whether there are biases. Default True.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]. Default False.
        dropout: probability of zeroing an output of every layer but the last, in training mode.
            Default 0.
        bidirectional: a second recurrence walks time backwards. Default False.
        device: where the parameters are made. Default: torch's default device.
        dtype: the parameters' dtype: float64, float32, bfloat16 or float16. Default: torch's.
        recurrent_dropout, zoneout: probabilities, by keyword; as in :func:`fused_bptt.rnn`.
            Default 0.

    Raises:
        ValueError, TypeError: an argument does not fit, in ``nn.RNN``'s words.
    """

    #: What ``nn.RNN`` has not; those that came from one have these.
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0

    #: See the results of every pass. Forward hooks would, too, but calling them costs 4 us, and a
    #: graph that was compiled for another module of this kind is used again as if there were none.
    _observers: tuple[Observer, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what ``nn.RNN`` takes, in its order."""
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:  # nonlinearity is the fourth; nn.RNNBase does not know it
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in _NONLINEARITIES:
            names = ", ".join(f"'{name}'" for name in _NONLINEARITIES)
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from {names}.")
        recurrent_dropout = kwargs.pop("recurrent_dropout", 0.0)
        zoneout = kwargs.pop("zoneout", 0.0)
        StateNoise(recurrent_dropout, zoneout, False, None).check()
        super().__init__(_MODES.get(self.nonlinearity, "RNN_TANH"), *args, **kwargs)
        self.mode = f"RNN_{self.nonlinearity.upper()}"
        if recurrent_dropout:
            self.recurrent_dropout = recurrent_dropout
        if zoneout:
            self.zoneout = zoneout

    def forward(
        self,
        input: SequenceLike,
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
        bptt_window: int = 0,
        clip_state_grad: tuple[str, float] | None = None,
        lengths: Tensor | None = None,
        checkpoint_every: int | None = None,
        generator: torch.Generator | None = None,
        return_all_layers: bool = False,
        state_batch_first: bool = False,
    ) -> tuple[Any, Tensor]:
        """Runs the whole sequence; shapes and errors are those of :func:`fused_bptt.rnn`.

        Args:
            input: [T, B, I]; [B, T, I] if ``batch_first``; [T, I] unbatched; or a PackedSequence.
            hx: initial state [num_layers * D, B, H] ([num_layers * D, H] unbatched), D = 2 if
                bidirectional else 1. Default: zero.
            reset, reset_state, bptt_window: where sequences begin anew inside a row, with which
                state, and how far gradients go back; as in :func:`fused_bptt.rnn`.
            clip_state_grad: ``("norm", c)`` or ``("value", c)``: at every step the gradient of the
                state is clipped on its way back; as in :func:`fused_bptt.rnn`. Default None.
            lengths: integers [B], the steps of each row of a padded batch. Default None: T.
            checkpoint_every: k; only every k-th state is kept for the backward pass, which computes
                the others again. Default None: every state is kept.
            generator: draws the masks of ``recurrent_dropout`` or ``zoneout``. Default: torch's.
            return_all_layers: output is a tuple of every layer's. Default False.
            state_batch_first: hx and h_n are [B, num_layers * D, H]. Default False.

        Returns:
            ``(output, h_n)``: output [T, B, D * H], shaped as ``input``; h_n as ``hx``.
        """
        if self._observers and (
            self.recurrent_dropout or self.zoneout or clip_state_grad is not None
        ):
            raise RuntimeError(
                "recurrent_dropout, zoneout, clip_state_grad: expected none while a "
                "GradientMonitor reads this module, got one (it does not know their masks, or what "
                "was cut off); close the monitor before"
            )
        output, h_n = rnn(
            input,
            hx,
            self._weights(),
            nonlinearity=self.nonlinearity,
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            reset=reset,
            reset_state=reset_state,
            bptt_window=bptt_window,
            clip_state_grad=clip_state_grad,
            lengths=lengths,
            checkpoint_every=checkpoint_every,
            recurrent_dropout=self.recurrent_dropout,
            zoneout=self.zoneout,
            generator=generator,
            return_all_layers=return_all_layers,
            state_batch_first=state_batch_first,
        )
        for observe in self._observers:
            output, h_n = observe(
                self,
                input,
                hx,
                output,
                h_n,
                reset=reset,
                reset_state=reset_state,
                bptt_window=bptt_window,
                lengths=lengths,
                return_all_layers=return_all_layers,
                state_batch_first=state_batch_first,
            )
        return output, h_n

    def step(
        self, input: Tensor, state: Tensor | None = None, *, state_batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One step of all layers, for acting and serving: the sequence call with T = 1.

        From step to step the numbers are those of one call for the whole sequence; on the CPU, in
        float32 and float64, to the bit. It is differentiable like that call.

        Args:
            input: x_t, [B, I]; [I] unbatched.
            state: the state before the step, [num_layers, B, H] ([num_layers, H] unbatched).
                Default: zero.
            state_batch_first: states are [B, num_layers, H]. Default False.

        Returns:
            ``(output, state)``: the last layer's h_t [B, H] ([H] unbatched), and the state after
            the step, shaped as ``state``.

        Raises:
            RuntimeError: the module is bidirectional (a step backwards in time needs the end of the
                sequence) or has recurrent dropout in training, or a shape, dtype or device does not
                fit.
        """
        if self.bidirectional:
            raise RuntimeError(
                "step: expected a module in one direction, got bidirectional=True (its second "
                "direction begins at the end of the sequence)"
            )
        if self.recurrent_dropout and self.training:
            raise RuntimeError(
                "step: expected evaluation mode or recurrent_dropout=0, got recurrent_dropout="
                f"{self.recurrent_dropout} in training mode (its mask is one for all steps of a "
                "row)"
            )
        if input.dim() not in (1, 2):
            raise RuntimeError(
                f"step: expected input [B, I] or [I], got {input.dim()}-D {list(input.shape)}"
            )
        output, state = rnn(
            input.unsqueeze(0),
            state,
            self._weights(),
            nonlinearity=self.nonlinearity,
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            zoneout=self.zoneout,
            state_batch_first=state_batch_first,
        )
        return output.squeeze(0), state

    def extra_repr(self) -> str:
        """What was given, in ``nn.RNN``'s words."""
        own = {"recurrent_dropout": self.recurrent_dropout, "zoneout": self.zoneout}
        words = [f"{name}={value}" for name, value in own.items() if value]
        return ", ".join([super().extra_repr(), *words])

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not who observes this module."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_observers", None)
        return state

    def _weights(self) -> list[Tensor]:
        # By name, not from _flat_weights: a parametrization takes a parameter's place as an
        # attribute. The dictionary is looked at first because nn.Module.__getattr__ is slow.
        parameters = self._parameters
        return [
            parameters[name] if name in parameters else getattr(self, name)  # type: ignore[misc]
            for name in self._flat_weights_names
        ]

    def flatten_parameters(self) -> None:
        """Does nothing, since weights may lie anywhere; kept because users of nn.RNN call it."""

    @classmethod
    def from_torch(cls, module: nn.RNN) -> RNN:
        """An ``RNN`` with ``module``'s own parameters and hooks, and its training mode.

        Raises:
            TypeError: ``module`` is not exactly an ``nn.RNN`` (a subclass may compute anything).
        """
        return same_state(module, nn.RNN, cls)

    def to_torch(self) -> nn.RNN:
        """A ``torch.nn.RNN`` with this module's own parameters and hooks, and its training mode.

        Raises:
            ValueError: ``nn.RNN`` has not this nonlinearity, recurrent dropout or zoneout.
        """
        if self.nonlinearity not in _MODES:
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got '{self.nonlinearity}'")
        if self.recurrent_dropout or self.zoneout:
            raise ValueError(
                "to_torch: expected recurrent_dropout=0 and zoneout=0, which nn.RNN has not, "
                f"got {self.recurrent_dropout} and {self.zoneout}"
            )
        return same_state(self, RNN, nn.RNN)
