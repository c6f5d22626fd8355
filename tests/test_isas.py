"""Every instruction set that is compiled in and that this machine has computes the same."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import assert_runs, environment, run_python

from fused_bptt import _ops

# What each needs of the machine, by the names of /proc/cpuinfo.
NEEDS = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}


def cpu_flags() -> set[str]:
    text = Path("/proc/cpuinfo").read_text()
    (line, *_) = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return set(line.split(":")[1].split())


def test_all_that_this_machine_has_are_offered() -> None:
    if platform.machine() in ("x86_64", "AMD64"):
        flags = cpu_flags()
        assert _ops.cpu_isas() == [isa for isa, needs in NEEDS.items() if needs <= flags]
    else:
        assert "baseline" in _ops.cpu_isas()


def test_the_one_in_use_is_one_of_them() -> None:
    assert _ops.cpu_isa() in _ops.cpu_isas()


def test_the_widest_is_used_unless_told_otherwise() -> None:
    code = "from fused_bptt import _ops; print(_ops.cpu_isa())"
    assert assert_runs(code, env={"FUSED_BPTT_CPU": ""}).strip() == _ops.cpu_isas()[-1]


@pytest.mark.parametrize("isa", _ops.cpu_isas())
def test_forced(isa: str) -> None:
    """The tests marked `isa`, in a process of their own."""
    code = "from fused_bptt import _ops; print(_ops.cpu_isa())"
    assert assert_runs(code, env={"FUSED_BPTT_CPU": isa}).strip() == isa
    here = Path(__file__).parent
    # Threads that spin while they wait are most of the time where the machine is busy.
    passive = {"FUSED_BPTT_CPU": isa, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-m", "isa", "-p", "no:cacheprovider", here],
        env=environment(passive),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2,avx512"])
def test_an_unknown_name_is_a_plain_error(name: str) -> None:
    code = "import torch, fused_bptt; fused_bptt.RNN(2, 3)(torch.zeros(4, 1, 2))"
    done = run_python(code, env={"FUSED_BPTT_CPU": name})
    assert done.returncode == 1, "an exception, not a signal"
    last = done.stderr.strip().splitlines()[-1]
    assert "FUSED_BPTT_CPU" in last
    assert name in last
    assert all(isa in last for isa in _ops.cpu_isas())
