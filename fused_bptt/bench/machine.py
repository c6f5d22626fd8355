"""What a measurement was made on: machine, software, commit. Never a host or a user."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fused_bptt.bench import native

_HERE = Path(__file__).parent
_RELEVANT_FLAGS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "asimd", "sve", "bf16",
)  # fmt: skip
# The results that are being written do not count as a change of what is measured.
_STATUS = ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results")
_PACKAGES = (
    "fused-bptt", "torch", "numpy", "jax", "jaxlib", "keras", "tensorflow-cpu", "tensorflow",
    "paddlepaddle", "onednn-cpu-gomp", "flashrnn",
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """CPU, caches, memory and operating system."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "family_model_stepping": [info.get(k) for k in ("cpu family", "model", "stepping")],
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "flags": [flag for flag in _RELEVANT_FLAGS if flag in flags],
        "hypervisor": "hypervisor" in flags,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "os": f"{_distribution()}, {platform.system()} {platform.release()}",
    }


def describe_software() -> dict[str, Any]:
    """Versions of everything that takes part, and the commit that was measured."""
    return {
        "python": platform.python_version(),
        "compiler": native.compiler_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "modified": bool(_commit() and _git(*_STATUS)),
    }


def slug(machine: dict[str, Any]) -> str:
    """A file name for the machine."""
    words = machine["cpu"].lower().replace("(r)", "").replace("(tm)", "")
    kept = "".join(c if c.isalnum() else "-" for c in words)
    return "-".join(part for part in kept.split("-") if part) + f"-{machine['cores']}-cores"


def _cpuinfo() -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            break  # the next processor
        pairs[key.strip()] = value.strip()
    return pairs


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if kind != "Instruction" and level and size:
            found[f"L{level}"] = size
    return found


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform(terse=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the clone that this file is part of; None where it was installed from a wheel.

    An environment inside some other repository is no part of that repository.
    """
    if not _git("ls-files", "--error-unmatch", str(Path(__file__))):
        return None
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_HERE, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
