"""The scripts of examples/ run, and show what their docstrings say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import environment

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, processes: int = 0) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes else []), EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment({"OMP_NUM_THREADS": "1"}) if processes else None,  # or torchrun warns
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} in:\n{text}"
    return float(found[1])


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f'run("{script.name}"' in source


def test_drop_in():
    out = run("drop_in.py")
    first, last = number(r"\n +0  ([\d.]+)", out), number(r"last loss: ([\d.]+)", out)
    assert last < 0.1 * first
    assert number(r"largest difference: (\S+)", out) < 1e-5
    assert "after replace_rnn: fused_bptt.RNN" in out
    assert number(r"outputs differ by (\S+)", out) < 1e-5


def test_packed_sequences():
    out = run("packed_sequences.py")
    right = [float(share) for share in re.findall(r": ([\d.]+)% of 500", out)]
    assert right[0] < 70
    assert right[-1] > 85
    lengths = re.search(r"lengths in the last batch: \[(.*)\]", out)
    assert lengths
    assert len(set(lengths[1].split(", "))) > 4
    assert number(r"alone: (\S+) apart", out) < 1e-5


def test_memory_resets(tmp_path):
    out = run("memory_resets.py", "--updates", "6", "--out", str(tmp_path))
    assert number(r"largest difference in the first updates: (\S+)", out) < 0.02
    assert re.search(r"reset: first [\d.]+, last [\d.]+ right", out)
    assert (tmp_path / "learning.png").stat().st_size > 10_000


def test_perceptual_decision(tmp_path):
    arguments = ("--updates", "150", "--trials", "50", "--out", str(tmp_path))
    out = run("perceptual_decision.py", *arguments)
    assert number(r"right answers: first [\d.]+, last ([\d.]+)", out) > 0.65
    assert 0 < number(r"75 % right at ([\d.]+) % coherence", out) < 60
    assert "100%" in out  # the bar
    assert (tmp_path / "decision.png").stat().st_size > 10_000


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=two_gpus)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes(strategy, backend):
    """Losses and weights are those of one process; gradients accumulate without synchronisation."""
    out = run("ddp.py", "--strategy", strategy, "--backend", backend, processes=2)
    losses = re.findall(r"\n +\d  ([\d.]+)  ([\d.]+)", out)
    assert len(losses) == 5
    for together, alone in losses:
        assert abs(float(together) - float(alone)) < 2e-6
    assert number(r"weights differ by (\S+)", out) < 1e-6
