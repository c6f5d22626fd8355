"""The kernels as a C++ program without Torch, under the sanitizers."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ISAS = {"x86_64": ["baseline", "avx2", "avx512"], "aarch64": ["baseline", "neon"]}
SOURCES = [
    "tests/native/kernels_test.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/schedule.cpp",
    *(f"csrc/cpu/kernels_{isa}.cpp" for isa in ISAS.get(platform.machine(), ["baseline"])),
]


def build_and_run(folder: Path, sanitizers: str) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "a C++20 compiler is part of the set-up"
    program = folder / "kernels_test"
    subprocess.run(
        [
            compiler,
            "-std=c++20",
            "-O1",
            "-g",
            "-w",
            "-ffp-contract=off",
            f"-fsanitize={sanitizers}",
            "-fno-sanitize-recover=all",
            f"-I{ROOT / 'csrc'}",
            *(str(ROOT / source) for source in SOURCES),
            "-pthread",
            "-o",
            str(program),
        ],
        check=True,
    )
    return subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_kernels_are_clean(tmp_path: Path, sanitizers: str) -> None:
    result = build_and_run(tmp_path, sanitizers)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok" in result.stdout
    assert "FAILED" not in result.stdout
