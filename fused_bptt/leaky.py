"""The module with a leak: parameters, time constants and noise; no numerics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._leaky_layer import leaky_layer
from .functional import _NONLINEARITIES

FORMS = ("inside", "rate", "voltage")


class LeakyRNN(nn.Module):
    """One layer of a continuous-time RNN, integrated by Euler's method; on the CPU.

    With z_t = W_ih x_t + b + W_hh (state before) and the leak α, ``form`` is one of the three in
    use (the first is neurogym's, the second nn4n's, the third PsychRNN's and lowrank_inference's):

    - ``"inside"``: h_t = φ((1 - α) h_{t-1} + α z_t);
    - ``"rate"``: h_t = (1 - α) h_{t-1} + α φ(z_t);
    - ``"voltage"``: v_t = (1 - α) v_{t-1} + α (W_ih x_t + b + W_hh φ(v_{t-1})).

    Args:
        input_size: I.
        hidden_size: H.
        form: ``"inside"``, ``"rate"`` or ``"voltage"``. Default ``"rate"``.
        nonlinearity: φ, as in :func:`fused_bptt.rnn`. Default ``"tanh"``.
        leak: α, a number or one for each unit [H]; or None for ``dt / tau``.
        dt, tau: the step and the time constant, in the same unit; tau may be [H].
        learn_leak: α is a parameter [H] with a gradient. Default False: a buffer [H].
        learn_initial: the state before the first step is a parameter [H]. Default False: zero.
        noise_std: σ; noise of this size is added to z_t at every step. Default 0.
        scale_noise: √(2 / α) σ in place of σ, so that α times the noise is the field's √(2α) σ ξ.
            Default False.
        bias: whether there are biases. Default True.
        batch_first: input and output are [B, T, ...]. Default False.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument is none of the above (name, expected, got).
    """

    leak: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        form: str = "rate",
        nonlinearity: str = "tanh",
        leak: float | Tensor | None = None,
        dt: float | None = None,
        tau: float | Tensor | None = None,
        learn_leak: bool = False,
        learn_initial: bool = False,
        noise_std: float = 0.0,
        scale_noise: bool = False,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Weights and bias are drawn from ±1/√H, as nn.RNN's; see the class for the arguments."""
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        if nonlinearity not in _NONLINEARITIES:
            names = ", ".join(_NONLINEARITIES)
            raise ValueError(f"nonlinearity: expected one of {names}, got {nonlinearity!r}")
        if noise_std < 0:
            raise ValueError(f"noise_std: expected 0 or more, got {noise_std}")
        if (leak is None) == (dt is None) or (dt is None) != (tau is None):
            raise ValueError(
                "leak, dt, tau: expected either leak or both dt and tau, "
                f"got leak={leak}, dt={dt}, tau={tau}"
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.form, self.nonlinearity = form, nonlinearity
        self.noise_std, self.scale_noise = noise_std, scale_noise
        self.batch_first = batch_first
        dtype = dtype or torch.get_default_dtype()
        given = leak if dt is None or tau is None else dt / torch.as_tensor(tau)
        value = torch.as_tensor(given, device=device, dtype=dtype)
        if value.shape not in ((), (hidden_size,)):
            raise ValueError(f"leak: expected a number or [{hidden_size}], got {list(value.shape)}")
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"leak: expected numbers in [0, 1], got {value.tolist()}")
        if scale_noise and not (value > 0).all():
            raise ValueError(f"leak: expected above 0 with scale_noise, got {value.tolist()}")
        value = value.expand(hidden_size).clone()
        if learn_leak:
            self.leak = nn.Parameter(value)
        else:
            self.register_buffer("leak", value)

        def drawn(*shape: int) -> nn.Parameter:
            bound = 1 / math.sqrt(hidden_size) if hidden_size > 0 else 0
            return nn.Parameter(value.new_empty(shape).uniform_(-bound, bound))

        self.weight_ih = drawn(hidden_size, input_size)
        self.weight_hh = drawn(hidden_size, hidden_size)
        self.bias = drawn(hidden_size) if bias else None
        self.initial = nn.Parameter(value.new_zeros(hidden_size)) if learn_initial else None

    def forward(
        self,
        input: Tensor,
        state: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        bptt_window: int = 0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_rates: bool = False,
    ) -> tuple[Tensor, ...]:
        """Runs the whole sequence.

        Args:
            input: [T, B, I]; [B, T, I] if ``batch_first``.
            state: before the first step, [B, H]. Default: the learned one, or zero.
            reset, bptt_window: as in :func:`fused_bptt.rnn`; after a reset a row begins with the
                learned initial state, or zero.
            noise: added to z_t, shaped as the output; it takes the place of ``noise_std``.
            generator: draws the noise; the same state of it gives the same noise.
            return_rates: also return r.

        Returns:
            ``(output, state)``: the states h or v, [T, B, H] as ``input`` is laid out, and the last
            one [B, H]; with ``return_rates`` then the rates r as well: φ(z_t), or φ(v_t), or h
            where the leak is inside.

        Raises:
            ValueError, RuntimeError: an argument does not fit (name, expected, got).
        """
        if input.dim() != 3 or input.size(-1) != self.input_size:
            raise ValueError(
                f"input: expected 3 dimensions, the last of {self.input_size}, "
                f"got {list(input.shape)}"
            )
        if bptt_window < 0:
            raise ValueError(f"bptt_window: expected 0 (none) or more steps, got {bptt_window}")
        x = input.transpose(0, 1) if self.batch_first else input
        mask = reset.t() if reset is not None and self.batch_first else reset
        rows, leak = x.size(1), self.leak
        first = self.initial if self.initial is not None else leak.new_zeros(self.hidden_size)
        fresh = first.expand(1, rows, self.hidden_size)
        initial = fresh if state is None else state.unsqueeze(0)
        scale = None
        if noise is None and self.noise_std > 0:
            shape = (*x.shape[:-1], self.hidden_size)
            noise = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
            scale = torch.full_like(leak, self.noise_std)
            if self.scale_noise:
                scale = scale * (2 / leak).sqrt()
        elif noise is not None and self.batch_first:
            noise = noise.transpose(0, 1)
        weight_ih: Tensor = self.weight_ih
        weight: Tensor = self.weight_hh
        bias: Tensor | None = self.bias
        keep: Tensor = 1 - leak
        gain: Tensor | None = leak
        if self.form != "rate":  # α z_t is made of weights times α
            weight_ih, weight = leak[:, None] * weight_ih, leak[:, None] * weight
            bias = None if bias is None else leak * bias
            gain = None
            if noise is not None:
                scale = leak if scale is None else leak * scale
        if self.form == "inside":  # the plain recurrence of W' = (1 - α) + α W
            weight, keep = weight + torch.diag(keep), torch.zeros_like(leak)
            gain = torch.ones_like(leak)
        phi = _NONLINEARITIES[self.nonlinearity]
        operands = (x, weight_ih, weight, bias, keep, gain, initial, noise, scale)
        other = None if mask is None else fresh
        cuts = (mask, other, bptt_window)
        output, rates, last = leaky_layer(*operands, None, 0, phi, *cuts)
        if self.batch_first:
            output, rates = output.transpose(0, 1), rates.transpose(0, 1)
        return (output, last[0], rates) if return_rates else (output, last[0])
