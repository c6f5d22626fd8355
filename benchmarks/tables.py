"""Markdown from results. Never measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import floors
from benchmarks.cells import FORWARD_BACKWARD, MODES, OVERHEAD, STEPS, Cell
from benchmarks.results import DISTURBED, UNSTEADY, Block, blocks

OURS = "fused_bptt.RNN"
ABSENT = "-"
NAMES = {
    OURS: "fused_bptt.RNN",
    "nn.RNN": "torch.nn.RNN",
    "onednn": "oneDNN vanilla_rnn",
    "jax": "JAX jit(lax.scan)",
}
MODE_NAMES = {FORWARD_BACKWARD: "forward + backward", "forward": "forward without gradient"}


def opponents(results: Mapping[str, Any]) -> list[str]:
    """Everyone that took part but us."""
    return [name for name in results["rivals"] if name != OURS]


def grid(found: Sequence[Block]) -> dict[tuple[int, int], Block]:
    """By B and H, the blocks of the grid's number of steps."""
    return {(block.cell.B, block.cell.H): block for block in found if block.cell.T == STEPS}


def select(results: Mapping[str, Any], threads: int, mode: str) -> list[Block]:
    """The blocks of a thread count and mode."""
    return [b for b in blocks(results) if (b.threads, b.mode) == (threads, mode)]


def thread_counts(results: Mapping[str, Any]) -> list[int]:
    """In ascending order."""
    return sorted({block.threads for block in blocks(results)})


def count(threads: int) -> str:
    """A thread count in words."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def table(found: Sequence[Block], write: Callable[[Block], str]) -> list[str]:
    """A row for each batch, a column for each hidden size."""
    cells = grid(found)
    batches = sorted({B for B, _ in cells})
    sizes = sorted({H for _, H in cells})
    lines = ["| B | " + " | ".join(f"H={H}" for H in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for B in batches:
        row = [write(cells[B, H]) if (B, H) in cells else "" for H in sizes]
        lines.append(f"| {B} | " + " | ".join(row) + " |")
    return lines


def number(value: float) -> str:
    """Three digits, no more than two behind the point."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def missed(text: str, floor: str) -> str:
    """A figure below its floor, marked so that it meets the eye."""
    return f"**{text}** ✗ {floor}"


def ratio_text(block: Block, rival: str) -> str:
    """How many times faster we are, with quartiles; marked where below the floor."""
    ratio = block.ratio(rival, OURS)
    if ratio is None:
        return "wrong" if "wrong" in block.raw["rivals"].get(rival, {}) else ABSENT
    text = number(ratio.median)
    floor = floors.ratio_floor(rival, block.cell)
    if floor is not None and ratio.median < floor:
        text = missed(text, f"{floor:g}")
    return f"{text} ({number(ratio.lower)}-{number(ratio.upper)})"


def share_text(block: Block) -> str:
    """The limit over our time."""
    share = block.roofline_share(OURS)
    if share is None:
        return ABSENT
    floor = floors.share_floor(block.cell)
    text = f"{share:.0%}"
    return missed(text, f"{floor:.0%}") if floor is not None and share < floor else text


def time_text(block: Block) -> str:
    """Microseconds a step: everyone's that was timed, in the order of the rivals."""
    values = (block.seconds(name) for name in block.raw["rivals"])
    steps = block.cell.T
    return " / ".join(ABSENT if v is None else number(1e6 * v / steps) for v in values)


