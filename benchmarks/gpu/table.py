"""`python -m benchmarks.gpu.table cells.json`: a table of what timing.py measured."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.rivals import BASELINE, OURS

_HEADER = f"{'cell':<34}{'µs/step':>9}{'plan':>8}{'cuDNN':>9}{'by graph':>10}{'memory':>8}  others"


def _ms(cell: dict[str, Any], rival: str, how: str) -> float | None:
    found = cell["rivals"].get(rival, {}).get(f"forward_backward {how}")
    return found["ms"] if isinstance(found, dict) else None


def _ratio(cell: dict[str, Any], how: str) -> float | None:
    ours, theirs = _ms(cell, OURS, how), _ms(cell, BASELINE, how)
    return theirs / ours if ours and theirs else None


def _text(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def row(cell: dict[str, Any]) -> str:
    """Forward + backward: ours by graph, what the plan predicts for both walks, ratios."""
    if not cell.get("right", True):
        error = f"error {cell['errors'][OURS]:.1e}, at most {cell['allowed']:.1e}"
        return f"{cell['name']:<34}wrong: {error}"
    ours = cell["rivals"].get(OURS, {})
    if "failed" in ours:
        return f"{cell['name']:<34}failed: {ours['failed']}"
    graph = _ms(cell, OURS, "graph")
    step = re.search(r"step_us=(\S+)", cell["plan"])
    memory = [
        cell["rivals"].get(name, {}).get("forward_backward peak_bytes") for name in (OURS, BASELINE)
    ]
    others = []
    for name in cell["rivals"]:
        if name in (OURS, BASELINE):
            continue
        ms = _ms(cell, name, "graph") or _ms(cell, name, "eager") or _ms(cell, name, "host clock")
        others.append(f"{name} {_text(ms and graph and ms / graph)}x")
    return (
        f"{cell['name']:<34}{_text(graph and 1000 * graph / cell['T']):>9}"
        f"{_text(float(step[1]) * 2 * cell['layers'] if step else None):>8}"
        f"{_text(_ratio(cell, 'eager')):>8}x{_text(_ratio(cell, 'graph')):>9}x"
        f"{_text(memory[0] / memory[1] if all(memory) else None):>8}  {', '.join(others)}"
    )


def geometric_mean(ratios: list[float]) -> float:
    """Of at least one."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def lines(result: dict[str, Any]) -> list[str]:
    """The table and what it comes to."""
    found = [
        "forward + backward, cold L2. µs/step: fused_bptt.RNN by graph replay, all its products",
        "included; plan: predicted for the two walks alone; cuDNN: nn.RNN's time over ours, eager,",
        "then both by graph replay; memory: our peak over nn.RNN's",
        _HEADER,
        *(row(cell) for cell in result["cells"]),
    ]
    for how in ("eager", "graph"):
        ratios = {cell["name"]: r for cell in result["cells"] if (r := _ratio(cell, how))}
        if ratios:
            worst = min(ratios, key=lambda name: ratios[name])
            mean = geometric_mean(list(ratios.values()))
            found.append(
                f"nn.RNN over ours, {how}: geometric mean {mean:.2f} of {len(ratios)} cells, "
                f"least {ratios[worst]:.2f} ({worst})"
            )
    if result["left_out"]:
        found.append(f"not reached in time: {len(result['left_out'])} cells")
    return found


if __name__ == "__main__":
    print("\n".join(lines(json.loads(Path(sys.argv[1]).read_text()))))
