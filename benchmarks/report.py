"""The command that draws: `python -m benchmarks.report RESULTS.json`. Never measures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results as store
from benchmarks import tables
from benchmarks.cells import MODES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="a file that benchmarks.measure wrote")
    parser.add_argument(
        "--out", type=Path, default=Path("out/benchmark"), help="folder (default: out/benchmark)"
    )
    options = parser.parse_args(arguments)
    results = store.load(options.results)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / options.results.stem
    page = stem.with_suffix(".md")
    page.write_text(tables.full_report(results))
    print(page)

    from benchmarks import heatmap

    for mode in MODES:
        if any(block.mode == mode for block in store.blocks(results)):
            picture = Path(f"{stem}-{mode.replace('_', '-')}.png")
            heatmap.draw(results, mode, picture)
            print(picture)


if __name__ == "__main__":
    main()
