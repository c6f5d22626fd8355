"""The CUDA kernels without a GPU: the real loops on the host, one thread for each CUDA thread.

tests/emulation/emulation.h says what the emulation does, and what it cannot show.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SANITIZER = "-fsanitize=thread"
PROGRAMS = ("cta", "cluster", "grid", "launches", "leaky")
EXCHANGES_WITH_A_LEAK = ("leaky_cta", "leaky_cluster", "leaky_grid")


def build(program: str, folder: Path, *flags: str, sources: Path = ROOT / "csrc") -> Path:
    """Compiles tests/emulation/<program>.cpp with the kernels of `sources`."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "a C++20 compiler is part of the set-up"
    binary = folder / program
    emulation = ROOT / "tests" / "emulation"
    subprocess.run(
        [
            compiler,
            "-std=c++20",
            "-O1",
            "-g",
            "-w",
            "-ffp-contract=off",
            "-pthread",
            "-DFUSED_BPTT_EMULATION",
            *flags,
            f"-I{sources}",
            f"-I{emulation}",
            str(emulation / f"{program}.cpp"),
            "-o",
            str(binary),
        ],
        check=True,
    )
    return binary


def run(binary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of cases, which ends itself when it hangs."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    return subprocess.run(
        [binary, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )


def assert_clean(result: subprocess.CompletedProcess[str], least_cases: int) -> None:
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    lines = result.stdout.splitlines()
    assert lines[-1] == "0 failures"
    assert sum(line.startswith("ok ") for line in lines) >= least_cases


@pytest.fixture(scope="module", params=PROGRAMS + EXCHANGES_WITH_A_LEAK)
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("emulation"))


def test_kernels_agree_with_the_equations(cases: Path) -> None:
    assert_clean(run(cases), least_cases=50)


@pytest.mark.parametrize("program", ["small_cluster", "small_leaky"])
def test_clusters_agree_when_pushes_arrive_late(program: str, tmp_path: Path) -> None:
    assert_clean(run(build(program, tmp_path), "late"), least_cases=5)


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_do_not_race(program: str, tmp_path: Path) -> None:
    assert_clean(run(build(f"small_{program}", tmp_path, SANITIZER)), least_cases=5)
