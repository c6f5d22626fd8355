"""Compiles the small C++ libraries of this folder on demand, into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def cache() -> Path:
    """$XDG_CACHE_HOME/fused-bptt, by default ~/.cache/fused-bptt."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fused-bptt"


class BuildError(RuntimeError):
    """The compiler is missing or refused the source; the text says why."""


def compiler() -> str:
    """The C++ compiler: $CXX, or c++."""
    return os.environ.get("CXX", "c++")


def compiler_version() -> str | None:
    """The first line that the compiler says of itself, None where there is none."""
    try:
        said = subprocess.run(
            [compiler(), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.splitlines()[0]


def load(path: Path, flags: Sequence[str] = (), libraries: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile a source, unless it was compiled so before, and load it.

    Raises:
        BuildError: there is no compiler, or it refused the source.
    """
    command = [compiler(), "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp"]
    command += [*flags, str(path)]
    identity = repr((command, libraries, compiler_version(), _cpu_flags())).encode()
    key = hashlib.sha256(path.read_bytes() + identity).hexdigest()[:16]
    library = cache() / f"{path.stem}-{key}.so"
    if not library.exists():
        cache().mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        try:
            done = subprocess.run(
                [*command, "-o", str(partial), *libraries], capture_output=True, text=True
            )
        except OSError as error:
            raise BuildError(f"no C++ compiler: {error}") from error
        if done.returncode != 0:
            raise BuildError(f"{path.name} does not compile:\n{done.stderr}")
        partial.replace(library)
    return ctypes.CDLL(str(library))


def _cpu_flags() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
