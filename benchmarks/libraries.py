"""The layers with a leak of other libraries, where they are installed, with the inputs' weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.loops import ALPHA, SIGMA, Inputs, Prepared


def _load(inputs: Inputs, of_input: Any, of_state: Any) -> None:
    """Copies the inputs' weights into two linear layers."""
    w = inputs.weights
    with torch.no_grad():
        of_input.weight.copy_(w["weight_ih"])
        of_input.bias.copy_(w["bias_ih"])
        of_state.weight.copy_(w["weight_hh"])
        of_state.bias.copy_(w["bias_hh"])


def nn4n(inputs: Inputs) -> Prepared:
    """nn4n's ``RecurrentLayer``: the loop ``voltage``."""
    from nn4n.layer import RecurrentLayer

    H, INPUTS = inputs.weights["weight_ih"].shape

    def of(size: int) -> dict[str, object]:
        masks = {"ei_mask": None, "sparsity_mask": None, "plasticity_mask": torch.ones(size, H)}
        sizes = {"input_dim": size, "output_dim": H}
        return {**sizes, **masks, "weights": "uniform", "biases": "uniform"}

    struct = {"dt": ALPHA, "tau": 1.0, "activation": "tanh", "init_state": "zero"}
    struct |= {"in_struct": of(INPUTS), "hid_struct": of(H)}
    layer = RecurrentLayer(struct, preact_noise=SIGMA / ALPHA)
    _load(inputs, layer.input_layer, layer.hidden_layer)
    leaves = [inputs.x, *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: layer(inputs.x), leaves


def neuralrnn(inputs: Inputs) -> Prepared:
    """neuralrnn's ``CTRNNModel``: the loop ``leaky``, and a readout to one number at every step.

    Its input and output are batch first, which transposes views.
    """
    from neuralrnn.models.ctrnn.configuration_ctrnn import CTRNNConfig
    from neuralrnn.models.ctrnn.modeling_ctrnn import CTRNNModel

    H, INPUTS = inputs.weights["weight_ih"].shape
    sizes = {"input_dim": INPUTS, "latent_dim": H, "output_dim": 1}
    model = CTRNNModel(CTRNNConfig(**sizes, alpha=ALPHA, activation="tanh"))
    _load(inputs, model.input2h, model.h2h)
    leaves = [inputs.x, *model.input2h.parameters(), *model.h2h.parameters()]
    return lambda: model(inputs.x.transpose(0, 1)).states.transpose(0, 1), leaves


#: The loop that each computes, and how it is made ready; ImportError where it is not installed.
LIBRARIES: dict[str, tuple[str, Callable[[Inputs], Prepared]]] = {
    "nn4n": ("voltage", nn4n),
    "neuralrnn": ("leaky", neuralrnn),
}
