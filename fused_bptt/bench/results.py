"""The file of results: reading, writing, and the arithmetic on what it holds.

The schema is documented in the repository's benchmarks/README.md. Imports no rival.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fused_bptt.bench.cells import Cell

SCHEMA = 1

OURS, BASELINE = "fused_bptt.RNN", "nn.RNN"

# How tables call them.
TITLES = {
    OURS: "fused_bptt.RNN",
    BASELINE: "torch.nn.RNN",
    "onednn": "oneDNN vanilla_rnn",
    "jax": "JAX jit(lax.scan)",
    "keras": "Keras SimpleRNN (on JAX)",
    "paddle": "PaddlePaddle SimpleRNN",
    "tensorflow": "TensorFlow while_loop",
    "torch.compile": "torch.compile of a loop",
    "flashrnn": "FlashRNN",
    "xma": "XMA",
}

# Between two probes, a change by more than this marks a block: the machine's state changed.
UNSTEADY = 0.15

# Others' share of the cores during a block, or the hypervisor's; threads that wait for one another
# then wait for whole time slices, and the times mean nothing.
DISTURBED = 0.05


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of one sample or more."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


def load(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
        ValueError: it is of another schema.
        OSError: it cannot be read.
    """
    results: dict[str, Any] = json.loads(path.read_text())
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{path.name}: expected schema {SCHEMA}, got {results.get('schema')!r}")
    return results


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write the file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".writing")
    partial.write_text(_dump(results))
    partial.replace(path)


def _dump(value: Any, indent: int = 0) -> str:
    """JSON, indented, with lists of numbers on one line."""
    pad = "  " * (indent + 1)
    if isinstance(value, Mapping) and value:
        inside = (f"{pad}{json.dumps(k)}: {_dump(v, indent + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(inside) + "\n" + "  " * indent + "}"
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        inside = (f"{pad}{_dump(v, indent + 1)}" for v in value)
        return "[\n" + ",\n".join(inside) + "\n" + "  " * indent + "]"
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Numbers to five digits, which is more than timing gives."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value


@dataclass(frozen=True)
class Block:
    """One cell at one thread count in one mode."""

    raw: Mapping[str, Any]

    @property
    def cell(self) -> Cell:
        """The shape."""
        return Cell(**self.raw["cell"])

    @property
    def threads(self) -> int:
        """How many threads there were, each with a core."""
        return int(self.raw["threads"])

    @property
    def mode(self) -> str:
        """`forward_backward`, or `forward` with nothing kept for a gradient."""
        return str(self.raw["mode"])

    @property
    def key(self) -> tuple[int, Cell, str]:
        """What tells it from other blocks of a file."""
        return self.threads, self.cell, self.mode

    def samples(self, rival: str) -> list[float] | None:
        """Seconds a call by round; None if it was not timed."""
        found: list[float] | None = self.raw["rivals"].get(rival, {}).get("seconds")
        return found

    def seconds(self, rival: str) -> float | None:
        """The median over rounds."""
        samples = self.samples(rival)
        return None if samples is None else statistics.median(samples)

    def ratio(self, slow: str, fast: str) -> Spread | None:
        """How many times faster `fast` is than `slow`, paired by round."""
        slows, fasts = self.samples(slow), self.samples(fast)
        if slows is None or fasts is None:
            return None
        return Spread.of([s / f for s, f in zip(slows, fasts, strict=True)])

    def roofline_share(self, rival: str) -> float | None:
        """The limit over the time that it took."""
        seconds, limit = self.seconds(rival), self.limit
        return None if seconds is None or limit is None else limit / seconds

    @property
    def limit(self) -> float | None:
        """Seconds that a call takes at least on this machine, None where that is not known."""
        found: float | None = self.raw["roofline_seconds"]
        return found

    @property
    def timed(self) -> list[str]:
        """Who was timed."""
        return [name for name, outcome in self.raw["rivals"].items() if "seconds" in outcome]

    @property
    def unsteady(self) -> bool:
        """Whether the probes before and after differ too much."""
        if self.raw["probes"] is None:
            return False
        before, after = (self.raw["probes"][when]["sgemm_gflops"] for when in ("before", "after"))
        return bool(abs(after - before) > UNSTEADY * max(after, before))

    @property
    def disturbed(self) -> bool:
        """Whether the cores were not the block's alone."""
        elsewhere = self.raw["elsewhere"]
        return bool(elsewhere is not None and elsewhere > DISTURBED)


def blocks(results: Mapping[str, Any]) -> Iterator[Block]:
    """All that was measured."""
    return (Block(raw) for raw in results["blocks"])
