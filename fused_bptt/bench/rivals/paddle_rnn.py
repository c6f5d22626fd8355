"""PaddlePaddle's SimpleRNN, eager: a fused operator forward and backward."""

from __future__ import annotations

from typing import Any

from fused_bptt.bench.cells import FLOAT32, Cell
from fused_bptt.bench.data import Data, weight_names
from fused_bptt.bench.rivals.base import Prepared, named, not_installed, tensor, version_of


class Paddle:
    """The layer as its users call it."""

    name = "paddle"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        return not_installed("paddle", "paddlepaddle")

    def refuses(self, cell: Cell) -> str | None:
        """Other dtypes."""
        return None if cell.dtype == FLOAT32 else "measured in float32 alone"

    def version(self) -> str:
        """Of paddlepaddle."""
        return version_of("paddlepaddle")

    def settings(self, threads: int) -> str:
        """How it is called."""
        return (
            "SimpleRNN(time_major=True), eager, paddle.grad for the gradients, paddle.no_grad for "
            f"forward alone; {threads} threads by OMP_NUM_THREADS, KMP_BLOCKTIME=1"
        )

    def prepare(self, data: Data, threads: int) -> Prepared:
        """A layer that holds the data's weights."""
        import paddle

        paddle.set_device("cpu")
        cell = data.cell
        layer = paddle.nn.SimpleRNN(cell.I, cell.H, num_layers=cell.layers, time_major=True)
        parameters = dict(layer.named_parameters())
        for name in weight_names(cell):
            parameters[name].set_value(data.weights[name].numpy())
        x = paddle.to_tensor(data.x.numpy(), stop_gradient=False)
        h_0 = paddle.to_tensor(data.h_0.numpy(), stop_gradient=False)
        wanted = [x, h_0, *(parameters[name] for name in weight_names(cell))]
        cotangent = paddle.to_tensor(data.grad_output.numpy())

        def forward_backward() -> Any:
            output, _ = layer(x, h_0)
            return output, paddle.grad([output], wanted, [cotangent])

        def forward() -> Any:
            with paddle.no_grad():
                return layer(x, h_0)[0]

        def results() -> dict[str, Any]:
            output, gradients = forward_backward()
            return named(data, tensor(output.detach()), (tensor(g) for g in gradients))

        return Prepared(forward_backward, forward, results, lambda: tensor(forward()))
