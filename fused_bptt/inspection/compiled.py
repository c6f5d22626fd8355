"""What torch.compile sees of a monitor: one call, which it does not look into.

Dynamo's own account of an ``autograd.Function`` gives the backward pass zeros where there is no
gradient. Imported when Dynamo first traces a monitor, as ``torch._dynamo`` takes a second to load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .passes import _Tap


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def tap(*arguments: Any) -> tuple[Tensor, ...]:
    """A :class:`fused_bptt.inspection.passes._Tap`."""
    return _Tap.apply(*arguments)  # type: ignore[no-any-return,no-untyped-call]
