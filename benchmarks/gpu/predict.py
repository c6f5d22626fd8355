"""`python -m benchmarks.gpu.predict`: what the plan predicts on an H200, beside the limit.

Nothing here is measured. docs/kernels.md shows this table; a test compares.
"""

from __future__ import annotations

import re

from fused_bptt import _ops

H_SIZES = (64, 128, 256, 512, 1024, 2048)

#: µs a step of the forward walk that no plan can go below, by the formula in docs/kernels.md.
LIMITS = {
    ("bf16", 1): (0.15, 0.15, 0.25, 0.32, 0.47, 0.68),
    ("bf16", 16): (0.15, 0.15, 0.29, 0.39, 0.62, 1.0),
    ("bf16", 64): (0.15, 0.15, 0.30, 0.45, 1.1, 2.0),
    ("bf16", 256): (0.15, 0.15, 0.30, 0.64, 2.1, 6.8),
    ("tf32", 1): (0.17, 0.20, 0.29, 0.40, 0.66, 0.86),
    ("tf32", 16): (0.17, 0.20, 0.35, 0.53, 0.84, 1.8),
    ("tf32", 64): (0.17, 0.20, 0.38, 0.75, 1.6, 5.1),
    ("tf32", 256): (0.17, 0.20, 0.47, 1.2, 4.2, 19),
    ("fp32", 1): (0.12, 0.17, 0.24, 0.34, 0.55, 0.70),
    ("fp32", 16): (0.12, 0.17, 0.29, 0.58, 1.2, 3.6),
    ("fp32", 64): (0.12, 0.17, 0.35, 0.91, 3.6, 13),
    ("fp32", 256): (0.14, 0.25, 0.70, 3.0, 13, 50),
}
_LETTERS = {"registers": "r", "shared": "s", "global": "g"}


def plan(products: str, B: int, H: int, device: str = "h200") -> dict[str, str]:
    """The chosen plan's `name=value` words."""
    text = _ops.explain_plan(B, 1, H, products, device)
    chosen = next(line for line in text.splitlines() if line.startswith("chosen"))
    return dict(re.findall(r"(\w+)=(\S+)", chosen))


def cell(products: str, B: int, H: int, limit: float) -> str:
    """Predicted / limit, and the plan: exchange, CTAs, where W is."""
    found = plan(products, B, H)
    exchange = found["exchange"] if found["ctas"] == "1" else f"{found['exchange']} {found['ctas']}"
    step = float(found["step_us"])
    shown = f"{step:.2f}" if step < 9.95 else f"{step:.0f}"
    return f"{shown} / {limit:g} {exchange} {_LETTERS[found['residence']]}"


def table() -> str:
    """In Markdown."""
    rows = ["| | " + " | ".join(f"H={H}" for H in H_SIZES) + " |", "|---" * 7 + "|"]
    for (products, B), limits in LIMITS.items():
        cells = [cell(products, B, H, limit) for H, limit in zip(H_SIZES, limits, strict=True)]
        rows.append(f"| {products} B={B} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
