"""TensorFlow: a while loop over a TensorArray under tf.function, as its SimpleRNN unrolls to."""

from __future__ import annotations

from typing import Any

from fused_bptt.bench.cells import FLOAT32, Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, named, not_installed, tensor


class TensorFlow:
    """One tf.function of the loop and its tape."""

    name = "tensorflow"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        return not_installed("tensorflow", "tensorflow-cpu")

    def refuses(self, cell: Cell) -> str | None:
        """Other dtypes."""
        return None if cell.dtype == FLOAT32 else "measured in float32 alone"

    def version(self) -> str:
        """Of tensorflow."""
        import tensorflow

        return str(tensorflow.__version__)

    def settings(self, threads: int) -> str:
        """How it is called."""
        return (
            "tf.function of tf.while_loop over a TensorArray and tf.GradientTape, the input "
            f"projection as one product; {threads} intra-op threads, 1 inter-op"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """Trace for the data's shape, at the first call."""
        import tensorflow as tf

        _set_threads(tf, threads)
        cell = data.cell

        def recurrence(x: Any, h_0: Any, *weights: Any) -> Any:
            below = x
            for layer in range(cell.layers):
                w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
                rows = tf.reshape(below, [cell.T * cell.B, -1])
                u = tf.matmul(rows, w_ih, transpose_b=True) + (b_ih + b_hh)
                inputs = tf.TensorArray(tf.float32, cell.T).unstack(
                    tf.reshape(u, [cell.T, cell.B, cell.H])
                )

                def step(
                    t: Any, h: Any, states: Any, inputs: Any = inputs, w_hh: Any = w_hh
                ) -> tuple[Any, Any, Any]:
                    h = tf.tanh(inputs.read(t) + tf.matmul(h, w_hh, transpose_b=True))
                    return t + 1, h, states.write(t, h)

                start = (0, h_0[layer], tf.TensorArray(tf.float32, cell.T))
                _, _, states = tf.while_loop(
                    lambda t, h, states: t < cell.T, step, start, maximum_iterations=cell.T
                )
                below = tf.reshape(states.stack(), [cell.T, cell.B, cell.H])
            return below

        def step_of_training(cotangent: Any, *arguments: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                output = recurrence(*arguments)
            return output, tape.gradient(output, arguments, output_gradients=cotangent)

        training = tf.function(step_of_training)
        inference = tf.function(recurrence)
        tensors = [data.x, data.h_0, *(data.weights[name] for name in weight_names(cell))]
        arguments = [tf.constant(value.numpy()) for value in tensors]
        cotangent = tf.constant(data.grad_output.numpy())

        def forward_backward() -> Any:
            return training(cotangent, *arguments)

        def forward() -> Any:
            return inference(*arguments)

        def results() -> dict[str, Any]:
            output, gradients = forward_backward()
            return named(data, tensor(output), (tensor(g) for g in gradients))

        return Prepared(forward_backward, forward, results, lambda: tensor(forward()))


def _set_threads(tf: Any, threads: int) -> None:
    """TensorFlow takes this once a process, before it does anything."""
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
