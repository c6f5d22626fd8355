"""Compiles csrc/cuda/**/*.cu with nvcc: for setup.py, for the report of what each kernel takes.

`torch.utils.cpp_extension` refuses .cu sources where torch is a CPU-only build, although compiling
them needs neither a GPU nor a CUDA build of torch; so nvcc is called here. `python build_cuda.py`
compiles for the default architectures and writes the report, csrc/cuda/resources.txt.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cuda"
REPORT = ROOT / "csrc" / "cuda" / "resources.txt"

#: sm_80 runs on every 8.x too. The PTX is for what comes after: that of sm_90a would run on sm_90
#: alone, and that of sm_80 has no clusters.
ARCHS = ("sm_80", "sm_90a", "compute_90")

FLAGS = (
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    # A product and a sum are fused where the source says so and nowhere else.
    "--fmad=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-g0",
    "-Xptxas=-v",
    "-diag-suppress=20012",  # defaulted functions that are __host__ __device__ already
)


def find_nvcc() -> Path | None:
    """nvcc of $CUDA_HOME, of the PATH, or of /usr/local/cuda, in this order; None if there is none.

    Raises:
        RuntimeError: $CUDA_HOME is set, and there is no nvcc in it.
    """
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        if not nvcc.exists():
            raise RuntimeError(f"CUDA_HOME: expected a folder with bin/nvcc, got {home}")
        return nvcc
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def archs() -> tuple[str, ...]:
    """Those of $FUSED_BPTT_CUDA_ARCHS, parted by blanks; without it :data:`ARCHS`.

    `native` stands for the GPUs of this machine, `none` for none.

    Raises:
        RuntimeError: a word is neither `sm_N` nor `compute_N`, which stands for PTX.
    """
    asked = os.environ.get("FUSED_BPTT_CUDA_ARCHS")
    if asked is None:
        return ARCHS
    if asked.strip() == "none":
        return ()
    if asked.strip() == "native":
        return _of_the_gpus_here()
    wrong = [word for word in asked.split() if not re.fullmatch(r"(sm|compute)_\d+[af]?", word)]
    if wrong or not asked.strip():
        raise RuntimeError(
            "FUSED_BPTT_CUDA_ARCHS: expected `none`, `native`, or words like sm_90a (machine code) "
            f"and compute_90 (PTX), got {asked!r}"
        )
    return tuple(asked.split())


def _of_the_gpus_here() -> tuple[str, ...]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    found = {word.replace(".", "") for word in re.findall(r"^\d+\.\d$", done.stdout, re.MULTILINE)}
    return tuple("sm_90a" if number == "90" else f"sm_{number}" for number in sorted(found))


def sources() -> list[Path]:
    """Every .cu file."""
    return sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))


def library_folder(nvcc: Path) -> Path:
    """Where libcudart_static.a of this nvcc is.

    Raises:
        RuntimeError: nowhere beside it.
    """
    dry = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    )
    # nvcc may be a script that calls the real one elsewhere; this is where that one is.
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    root = Path(top.group(1)) if top else nvcc.resolve().parent.parent
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (root / folder / "libcudart_static.a").exists():
            return (root / folder).resolve()
    raise RuntimeError(f"nvcc: expected libcudart_static.a in {root}/lib64, got none")


@dataclass(frozen=True)
class Compiled:
    """An object file, and what ptxas said about its kernels."""

    object: Path
    log: str


def compile_all(nvcc: Path, for_archs: Sequence[str], jobs: int | None = None) -> list[Compiled]:
    """Compiles what has changed since the last time, `jobs` files at once (default: every CPU).

    Raises:
        RuntimeError: nvcc refused a file; its words.
    """
    jobs = jobs or int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    with ThreadPoolExecutor(jobs) as pool:
        # The big files first, so that none of them is left for the end.
        files = sorted(sources(), key=lambda path: -path.stat().st_size)
        return list(pool.map(lambda path: _compile(nvcc, version.stdout, for_archs, path), files))


def _compile(nvcc: Path, version: str, for_archs: Sequence[str], source: Path) -> Compiled:
    if source.stem.endswith("_cluster"):  # what sm_80 does not have; a file needs one at least
        for_archs = [arch for arch in for_archs if _capability(arch) >= 90] or ["sm_90a"]
    folder = BUILD / "-".join(for_archs)
    base = folder / source.relative_to(ROOT / "csrc" / "cuda").with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    object_, log, depends, stamp = (base.with_suffix(s) for s in (".o", ".log", ".d", ".stamp"))
    # No -I: the files name one another relatively.
    command = [str(nvcc), "-c", *FLAGS, *(_gencode(arch) for arch in for_archs)]
    command += ["-MMD", "-MF", str(depends), "-o", str(object_), str(source)]
    what = f"{version}\n{shlex.join(command)}"
    if object_.exists() and stamp.exists() and stamp.read_text() == _digest(what, depends):
        return Compiled(object_, log.read_text())
    stamp.unlink(missing_ok=True)
    log.write_text("")
    begin = log.stat().st_mtime_ns  # by the clock of files, which lags behind time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    log.write_text(done.stderr)
    if all(path.stat().st_mtime_ns < begin for path in _read(depends) if path.exists()):
        stamp.write_text(_digest(what, depends))  # else a file was edited meanwhile
    return Compiled(object_, done.stderr)


def _capability(arch: str) -> int:
    return int("".join(filter(str.isdigit, arch)))


def _gencode(arch: str) -> str:
    virtual = arch.replace("sm_", "compute_")
    return f"-gencode=arch={virtual},code={arch}"


def _digest(command: str, depends: Path) -> str:
    """Of the command and of every file that it read, as nvcc listed them."""
    digest = hashlib.sha256(command.encode())
    for path in _read(depends):
        digest.update(path.read_bytes() if path.exists() else b"gone")
    return digest.hexdigest()


def _read(depends: Path) -> list[Path]:
    words = depends.read_text().replace("\\\n", " ").partition(":")[2].split()
    return [Path(word) for word in sorted(set(words))]


@dataclass(frozen=True, order=True)
class Resources:
    """What one kernel takes of one architecture, as ptxas reports it."""

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    HEADER = "arch     registers  shared  stack  spill stores  spill loads  kernel"

    def line(self) -> str:
        """One line of the report."""
        return (
            f"{self.arch:<8} {self.registers:>9} {self.shared:>7} {self.stack:>6} "
            f"{self.spill_stores:>13} {self.spill_loads:>12}  {self.kernel}"
        )


# In the order of csrc/cuda/kernel_args.h and csrc/problem.h.
_ENUMERATORS = {
    "Math": ("fp64", "fp32", "tf32x3", "tf32", "bf16", "fp16"),
    "Primitive": ("recurrence", "linear"),
}

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def resources(logs: Sequence[str]) -> list[Resources]:
    """One for each kernel and architecture in what ptxas said, with the kernels' names in words."""
    found = [entry for log in logs for entry in _ENTRY.finditer(log)]
    mangled = "\n".join(entry["kernel"] for entry in found)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True)
    rows = []
    for entry, name in zip(found, names.stdout.splitlines(), strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        rows.append(
            Resources(
                kernel=_in_words(name),
                arch=entry["arch"],
                registers=int(entry["registers"]),
                shared=int(shared[1]) if shared else 0,
                stack=int(entry["stack"]),
                spill_stores=int(entry["stores"]),
                spill_loads=int(entry["loads"]),
            )
        )
    return sorted(rows)


def _in_words(name: str) -> str:
    """As c++filt has it, with the names of enumerators and without what all have in common."""
    name = re.sub(r"fused_bptt::|^void |\(anonymous namespace\)::", "", name)
    name = name.removesuffix("(KernelArgs)")
    for enumeration, names in _ENUMERATORS.items():
        name = re.sub(rf"\({enumeration}\)(\d)", lambda found, n=names: n[int(found[1])], name)
    return name


def release(nvcc: Path) -> str:
    """Of nvcc: a report of another one may differ."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"V(\d+\.\d+\.\d+)", version.stdout)
    return found[1] if found else "unknown"


def report(nvcc: Path, compiled: Sequence[Compiled]) -> str:
    """The text of csrc/cuda/resources.txt."""
    rows = resources([done.log for done in compiled])
    lines = [f"nvcc {release(nvcc)}", Resources.HEADER, *(row.line() for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the report."""
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit(
            "build_cuda.py: expected nvcc in $CUDA_HOME, the PATH or /usr/local/cuda; got none"
        )
    REPORT.write_text(report(nvcc, compile_all(nvcc, ARCHS)))


if __name__ == "__main__":
    main()
