"""A drop-in ``torch.nn.RNN`` with a fused forward and hand-written backpropagation through time."""

from importlib.metadata import version

from .convert import replace_rnn
from .functional import rnn
from .inspection.diagnosis import Diagnosis, diagnose
from .inspection.monitor import GradientMonitor
from .inspection.trace import Trace, trace
from .leaky import LeakyRNN
from .module import RNN
from .streams import Window, checkpointed_loss, truncated_bptt

__version__ = version("fused-bptt")
__all__ = [
    "RNN",
    "Diagnosis",
    "GradientMonitor",
    "LeakyRNN",
    "Trace",
    "Window",
    "__version__",
    "checkpointed_loss",
    "diagnose",
    "replace_rnn",
    "rnn",
    "trace",
    "truncated_bptt",
]
