"""The command that keeps docs/tutorial.md's figures equal to committed results.

`python -m benchmarks.tutorial` writes the figures in sentences from the file that the page names;
`--check` writes nothing and fails where something is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.pages import Results, StaleError, figures_written, source_of

_ROOT = Path(__file__).parent.parent
PAGE = _ROOT / "docs" / "tutorial.md"


def _cost(results: Results, compiled: bool, B: int, H: int) -> str:
    for cell in results["cells"]:
        if (cell["compiled"], cell["B"], cell["H"]) == (compiled, B, H):
            return f"{cell['cost']:.1%} of a step of {1e3 * cell['step_seconds']:.2f} ms".replace(
                "%", " %"
            )
    raise StaleError(f"the results have no cell of B = {B}, H = {H}, compiled = {compiled}")


#: What stands between `<!-- figure:NAME -->` and `<!-- /figure -->`.
FIGURES: dict[str, Callable[[Results], str]] = {
    "monitor-short": lambda results: _cost(results, False, 1, 16),
    "monitor-long": lambda results: _cost(results, False, 32, 16),
    "compiled-short": lambda results: _cost(results, True, 1, 16),
    "compiled-middle": lambda results: _cost(results, True, 32, 16),
    "compiled-long": lambda results: _cost(results, True, 32, 64),
}


def render(text: str) -> str:
    """The page with its figures written anew from the results that it names."""
    results = json.loads((_ROOT / source_of(text, "tutorial")).read_text())
    return figures_written(text, FIGURES, results)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tutorial", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where stale")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    try:
        text = options.page.read_text()
        fresh = render(text)
        if options.check and fresh != text:
            raise StaleError("the page is not what its results say; run benchmarks.tutorial")
    except (OSError, ValueError, StaleError) as error:
        sys.exit(f"{options.page.name}: {error}")
    if not options.check:
        options.page.write_text(fresh)


if __name__ == "__main__":
    main()
