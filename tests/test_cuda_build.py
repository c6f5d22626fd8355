"""How CUDA kernels are compiled, what each takes, and the wheel that holds all of them.

Compiling every kernel takes minutes: `make cuda` does, and sets FUSED_BPTT_REQUIRE_NVCC=1.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_library_symbols as symbols
from elftools.elf.elffile import ELFFile
from helpers import run_python

ROOT = Path(__file__).parent.parent
MOST_BYTES_OF_THE_WHEEL = 20 * 2**20


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "build_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_cuda"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


build_cuda = load()

# ----------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, build_cuda.ARCHS),
        ("none", ()),
        ("sm_90a", ("sm_90a",)),
        (" sm_80  compute_90 ", ("sm_80", "compute_90")),
    ],
)
def test_archs(asked: str | None, expected: tuple[str, ...], monkeypatch: Any) -> None:
    if asked is None:
        monkeypatch.delenv("FUSED_BPTT_CUDA_ARCHS", raising=False)
    else:
        monkeypatch.setenv("FUSED_BPTT_CUDA_ARCHS", asked)
    assert build_cuda.archs() == expected


@pytest.mark.parametrize("asked", ["", "90", "sm_90x", "sm_80,sm_90a"])
def test_archs_that_are_none(asked: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("FUSED_BPTT_CUDA_ARCHS", asked)
    with pytest.raises(RuntimeError, match=r"FUSED_BPTT_CUDA_ARCHS: expected .*got"):
        build_cuda.archs()


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_archs_of_the_gpus_here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FUSED_BPTT_CUDA_ARCHS", "native")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_cuda.archs() == ()
    program(tmp_path / "nvidia-smi", "printf '9.0\\n8.6\\n9.0\\n'")
    assert build_cuda.archs() == ("sm_86", "sm_90a")
    program(tmp_path / "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert build_cuda.archs() == ()


def test_where_nvcc_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    on_path = program(tmp_path / "path" / "nvcc", "")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert build_cuda.find_nvcc() == on_path
    of_home = program(tmp_path / "home" / "bin" / "nvcc", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build_cuda.find_nvcc() == of_home
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "path"))
    with pytest.raises(RuntimeError, match=r"CUDA_HOME: expected a folder with bin/nvcc, got"):
        build_cuda.find_nvcc()


# -------------------------------------------------------------------------- what changed, and only

FAKE_NVCC = """
[ "$1" = --version ] && { echo "release 13.0, V13.0.88"; exit 0; }
while [ $# -gt 1 ]; do case "$1" in -o) o=$2;; -MF) d=$2;; esac; shift; done
echo compiled >> "$(dirname "$0")/calls"
printf '%s: %s \\\\\\n  %s\\n' "$o" "$1" "$(dirname "$1")/../kernel.cuh" > "$d"
echo object > "$o"
[ -e "$(dirname "$0")/edited" ] && touch "$(dirname "$1")/../kernel.cuh"
grep -q broken "$1" && { echo "error: broken" >&2; exit 1; }
echo "ptxas info    : something" >&2
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: Any) -> Path:
    """A tree of two CUDA files, and an nvcc that counts its calls."""
    folder = tmp_path / "csrc" / "cuda"
    (folder / "instantiations").mkdir(parents=True)
    (folder / "kernel.cuh").write_text("kernel")
    (folder / "instantiations" / "a_cta.cu").write_text("a")
    (folder / "instantiations" / "b_cluster.cu").write_text("b")
    program(tmp_path / "nvcc", FAKE_NVCC)
    monkeypatch.setattr(build_cuda, "ROOT", tmp_path)
    monkeypatch.setattr(build_cuda, "BUILD", tmp_path / "build")
    next_tick()
    return tmp_path


def next_tick() -> None:
    """A file written in the very tick in which nvcc begins would count as edited meanwhile."""
    time.sleep(0.05)


def calls(fake: Path) -> int:
    """Since the last time it was asked."""
    log = fake / "calls"
    count = len(log.read_text().splitlines()) if log.exists() else 0
    log.write_text("")
    return count


def test_only_what_changed_is_compiled(fake: Path) -> None:
    nvcc, kernels = fake / "nvcc", fake / "csrc" / "cuda"

    def compile_all(*archs: str) -> int:
        compiled = build_cuda.compile_all(nvcc, archs)
        assert all(done.object.exists() for done in compiled)
        assert [done.log for done in compiled] == ["ptxas info    : something\n"] * 2
        return calls(fake)

    assert compile_all("sm_80", "sm_90a") == 2
    assert compile_all("sm_80", "sm_90a") == 0
    (kernels / "instantiations" / "a_cta.cu").write_text("another a")
    next_tick()
    assert compile_all("sm_80", "sm_90a") == 1
    (kernels / "kernel.cuh").write_text("another kernel")
    next_tick()
    assert compile_all("sm_80", "sm_90a") == 2
    # The cluster's file is compiled for what has clusters: its object is there already.
    assert compile_all("sm_90a") == 1
    assert compile_all("sm_80") == 1


def test_a_file_that_is_edited_while_nvcc_runs_is_compiled_again(fake: Path) -> None:
    def compile_all() -> int:
        build_cuda.compile_all(fake / "nvcc", ["sm_90a"])
        return calls(fake)

    (fake / "edited").touch()
    assert [compile_all(), compile_all()] == [2, 2]
    (fake / "edited").unlink()
    next_tick()
    assert [compile_all(), compile_all()] == [2, 0]


