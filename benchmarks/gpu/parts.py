"""The parts of `make gpu`: each says what it found as JSON, with a status and a sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
Found = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """Where results go, what the machine is, how many seconds there are, which cells are meant."""

    out: Path
    machine: dict[str, Any]
    seconds: float
    cells: str

    @property
    def site(self) -> Path:
        """Where the part `install` puts the package."""
        return self.out / "site"

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """For a process that finds the installed package, these benchmarks, and no sources."""
        benchmarks = self.out / "benchmarks"
        if not benchmarks.exists():
            benchmarks.symlink_to(ROOT / "benchmarks")
        paths = [str(self.site), str(self.out), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(changes or {})}


def failed(verdict: str, **more: Any) -> Found:
    """The part could not do what it is for."""
    return {"status": "failed", "verdict": verdict, **more}


def _without(context: Context, *, installed: bool = True) -> Found | None:
    """What keeps a part from running."""
    if context.machine["no_gpu"]:
        return {"status": "no GPU", "verdict": context.machine["no_gpu"]}
    if installed and not (context.site / "fused_bptt").exists():
        return failed("fused_bptt is not installed there: the part `install` comes first.")
    return None


def _run(
    context: Context,
    name: str,
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> int | None:
    """The exit code; None if the time was over. What it prints goes to <name>.log."""
    log = context.out / f"{name}.log"
    with log.open("w") as file:
        print(" ".join(map(str, command)), file=file, flush=True)
        try:
            done = subprocess.run(
                list(map(str, command)),
                cwd=context.out,
                env=context.environment(environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds or context.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
    return done.returncode


def _tail(context: Context, name: str, lines: int = 15) -> list[str]:
    return (context.out / f"{name}.log").read_text().splitlines()[-lines:]


# ----------------------------------------------------------------------------------------- parts


def install(context: Context) -> Found:
    """Installed into OUT/site, so that nothing of the machine changes."""
    wheels = sorted((ROOT / "dist").glob("fused_bptt-*.whl"), key=lambda path: path.stat().st_mtime)
    shutil.rmtree(context.site, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    pip += ["--target", str(context.site)]
    if wheels:
        source = str(wheels[-1].relative_to(ROOT))
        code = _run(context, "install", [*pip, wheels[-1]])
    else:
        source = "the sources"
        architectures = os.environ.get("FUSED_BPTT_CUDA_ARCHS", "native")
        environment = {"FUSED_BPTT_CUDA_ARCHS": architectures}
        code = _run(context, "install", [*pip, "--no-build-isolation", ROOT], environment)
    if code != 0:
        why = "took too long" if code is None else f"failed with exit code {code}"
        return failed(f"Installing {source} {why}.", log=_tail(context, "install"))
    code = _run(context, "info", [sys.executable, "-m", "fused_bptt.cli", "info"])
    said = _tail(context, "info", 40)
    if code != 0:
        return failed(f"Installed {source}, which does not load.", log=said)
    print("\n".join(said[1:]))
    if context.machine["no_gpu"]:
        verdict = f"Installed {source}, which loads. {context.machine['no_gpu']}"
        return {"status": "no GPU", "verdict": verdict, "info": said[1:]}
    return {"status": "ok", "verdict": f"Installed {source}.", "info": said[1:]}


def tests(context: Context) -> Found:
    """With a missing GPU counted as a failure."""
    if found := _without(context):
        return found
    missing = [name for name in ("pytest", "hypothesis") if not context.machine["packages"][name]]
    if missing:
        return failed(f"The tests need {' and '.join(missing)}, not installed here.")
    report = context.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", ROOT / "tests" / "test_cuda.py", "-q", "-rsf"]
    command += ["-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", f"--junitxml={report}"]
    code = _run(context, "tests", command, {"FUSED_BPTT_REQUIRE_CUDA": "1"})
    print("\n".join(_tail(context, "tests")))
    last = _tail(context, "tests", 1)
    if code is None:
        return failed("The tests took too long.", log=_tail(context, "tests"))
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last[0])
    }
    verdict = ", ".join(f"{n} {word}" for word, n in counts.items()) + "."
    return {"status": "ok" if code == 0 else "failed", "verdict": verdict, "counts": counts}


def sanitizer(context: Context) -> Found:
    """Small cases of every plan, under each tool of compute-sanitizer."""
    if found := _without(context):
        return found
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
    )
    if tool is None:
        return failed("compute-sanitizer is not installed here.")
    begin, results = time.monotonic(), {}
    for name in SANITIZERS:
        left = context.seconds - (time.monotonic() - begin)
        command = [tool, "--tool", name, "--error-exitcode", "99"]
        command += [
            "--kernel-regex",
            "kns=fused_bptt",
            sys.executable,
            "-m",
            "benchmarks.gpu.small",
        ]
        # Without the cache every tensor is an allocation of its own, with ends that memcheck sees.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        code = _run(context, f"sanitizer-{name}", command, environment, max(left, 1))
        words = {0: "clean", 99: "found errors", None: "not finished in time"}
        results[name] = words.get(code, f"did not run (exit code {code})")
        print(f"  {name:<10} {results[name]}", flush=True)
    clean = all(result == "clean" for result in results.values())
    verdict = "; ".join(f"{name}: {result}" for name, result in results.items()) + "."
    return {"status": "ok" if clean else "failed", "verdict": verdict, "tools": results}


def micro(context: Context) -> Found:
    """What the limits of docs/kernels.md are made of, by micro.cu."""
    if found := _without(context, installed=False):
        return found
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return failed("nvcc is not installed here.")
    capability = context.machine["gpu"]["capability"].replace(".", "")
    program = context.out / "micro"
    command = compile_micro(nvcc, "sm_90a" if capability == "90" else f"sm_{capability}", program)
    if _run(context, "micro-build", command) != 0:
        return failed("micro.cu was not compiled.", log=_tail(context, "micro-build"))
    code = _run(context, "micro-run", [program])
    lines = [line for line in _tail(context, "micro-run", 1000) if line.startswith("{")]
    results = [json.loads(line) for line in lines]
    for result in results:
        print("  " + "  ".join(f"{key} {value}" for key, value in result.items()))
    if code != 0:
        return failed(f"micro ended with exit code {code}.", results=results)
    return {"status": "ok", "verdict": f"{len(results)} figures.", "results": results}


def compile_micro(nvcc: str | Path, arch: str, program: Path) -> list[str]:
    """The command."""
    virtual = arch.replace("sm_", "compute_")
    source = Path(__file__).with_name("micro.cu")
    flags = ["-std=c++20", "-O3", f"-gencode=arch={virtual},code={arch}"]
    return [str(nvcc), *flags, "-o", str(program), str(source)]


def timing(context: Context) -> Found:
    """The grid, in a process of its own."""
    if found := _without(context):
        return found
    result = context.out / "cells.json"
    command = [sys.executable, "-m", "benchmarks.gpu.timing", "--result", result]
    command += ["--seconds", f"{0.9 * context.seconds:.0f}", "--cells", context.cells]
    code = _run(context, "timing", command)
    cells = json.loads(result.read_text()) if result.exists() else {}
    table = _run(context, "table", [sys.executable, "-m", "benchmarks.gpu.table", result])
    if table == 0:
        print("\n".join(_tail(context, "table", 1000)[1:]))
    if code != 0:
        why = "took too long" if code is None else f"ended with exit code {code}"
        return failed(
            f"The timing {why}; what it had is kept.", log=_tail(context, "timing"), **cells
        )
    return {"status": "ok", "verdict": f"{len(cells['cells'])} cells.", **cells}
