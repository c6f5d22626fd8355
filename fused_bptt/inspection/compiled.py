"""What torch.compile sees of a monitor: one call, which it does not look into.

Dynamo's own account of an ``autograd.Function`` gives the backward pass zeros where there is no
gradient. Imported when Dynamo first traces a monitor, as ``torch._dynamo`` takes a second to load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import passes


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def put_behind(*arguments: Any) -> tuple[Tensor, ...]:
    """:func:`fused_bptt.inspection.passes.put_behind`."""
    return passes.put_behind(*arguments)
