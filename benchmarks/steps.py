"""The command that keeps docs/steps.md's figures equal to committed results.

`python -m benchmarks.steps benchmarks/results/options-MACHINE.json` writes the table between the
markers and the figures in sentences; without a file it takes the one that the table names;
`--check` writes nothing and fails where something is stale, or where the page has a figure of speed
or memory that is not written by this command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import (
    Results,
    StaleError,
    figures_written,
    named,
    refuse_loose_figures,
    source_of,
    split,
)

_ROOT = Path(__file__).parent.parent
PAGE = _ROOT / "docs" / "steps.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
COMMAND = "steps"


def _cell(results: Results, name: int | str) -> dict[str, Any]:
    found = [cell for cell in results["cells"] if cell["cell"] == name and cell["threads"] == 1]
    if not found:
        raise StaleError(f"the results have no cell {name!r} with one thread")
    return found[0]  # type: ignore[no-any-return]


def _step(results: Results, name: str) -> str:
    return f"{1e6 * statistics.median(_cell(results, 'step')['seconds'][name]):.0f} µs"


def _long(results: Results) -> str:
    c = _cell(results, "long")
    return (
        f"T = {c['T']:,} with B = {c['B']}, I = {c['I']}, H = {c['H']} and k = {c['every']} took "
        f"{c['seconds']:.0f} s on one core, and a peak of {c['peak'] / 2**20:.0f} MiB of memory "
        f"({c['before'] / 2**20:.0f} of them PyTorch, the input and the targets); the output alone "
        f"would be {4e-9 * c['T'] * c['B'] * c['H']:.1f} GB"
    )


#: What stands between `<!-- figure:NAME -->` and `<!-- /figure -->`.
FIGURES: dict[str, Callable[[Results], str]] = {
    "step-64": lambda results: _step(results, "step 64"),
    "step-256": lambda results: _step(results, "step 256"),
    "cell-64": lambda results: _step(results, "nn.RNNCell 64"),
    "long": _long,
}

LOOPS = {
    "plain": "the plain recurrence",
    "reset": "resets at {resets:.0%} of the steps",
    "leaky": "a leak, `rate`",
    "voltage": "a leak, `voltage`, with noise",
    "clip": "`clip_state_grad` by norm",
}


def _row(cell: Mapping[str, Any]) -> str:
    times = {name: statistics.median(values) for name, values in cell["seconds"].items()}
    own = times[cell["loop"]]
    libraries = [
        f"{name} {version}: {times[name] / own:.1f}"
        for name, version in cell["libraries"].items()
        if name in times
    ]
    return (
        f"| {LOOPS[cell['loop']].format(**cell)} | {cell['T']} x {cell['B']} x {cell['H']} "
        f"| {1e3 * own:.2f} ms | {cell['times_faster_than_the_loop']:.1f} "
        f"| {', '.join(libraries) or '—'} | {cell['most_times_faster']:.1f} "
        f"| {cell['share_of_product_rate']:.0%} |"
    )


def table(results: Results) -> str:
    """A row for each race against a loop, and what the columns are."""
    cells = [c for c in results["cells"] if c["threads"] == 1 and "loop" in c]
    machine = results["machine"]
    rate = max(c["product_rate"] for c in cells) / 1e9
    most = max(c["most_times_faster"] for c in cells)
    lines = [
        "| step | T x B x H | a pass | times faster than the loop | than a library | at most "
        "| of the product rate |",
        "|---|---|---|---|---|---|---|",
        *map(_row, cells),
        "",
        f"One core of a virtual {machine['cpu']}, float32, I = {cells[0]['I']}, forward and "
        "backward with every gradient, medians of interleaved rounds. *At most* is the loop's time "
        f"over that of the matrix products alone at {rate:.0f} GF/s, the most that this core was "
        "seen to multiply at: what no implementation that multiplies in float32 can pass, and "
        f"{most:.0f} times where it is most. The last "
        "column is how much of that rate a pass reaches, all else included.",
    ]
    return "\n".join(lines)


def render(text: str, source: str, root: Path = _ROOT) -> str:
    """The page with its table and figures written anew from the results."""
    results = json.loads((root / source).read_text())
    before, _, after = split(text, BEGIN, END)
    before, after = (figures_written(part, FIGURES, results) for part in (before, after))
    return f"{before}{BEGIN}\n{named(source, COMMAND)}\n\n{table(results)}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", help="default: the one the page names")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where stale")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    try:
        text = options.page.read_text()
        if options.results is not None:
            source = options.results.resolve().relative_to(_ROOT).as_posix()
        else:
            source = source_of(split(text, BEGIN, END)[1], COMMAND)
        fresh = render(text, source)
        before, _, after = split(fresh, BEGIN, END)
        refuse_loose_figures(before, after)
        if options.check and fresh != text:
            raise StaleError(f"the page is not what {source} says; run benchmarks.steps")
    except (OSError, ValueError, StaleError) as error:
        sys.exit(f"{options.page.name}: {error}")
    if not options.check:
        options.page.write_text(fresh)


if __name__ == "__main__":
    main()
