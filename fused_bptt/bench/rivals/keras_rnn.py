"""Keras's SimpleRNN on JAX, stateless, under one jit."""

from __future__ import annotations

import os
from typing import Any

import torch

from fused_bptt.bench.cells import FLOAT32, Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, named, not_installed, tensor, version_of


class Keras:
    """Layers of SimpleRNN; both of nn.RNN's biases are its one."""

    name = "keras"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        os.environ.setdefault("KERAS_BACKEND", "jax")
        return not_installed("jax", "jax") or not_installed("keras", "keras jax")

    def refuses(self, cell: Cell) -> str | None:
        """Other dtypes."""
        return None if cell.dtype == FLOAT32 else "measured in float32 alone"

    def version(self) -> str:
        """Of keras, and of what it runs on."""
        return f"{version_of('keras')} on JAX {version_of('jax')}"

    def settings(self, threads: int) -> str:
        """How it is called."""
        return (
            "SimpleRNN(return_sequences=True), batch first, stateless_call and its vjp under one "
            "jax.jit, block_until_ready; arrays on the device beforehand; XLA's pool has "
            f"{threads} threads"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """Build the layers and compile for the data's shape, at the first call."""
        import jax
        import jax.numpy as jnp
        import keras

        cell = data.cell
        layers = []
        for layer in range(cell.layers):
            inputs = cell.I if layer == 0 else cell.H
            layers.append(keras.layers.SimpleRNN(cell.H, return_sequences=True))
            layers[-1].build((cell.B, cell.T, inputs))

        def recurrence(x: Any, h_0: Any, weights: Any) -> Any:
            below = x
            for layer, made in enumerate(layers):
                states = [variable.value for variable in made.non_trainable_variables]
                below, _ = made.stateless_call(
                    weights[layer], states, below, initial_state=h_0[layer], training=False
                )
            return below

        def step_of_training(x: Any, h_0: Any, weights: Any, cotangent: Any) -> Any:
            output, pullback = jax.vjp(recurrence, x, h_0, weights)
            return output, pullback(cotangent)

        training = jax.jit(step_of_training)
        inference = jax.jit(recurrence)

        def array(value: torch.Tensor) -> Any:
            return jnp.array(value.numpy())

        names = weight_names(cell)
        groups = [names[first : first + 4] for first in range(0, len(names), 4)]
        weights = [
            [
                array(data.weights[w_ih].T.contiguous()),
                array(data.weights[w_hh].T.contiguous()),
                array(data.weights[b_ih] + data.weights[b_hh]),
            ]
            for w_ih, w_hh, b_ih, b_hh in groups
        ]
        x = array(data.x.transpose(0, 1).contiguous())
        h_0 = array(data.h_0)
        cotangent = array(data.grad_output.transpose(0, 1).contiguous())

        def forward_backward() -> Any:
            return jax.block_until_ready(training(x, h_0, weights, cotangent))

        def forward() -> Any:
            return jax.block_until_ready(inference(x, h_0, weights))

        def results() -> dict[str, torch.Tensor]:
            output, (grad_x, grad_h_0, grads) = forward_backward()
            gradients = [tensor(grad_x).transpose(0, 1), tensor(grad_h_0)]
            for kernel, recurrent, bias in grads:
                gradients += [tensor(kernel).T, tensor(recurrent).T, tensor(bias), tensor(bias)]
            return named(data, tensor(output).transpose(0, 1), gradients)

        return Prepared(
            forward_backward, forward, results, lambda: tensor(forward()).transpose(0, 1)
        )