def machine_line(results: Mapping[str, Any]) -> str:
    """The machine and the versions in one sentence."""
    machine = results["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    virtual = ", virtual" if machine["hypervisor"] else ""
    versions = ", ".join(
        f"{NAMES.get(name, name)} {rival['version']}"
        for name, rival in results["rivals"].items()
        if "version" in rival
    )
    return (
        f"{machine['cpu']} ({machine['cores']} cores{virtual}; {caches}; "
        f"{' '.join(machine['flags'])}); {versions}; {results['created'][:10]}"
    )


def probe_line(found: Sequence[Block]) -> str:
    """The range of what a core could do beside the blocks."""
    products = [
        block.raw["probes"][when]["sgemm_gflops"] for block in found for when in ("before", "after")
    ]
    peaks = [block.raw["probes"]["after"]["multiply_add_gflops"] for block in found]
    unsteady = [block.cell.name for block in found if block.unsteady]
    disturbed = [block.cell.name for block in found if block.disturbed]
    line = (
        f"A core ran a large product at {min(products):.0f} to {max(products):.0f} GF/s beside "
        f"these blocks, and multiply-adds on registers at {max(peaks):.0f}."
    )
    if unsteady:
        line += f" The product's rate changed by more than {UNSTEADY:.0%} around "
        line += f"{', '.join(unsteady)}."
    if disturbed:
        line += f" Other processes took more than {DISTURBED:.0%} of the cores at "
        line += f"{', '.join(disturbed)}: **not to be quoted**."
    return line


def overhead_table(results: Mapping[str, Any]) -> list[str]:
    """Microseconds a call where there is next to nothing to compute."""
    cell = OVERHEAD
    rows = []
    for block in blocks(results):
        if block.cell != cell:
            continue
        times = []
        for name in results["rivals"]:
            seconds = block.seconds(name)
            text = ABSENT if seconds is None else number(1e6 * seconds)
            late = seconds is not None and seconds > floors.OVERHEAD_SECONDS
            if name == OURS and block.mode == FORWARD_BACKWARD and late:
                text = missed(text, f"{1e6 * floors.OVERHEAD_SECONDS:.0f}")
            times.append(text)
        rows.append(f"| {block.threads} | {MODE_NAMES[block.mode]} | " + " | ".join(times) + " |")
    if not rows:
        return []
    heads = " | ".join(NAMES.get(name, name) for name in results["rivals"])
    rule = "|---" * (len(results["rivals"]) + 2) + "|"
    title = f"### A call's overhead: µs a call at T={cell.T}, B={cell.B}, H={cell.H}"
    return [title, "", f"| threads | | {heads} |", rule, *rows, ""]


def memory_table(results: Mapping[str, Any]) -> list[str]:
    """Peak extra memory of a training step."""
    if not results["memory"]:
        return []
    shape = Cell(**results["memory"][0]["cell"])
    lines = [
        f"### Peak extra memory of forward + backward at T={shape.T}, B={shape.B}, H={shape.H}",
        "",
        "| | MB | over u, h, q and the returned gradients |",
        "|---|---|---|",
    ]
    for entry in results["memory"]:
        ratio = entry["extra_bytes"] / sum(entry["needed_bytes"].values())
        text = number(ratio)
        if entry["rival"] == OURS and ratio > floors.MEMORY_RATIO:
            text = missed(text, f"{floors.MEMORY_RATIO}")
        name = NAMES.get(entry["rival"], entry["rival"])
        lines.append(f"| {name} | {entry['extra_bytes'] / 1e6:.0f} | {text} |")
    return [*lines, ""]


def full_report(results: Mapping[str, Any]) -> str:
    """Everything, as a page."""
    lines = [
        "# Benchmark",
        "",
        machine_line(results) + ".",
        "",
        "T=100, I=min(H, 64), float32, tanh. Ratios are paired by round: median (quartiles). "
        "A figure marked **✗** is below what this project holds itself to, which stands beside it.",
        "",
    ]
    for threads in thread_counts(results):
        for mode in MODES:
            found = select(results, threads, mode)
            if not grid(found):
                continue
            lines += [f"## {count(threads).capitalize()}, {MODE_NAMES[mode]}", ""]
            lines += [probe_line(found), ""]
            for rival in opponents(results):
                lines += [f"### Times faster than {NAMES.get(rival, rival)}", ""]
                lines += [*table(found, lambda b, rival=rival: ratio_text(b, rival)), ""]
            lines += ["### Share of the roofline", "", *table(found, share_text), ""]
            order = " / ".join(NAMES.get(name, name) for name in results["rivals"])
            lines += [f"### µs a step: {order}", "", *table(found, time_text), ""]
    lines += ["## Beside the grid", "", *overhead_table(results), *memory_table(results)]
    lines += ["## Who took part", ""]
    for name, rival in results["rivals"].items():
        said = rival.get("missing") or next(iter(rival["settings"].values()))
        lines.append(f"- {NAMES.get(name, name)} {rival.get('version', '')}: {said}.")
    return "\n".join(lines) + "\n"


def readme_block(results: Mapping[str, Any], source: str) -> str:
    """What README.md shows: forward + backward against everyone, by thread count."""
    rivals = opponents(results)
    names = " / ".join(NAMES.get(name, name) for name in rivals)
    lines = [
        f"Times faster than {names}, forward + backward, T=100, I=min(H, 64), float32, medians of "
        f"interleaved rounds:",
        "",
    ]

    def entry(block: Block) -> str:
        ratios = (block.ratio(rival, OURS) for rival in rivals)
        return " / ".join(ABSENT if ratio is None else number(ratio.median) for ratio in ratios)

    for threads in thread_counts(results):
        found = select(results, threads, FORWARD_BACKWARD)
        lines += [f"**{count(threads).capitalize()}**", "", *table(found, entry), ""]
    lines.append(
        f"{machine_line(results)}. oneDNN is called from C++ without autograd, module or "
        f"allocation. Data: [{source}]({source}); method: "
        "[benchmarks/README.md](benchmarks/README.md)."
    )
    return "\n".join(lines)