def test_a_refused_file_is_compiled_again(fake: Path) -> None:
    source = fake / "csrc" / "cuda" / "instantiations" / "a_cta.cu"
    source.write_text("broken")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="error: broken"):
            build_cuda.compile_all(fake / "nvcc", ["sm_90a"])
    source.write_text("a")
    assert len(build_cuda.compile_all(fake / "nvcc", ["sm_90a"])) == 2


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN10fused_bptt4walkILi2EEEvi' for 'sm_90a'
ptxas info    : Function properties for _ZN10fused_bptt4walkILi2EEEvi
    96 bytes stack frame, 192 bytes spill stores, 268 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 96 bytes cumulative stack size, 16 bytes smem
ptxas info    : Compile time = 12.0 ms
ptxas info    : Compiling entry function 'plain' for 'sm_80'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_what_ptxas_says_is_read() -> None:
    plain, walk = build_cuda.resources([PTXAS])
    assert plain == build_cuda.Resources("plain", "sm_80", 8, 0, 0, 0, 0)
    assert (
        build_cuda._in_words(
            "void fused_bptt::walk<fused_bptt::Product<(fused_bptt::Math)4, 2, 32>, "
            "fused_bptt::ExchangeCta, (fused_bptt::Primitive)1>(fused_bptt::KernelArgs)"
        )
        == "walk<Product<bf16, 2, 32>, ExchangeCta, linear>"
    )
    assert walk == build_cuda.Resources("walk<2>(int)", "sm_90a", 255, 16, 96, 192, 268)


# --------------------------------------------------------------------------- everything, compiled

REQUIRED = os.environ.get("FUSED_BPTT_REQUIRE_NVCC") == "1"
compiled = pytest.mark.skipif(
    not REQUIRED, reason="compiling every kernel takes minutes: make cuda"
)


def committed() -> dict[tuple[str, str], tuple[int, int, int]]:
    """Stack, spill stores and spill loads of each architecture and kernel."""
    found = {}
    for line in build_cuda.REPORT.read_text().splitlines()[2:]:
        arch, _, _, stack, stores, loads, kernel = line.split(maxsplit=6)
        found[arch, kernel] = (int(stack), int(stores), int(loads))
    return found


@compiled
def test_no_unlisted_spill_or_stack_frame() -> None:
    """csrc/cuda/resources.txt lists all kernels; `python build_cuda.py` writes it anew."""
    nvcc = build_cuda.find_nvcc()
    assert nvcc, "FUSED_BPTT_REQUIRE_NVCC=1: expected nvcc, got none"
    done = build_cuda.compile_all(nvcc, build_cuda.ARCHS)
    rows = build_cuda.resources([one.log for one in done])
    listed = committed()
    assert {(row.arch, row.kernel) for row in rows} == listed.keys()
    worse = [
        row.line()
        for row in rows
        if any(
            got > expected
            for got, expected in zip(
                (row.stack, row.spill_stores, row.spill_loads),
                listed[row.arch, row.kernel],
                strict=True,
            )
        )
    ]
    assert not worse, "\n".join([build_cuda.Resources.HEADER, *worse])
    if build_cuda.REPORT.read_text().startswith(f"nvcc {build_cuda.release(nvcc)}\n"):
        assert build_cuda.report(nvcc, done) == build_cuda.REPORT.read_text(), "not written anew"


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = list((ROOT / "dist").glob("fused_bptt-*-cp310-abi3-*.whl"))
    assert found, "dist/: expected a wheel for every Python from 3.10 (`make wheel`), got none"
    return max(found, key=lambda path: path.stat().st_mtime)


@compiled
def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_BYTES_OF_THE_WHEEL


@compiled
def test_the_wheel_loads_without_cuda(wheel: Path, tmp_path: Path) -> None:
    """Its library asks for nothing of CUDA or of PyTorch's C++, and says what it contains."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    with (tmp_path / "fused_bptt" / "_C.abi3.so").open("rb") as file:
        elf = ELFFile(file)
        table = list(elf.get_section_by_name(".dynsym").iter_symbols())
        needed = [t.needed for t in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
    undefined = {s.name for s in table if s["st_shndx"] == "SHN_UNDEF" and s.name}
    assert "aoti_torch_get_current_cuda_stream" in undefined, "the CUDA half is in it"
    assert not {name for name in undefined if symbols.TORCH_CPP.match(name)}
    assert not {
        name for name in undefined if name.startswith(("cuda", "cu", "__cuda", "Py", "_Py"))
    }
    # Nor does it offer a CUDA runtime of its own to others.
    defined = {s.name for s in table if s["st_shndx"] != "SHN_UNDEF"}
    assert not {name for name in defined if name.startswith(("cuda", "__cuda"))}
    assert not [name for name in needed if "cuda" in name]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fused_bptt; "
        "from fused_bptt import _ops; print(fused_bptt.__file__, *_ops.cuda_archs())"
    )
    done = run_python(code, env={"LD_BIND_NOW": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(tmp_path / "fused_bptt" / "__init__.py"),
        *build_cuda.ARCHS,
    ]
