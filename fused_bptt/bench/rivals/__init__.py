"""Who is measured, one small adapter each."""

from fused_bptt.bench.rivals.base import BASELINE, OURS, Prepared, Rival
from fused_bptt.bench.rivals.compiled import Compiled
from fused_bptt.bench.rivals.cuda_alone import CudaAlone
from fused_bptt.bench.rivals.jax_scan import Jax
from fused_bptt.bench.rivals.keras_rnn import Keras
from fused_bptt.bench.rivals.modules import Module
from fused_bptt.bench.rivals.onednn_primitive import OneDnn
from fused_bptt.bench.rivals.paddle_rnn import Paddle
from fused_bptt.bench.rivals.tensorflow_loop import TensorFlow

__all__ = ["BASELINE", "OURS", "RIVALS", "Prepared", "Rival"]

# The order is that of tables.
RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Module(OURS, "fused_bptt"),
        Module(BASELINE, "torch"),
        OneDnn(),
        Jax(),
        Keras(),
        Paddle(),
        TensorFlow(),
        Compiled(),
        CudaAlone("flashrnn"),
        CudaAlone("xma"),
    )
}
