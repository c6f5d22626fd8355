"""`python -m benchmarks.gpu --out FOLDER [--parts ...]`: offline, with the Python that runs it.

Each part writes FOLDER/<part>.json, what it printed to FOLDER/<part>.log, and a table. The exit
code is 1 if a part failed, 2 if there was no GPU for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu import machine, parts

# In this order; the limit, in minutes, is of a run on one H200, its machine included.
PARTS = {
    "install": (parts.install, 20, "the wheel of dist/, or the sources, beside what is installed"),
    "tests": (parts.tests, 20, "tests/test_cuda.py; a missing GPU is a failure"),
    "sanitizer": (parts.sanitizer, 20, "memcheck, racecheck, synccheck, initcheck; small cases"),
    "micro": (parts.micro, 3, "clusters, round trips, bandwidths, issue intervals"),
    "timing": (parts.timing, 20, "the grid against nn.RNN and other rivals"),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    listed = "\n".join(f"  {n:<10} {limit:>2} min  {what}" for n, (_, limit, what) in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=f"parts, each with the time at which it is stopped:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder (out/gpu)")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="some of them, comma-separated (all)"
    )
    parser.add_argument(
        "--minutes", type=float, help="at which each part is stopped, instead of its own limit"
    )
    parser.add_argument(
        "--cells", default="", help="for timing: BxHxT of these alone, e.g. 16x512x128"
    )
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    here = machine.look()
    (out / "machine.json").write_text(json.dumps(here, indent=2) + "\n")
    print(machine.words(here))
    codes = []
    for name in options.parts:
        run, limit, what = PARTS[name]
        minutes = options.minutes or limit
        print(f"\n{name}: {what} (at most {minutes:g} min)", flush=True)
        begin = time.monotonic()
        found = run(parts.Context(out, here, 60 * minutes, options.cells))
        found = {"part": name, "seconds": round(time.monotonic() - begin, 1), **found}
        (out / f"{name}.json").write_text(json.dumps({**found, "machine": here}, indent=2) + "\n")
        print(f"{name}: {found['verdict']} ({found['seconds']:g} s)", flush=True)
        codes.append({"ok": 0, "no GPU": 2}.get(found["status"], 1))
    print(f"\nresults: {out}")
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
