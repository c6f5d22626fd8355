"""The command that keeps README.md equal to committed results.

`python -m benchmarks.readme benchmarks/results/MACHINE.json` rewrites the block between the
markers, the figures in sentences, and the picture; without a file it takes the one that the block
names; `--check` writes nothing and fails where something is stale, or where README.md has a figure
of speed that is not written by this command.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures
from fused_bptt.bench import charts
from fused_bptt.bench import results as store

_ROOT = Path(__file__).parent.parent
PICTURE = "docs/benchmark.png"
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
_SOURCE = re.compile(r"<!-- from (?P<path>\S+) by benchmarks/readme.py -->")
_FIGURE = re.compile(r"<!-- figure:(?P<name>\S+) -->(?P<text>.*?)<!-- /figure -->", re.DOTALL)

# What a figure of speed or memory looks like: a number, or a range, with a unit or a comparison.
_CLAIM = re.compile(
    r"\d[\d.,]*\s*(?:[x\u00d7]\s*(?:as|faster|slower|less|more)|times\s+(?:as|faster|slower|less|more)"
    r"|(?:n|µ|u|m)s\b|seconds?\b|GF/s|GB/s|(?:k|M|G)i?B\b|%)",
    re.IGNORECASE,
)


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
    """The text with its block and its figures written anew from the results."""
    results = store.load(root / source)

    def figure(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in figures.FIGURES:
            known = ", ".join(figures.FIGURES)
            raise StaleError(f"figure:{name}: expected one of {known}")
        return f"<!-- figure:{name} -->{figures.FIGURES[name](results)}<!-- /figure -->"

    before, _, after = split(text)
    block = figures.table(results, source, PICTURE)
    name = f"<!-- from {source} by benchmarks/readme.py -->"
    before, after = _FIGURE.sub(figure, before), _FIGURE.sub(figure, after)
    return f"{before}{BEGIN}\n{name}\n\n{block}\n\n{END}{after}"


def refuse_loose_figures(text: str) -> None:
    """Raise where a figure of speed stands outside what this command writes."""
    before, _, after = split(text)
    for part in (before, after):
        prose = re.sub(r"```.*?```", "", _FIGURE.sub("", part), flags=re.DOTALL)
        found = _CLAIM.search(prose)
        if found:
            raise StaleError(
                f"{found[0]!r} is a figure that no file of results holds: write it as "
                "<!-- figure:NAME --><!-- /figure --> and compute it in benchmarks/figures.py"
            )


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
            source = source_of(text)
        fresh = render(text, source, root)
        refuse_loose_figures(fresh)
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
