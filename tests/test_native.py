"""The kernels as C++ programs without Torch, under the sanitizers."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ISAS = {"x86_64": ["baseline", "avx2", "avx512"], "aarch64": ["baseline", "neon"]}
ENGINE = [
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/schedule.cpp",
    *(f"csrc/cpu/kernels_{isa}.cpp" for isa in ISAS.get(platform.machine(), ["baseline"])),
]
# New memory is NaN, and not by chance zero.
ENVIRONMENT = {"ASAN_OPTIONS": f"max_malloc_fill_size={2**30}:malloc_fill_byte=255"}
FLAGS = ["-std=c++20", "-O1", "-g", "-w", "-ffp-contract=off", "-pthread"]


class Build:
    """The objects of the engine, compiled once for all programs."""

    def __init__(self, folder: Path, sanitizers: str) -> None:
        self.folder, self.sanitizers = folder, sanitizers
        self.objects = [self.compile(source, "-c", suffix=".o") for source in ENGINE]

    def compile(self, source: str, *others: str | Path, suffix: str = "") -> Path:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        assert compiler, "a C++20 compiler is part of the set-up"
        result = self.folder / (Path(source).stem + suffix)
        sanitize = [f"-fsanitize={self.sanitizers}", "-fno-sanitize-recover=all"]
        include = [f"-I{ROOT / 'csrc'}", "-include", ROOT / "tests/native/pause.h"]
        command = [compiler, *FLAGS, *sanitize, *include, ROOT / source, *others, "-o", result]
        subprocess.run(command, check=True)
        return result


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("engine"), request.param)


@pytest.mark.parametrize("program", ["kernels_test", "layer_test"])
def test_is_clean(program: str, build: Build) -> None:
    path = build.compile(f"tests/native/{program}.cpp", *build.objects)
    env = {**os.environ, **ENVIRONMENT}
    result = subprocess.run([path], capture_output=True, text=True, timeout=600, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok" in result.stdout
    assert "FAILED" not in result.stdout
