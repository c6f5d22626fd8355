"""The command that keeps README.md's table equal to committed results.

`python -m benchmarks.readme benchmarks/results/MACHINE.json` rewrites what lies between the
markers; without a file it takes the one that the block names; `--check` writes nothing and fails
where the block is stale.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results as store
from benchmarks import tables

_ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
_SOURCE = re.compile(r"<!-- from (?P<path>\S+) by benchmarks/readme.py -->")


class StaleError(Exception):
    """The text has no markers, names no results, or does not show what they say."""


def split(text: str) -> tuple[str, str, str]:
    """What comes before the block, the block, and what follows."""
    before, begin, rest = text.partition(BEGIN)
    block, end, after = rest.partition(END)
    if not begin or not end:
        raise StaleError(f"the markers {BEGIN} and {END} are not there")
    return before, block, after


def source_of(text: str) -> str:
    """The file of results that the block names, relative to the repository."""
    found = _SOURCE.search(split(text)[1])
    if found is None:
        raise StaleError("the block names no file of results; run benchmarks.readme with one")
    return found["path"]


def render(text: str, source: str, root: Path = _ROOT) -> str:
    """The text with its block written anew from the results."""
    before, _, after = split(text)
    block = tables.readme_block(store.load(root / source), source)
    name = f"<!-- from {source} by benchmarks/readme.py -->"
    return f"{before}{BEGIN}\n{name}\n\n{block}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", help="default: the one the block names")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where stale")
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    options = parser.parse_args(arguments)
    root = options.readme.resolve().parent
    try:
        text = options.readme.read_text()
        if options.results is not None:
            source = options.results.resolve().relative_to(root).as_posix()
        else:
            source = source_of(text)
        fresh = render(text, source, root)
        if options.check and fresh != text:
            raise StaleError(f"the block is not what {source} says; run benchmarks.readme")
    except (OSError, ValueError, StaleError) as error:
        sys.exit(f"{options.readme.name}: {error}")
    if fresh != text:
        options.readme.write_text(fresh)


if __name__ == "__main__":
    main()
