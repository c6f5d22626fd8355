"""Pages whose figures are written by a command: a block between markers, and figures in sentences.

For benchmarks/readme.py, steps.py, tutorial.py and transforms.py. Never measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Results = Mapping[str, Any]
Figures = Mapping[str, Callable[[Any], str]]

_FIGURE = re.compile(r"<!-- figure:(?P<name>\S+) -->(?P<text>.*?)<!-- /figure -->", re.DOTALL)

# What a figure of speed or memory looks like: a number, or a range, with a unit or a comparison.
_CLAIM = re.compile(
    r"\d[\d.,]*\s*(?:[x\u00d7]\s*(?:as|faster|slower|less|more)|times\s+(?:as|faster|slower|less|more)"
    r"|(?:n|µ|u|m)s\b|seconds?\b|GF/s|GB/s|(?:k|M|G)i?B\b|%)",
    re.IGNORECASE,
)


class StaleError(Exception):
    """The text has no markers, names no results, or does not show what they say."""


def split(text: str, begin: str, end: str) -> tuple[str, str, str]:
    """What comes before the block between two markers, the block, and what follows."""
    before, begin_found, rest = text.partition(begin)
    block, end_found, after = rest.partition(end)
    if not begin_found or not end_found:
        raise StaleError(f"the markers {begin} and {end} are not there")
    return before, block, after


def named(source: str, command: str) -> str:
    """The line that names the file of results, and the command that read it."""
    return f"<!-- from {source} by benchmarks/{command}.py -->"


def source_of(text: str, command: str) -> str:
    """The file of results that a text names, relative to the repository."""
    found = re.search(re.escape(named("PATH", command)).replace("PATH", r"(?P<path>\S+)"), text)
    if found is None:
        raise StaleError(f"it names no file of results; run benchmarks.{command} with one")
    return found["path"]


def figures_written(text: str, figures: Figures, results: Results) -> str:
    """The text with each `<!-- figure:NAME -->` written anew from the results."""

    def figure(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in figures:
            raise StaleError(f"figure:{name}: expected one of {', '.join(figures)}")
        return f"<!-- figure:{name} -->{figures[name](results)}<!-- /figure -->"

    return _FIGURE.sub(figure, text)


def refuse_loose_figures(*parts: str) -> None:
    """Raise where a figure of speed or memory stands outside what a command writes."""
    for part in parts:
        found = _CLAIM.search(re.sub(r"```.*?```", "", _FIGURE.sub("", part), flags=re.DOTALL))
        if found:
            raise StaleError(
                f"{found[0]!r} is a figure that no file of results holds: write it as "
                "<!-- figure:NAME --><!-- /figure --> and compute it from one"
            )
