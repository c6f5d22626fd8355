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


def plans(products: str, B: int, H: int, step: str = "plain") -> list[dict[str, str]]:
    """The `name=value` words of the chosen plan, and of the others with a price."""
    text = _ops.explain_plan(B, 1, H, products, "h200", step)
    lines = [line for line in text.splitlines() if line.startswith(("chosen", "priced"))]
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]


def shown(step_us: float) -> str:
    """Three digits."""
    return f"{step_us:.2f}" if step_us < 9.95 else f"{step_us:.0f}"


def where(plan: dict[str, str]) -> str:
    """Exchange, CTAs, where W is."""
    exchange = plan["exchange"] if plan["ctas"] == "1" else f"{plan['exchange']} {plan['ctas']}"
    return f"{exchange} {_LETTERS[plan['residence']]}"


def cell(products: str, B: int, H: int, limit: float) -> str:
    """Predicted / limit, and the plan."""
    chosen = plans(products, B, H)[0]
    return f"{shown(float(chosen['step_us']))} / {limit:g} {where(chosen)}"


def leaky_cell(products: str, B: int, H: int) -> str:
    """Predicted of a step with a leak, by launches / as planned, and the plan."""
    chosen, *others = plans(products, B, H, "leaky")
    launches = min(float(p["step_us"]) for p in others if p["exchange"] == "launches")
    return f"{shown(launches)} / {shown(float(chosen['step_us']))} {where(chosen)}"


def _markdown(rows: dict[str, list[str]]) -> str:
    head = ["| | " + " | ".join(f"H={H}" for H in H_SIZES) + " |", "|---" * 7 + "|"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])


def table() -> str:
    """In Markdown."""
    rows = {}
    for (products, B), limits in LIMITS.items():
        cells = [cell(products, B, H, limit) for H, limit in zip(H_SIZES, limits, strict=True)]
        rows[f"{products} B={B}"] = cells
    return _markdown(rows)


def leaky_table() -> str:
    """In Markdown, a step with a leak."""
    rows = {}
    for products, B in LIMITS:
        if B != 64:
            rows[f"{products} B={B}"] = [leaky_cell(products, B, H) for H in H_SIZES]
    return _markdown(rows)


if __name__ == "__main__":
    print(table(), leaky_table(), sep="\n\n")
