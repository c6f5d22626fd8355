"""``fused-bptt report``: a page and pictures from what ``fused-bptt bench`` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fused_bptt.cli.errors import UserError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its options."""
    parser = subparsers.add_parser(
        "report",
        help="a page and pictures from results of `fused-bptt bench`",
        description="Draw what `fused-bptt bench` wrote: one HTML page that needs nothing else, "
        "and its pictures as PNG. Nothing is measured.",
    )
    parser.add_argument("results", type=Path, help="a .json file that `fused-bptt bench` wrote")
    parser.add_argument(
        "--out", type=Path, default=Path("out/report"), help="folder (default: out/report)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page and the pictures; 0."""
    from fused_bptt.bench import results as store

    try:
        results = store.load(options.results)
    except (OSError, ValueError) as error:
        raise UserError(f"{options.results}: {error}") from None
    if store.OURS not in results["rivals"]:
        raise UserError(
            f"{options.results}: {store.OURS} took no part in it. What --against finds is printed "
            "by `fused-bptt bench` itself."
        )
    try:
        from fused_bptt.bench import charts, summary
        from fused_bptt.bench.page import page
    except ImportError as error:
        raise UserError(f"this needs `pip install fused-bptt[cli]` ({error}).") from None
    options.out.mkdir(parents=True, exist_ok=True)
    index: Path = options.out / "index.html"
    index.write_text(page(results, options.results.name), encoding="utf-8")
    drawn = 0
    for chart in charts.everything(results):
        chart.png(options.out)
        drawn += 1
    print("\n".join(summary.lines(results)))
    print(f"\n{index} and {drawn} pictures beside it")
    return 0
