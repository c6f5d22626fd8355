"""The command that keeps README.md equal to committed results.

`python -m benchmarks.readme benchmarks/results/MACHINE.json` rewrites the block between the
markers, the figures in sentences, and the picture; without a file it takes the one that the block
names; `--check` writes nothing and fails where something is stale, or where README.md has a figure
of speed that is not written by this command.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures
from benchmarks.pages import (
    StaleError,
    figures_written,
    named,
    refuse_loose_figures,
    source_of,
    split,
)
from fused_bptt.bench import charts
from fused_bptt.bench import results as store

_ROOT = Path(__file__).parent.parent
COMMAND, PICTURE = "readme", "docs/benchmark.png"
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


def render(text: str, source: str, root: Path = _ROOT) -> str:
    """The text with its block and its figures written anew from the results."""
    results = store.load(root / source)

    before, _, after = split(text, BEGIN, END)
    block = figures.table(results, source, PICTURE)
    before, after = (figures_written(part, figures.FIGURES, results) for part in (before, after))
    return f"{before}{BEGIN}\n{named(source, COMMAND)}\n\n{block}\n\n{END}{after}"


def stamp(root: Path, source: str) -> str:
    """What the picture says of the results it was drawn from."""
    digest = hashlib.sha256((root / source).read_bytes()).hexdigest()
    return f"{source} {digest}"


def stamped(picture: Path) -> str | None:
    """The stamp of a PNG, None if it has none."""
    data = picture.read_bytes()
    place = 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        if kind == b"tEXt" and content.startswith(b"Source\0"):
            return content.partition(b"\0")[2].decode("latin-1")
        place += 12 + length
    return None


def check(text: str, fresh: str, root: Path, source: str) -> None:
    """Raise where something is stale."""
    if fresh != text:
        raise StaleError(f"the text is not what {source} says; run benchmarks.readme")
    if not (root / PICTURE).exists() or stamped(root / PICTURE) != stamp(root, source):
        raise StaleError(f"{PICTURE} was not drawn from {source}; run benchmarks.readme")


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
            source = source_of(split(text, BEGIN, END)[1], COMMAND)
        fresh = render(text, source, root)
        before, _, after = split(fresh, BEGIN, END)
        refuse_loose_figures(before, after)
        if options.check:
            check(text, fresh, root, source)
            return
    except (OSError, ValueError, StaleError) as error:
        sys.exit(f"{options.readme.name}: {error}")
    options.readme.write_text(fresh)
    (root / PICTURE).parent.mkdir(exist_ok=True)
    charts.overview(store.load(root / source), root / PICTURE, stamp(root, source))


if __name__ == "__main__":
    main()
