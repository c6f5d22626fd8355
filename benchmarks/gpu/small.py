"""Small problems that reach every plan, for compute-sanitizer: small, or it would take hours."""

from __future__ import annotations

import itertools
import os

import torch

from fused_bptt import _ops

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PLANS = [
    f"{exchange},{residence}"
    for exchange, residence in itertools.product(
        ("cta", "cluster", "grid"), ("registers", "shared", "global")
    )
]
PLANS.append("launches")


def walk(dtype: torch.dtype, lengths: tuple[int, ...] | None) -> None:
    """Both primitives, the adjoint too, in two directions."""
    T, B, G, H = 3, 3, 2, 136
    sizes = None
    rows: tuple[int, ...] = (T, B)
    if lengths is not None:
        sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
        rows = (int(sizes.sum()),)
    u, factor = (torch.randn(*rows, G, H, device="cuda").to(dtype) for _ in range(2))
    weight = torch.randn(G, H, H, device="cuda").div(H**0.5).to(dtype)
    h0 = torch.randn(G, B, H, device="cuda").to(dtype)
    _ops.linear_recurrence(factor, u, weight, h0, sizes, 1, _ops.TANH, True)
    _ops.linear_recurrence(factor, None, weight, None, sizes, 1, _ops.GIVEN, False)
    _ops.recurrence_(u, weight, h0, sizes, 1, _ops.TANH)


def main() -> None:
    """Every plan that this device has, with every type and both precisions of float32."""
    for plan, dtype, tf32 in itertools.product(PLANS, TYPES, (False, True)):
        if tf32 and dtype != torch.float32:
            continue
        torch.backends.cudnn.allow_tf32 = tf32
        os.environ["FUSED_BPTT_CUDA_PLAN"] = plan
        try:
            for lengths in (None, (3, 2, 1)):
                walk(dtype, lengths)
        except RuntimeError as error:
            if "expected a plan for it" not in str(error):
                raise
            print(f"{plan} {dtype} tf32={tf32}: not on this device")
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
