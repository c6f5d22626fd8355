"""`fused-bptt bench`: shapes, turns, checks against float64, and a run from beginning to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_results import block, results

from fused_bptt import cli
from fused_bptt.bench import against, isolation, memory, processes, revisions, session, timing
from fused_bptt.bench.arm import Arm
from fused_bptt.bench.cells import GRID, PRESETS, Cell
from fused_bptt.bench.data import Data, Reference, cell_data
from fused_bptt.bench.rivals import OURS, RIVALS, Prepared
from fused_bptt.bench.worker import Experience, reference_cell

ROOT = Path(__file__).parent.parent
SMALL = Cell(B=3, H=8, T=7, layers=2)

# Shapes.


@pytest.mark.parametrize("text", ["8x64", "1x16xT1", "8x64xL4", "1x16xT1000xL2:bfloat16"])
def test_shapes_are_read_as_they_are_written(text: str) -> None:
    assert Cell.parse(text).name == text


@pytest.mark.parametrize("text", ["8", "8x64x2", "0x16", "8x64xT0", "8x64:int8", "8x64 "])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shape: expected"):
        Cell.parse(text)


def test_the_full_preset_holds_the_grid_and_the_growth() -> None:
    cells = PRESETS["full"].cells
    assert set(GRID) < set(cells)
    assert len(set(cells)) == len(cells)
    for axis, most in {"T": 10**6, "B": 4096, "H": 4096, "layers": 8}.items():
        assert max(getattr(cell, axis) for cell in cells) == most


# Turns.


class Clock:
    """Takes part, and writes down when."""

    def __init__(self, name: str, log: list[str], seconds: float) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def warm_up(self) -> float:
        return self.seconds

    def take(self) -> float:
        self.log.append(self.name)
        return self.seconds


def test_rounds_are_interleaved_in_turning_order() -> None:
    log: list[str] = []
    samples = timing.interleave({name: Clock(name, log, 1.0) for name in "abc"}, 6)
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert rounds == ["abc", "acb", "cab", "cba", "bca", "bac"]
    assert Counter(order[0] for order in rounds) == {"a": 2, "b": 2, "c": 2}
    assert samples == {name: [1.0] * 6 for name in "abc"}


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, 9), (12.0, 6), (1.0, 3)])
def test_slow_blocks_have_fewer_rounds(seconds: float, rounds: int) -> None:
    log: list[str] = []
    timing.interleave({name: Clock(name, log, 1.0) for name in "ab"}, 9, seconds)
    assert len(log) == 2 * rounds


def test_what_would_take_minutes_is_not_begun() -> None:
    small, long = Cell(1, 16, T=1000), Cell(1, 16, T=100_000)
    known = Experience([("slow", vars(small), 0.1), ("slow", vars(Cell(1, 16, T=1)), 1.0)])
    assert known.at_least("slow", long) == pytest.approx(10.0)
    assert known.at_least("slow", replace(long, layers=2)) == pytest.approx(20.0)
    assert known.at_least("slow", Cell(1, 8, T=100_000)) == 0.0  # nothing is known of smaller ones
    assert known.at_least("slow", replace(long, dtype="float64")) == 0.0
    assert known.at_least("quick", long) == 0.0


def test_more_threads_than_cores_are_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match=f"threads: expected at most .*, got {cores + 1}"):
        isolation.choose_cpus(cores + 1)


# Checks.


class Planted:
    """fused_bptt.RNN with a mistake in one of its results."""

    name = "planted"

    def __init__(self, spoiled: str) -> None:
        self.spoiled = spoiled

    def refuses(self, cell: Cell) -> str | None:
        return "too many rows" if cell.B > 3 else None

    def prepare(self, data: Data, threads: int) -> Prepared:
        right = RIVALS[OURS].prepare(data, threads)

        def results() -> dict[str, torch.Tensor]:
            found = right.results()
            if self.spoiled == "raises":
                raise RuntimeError("out of order\nsecond line")
            if self.spoiled in found:
                found[self.spoiled] = found[self.spoiled] * 1.001
            return found

        return replace(right, results=results)


@pytest.fixture
def reference(tmp_path: Path) -> str:
    path = tmp_path / "reference.pt"
    cell_data(SMALL)[1].save(path)
    return str(path)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ("grad x", "grad x: error"),
        ("grad h_0", "grad h_0: error"),
        ("grad weight_hh_l1", "grad weight_hh_l1: error"),
        ("output", "output: error"),
        ("raises", "RuntimeError: out of order"),
    ],
)
def test_who_computes_something_else_is_not_timed(reference: str, spoiled: str, said: str) -> None:
    arm = Arm(Planted(spoiled), 1, 0.01)  # type: ignore[arg-type]
    outcome = arm.prepare(vars(SMALL), vars(SMALL), reference)
    assert list(outcome) == ["wrong"]
    assert outcome["wrong"].startswith(said)
    assert "second line" not in outcome["wrong"]


def test_who_is_right_is_timed_and_who_refuses_is_left_out(reference: str) -> None:
    arm = Arm(Planted("nothing"), 1, 0.001)  # type: ignore[arg-type]
    outcome = arm.prepare(vars(replace(SMALL, T=9)), vars(SMALL), reference)
    assert outcome["error"] < 1e-5
    assert outcome["checked_at"] == SMALL.name
    for mode in ("forward", "forward_backward"):
        assert arm.warm_up(mode)["seconds"] > 0
        assert arm.take()["seconds"] > 0
    skipped = arm.prepare(vars(replace(SMALL, B=4)), vars(SMALL), reference)
    assert skipped == {"skipped": "too many rows"}


class Hungry:
    """Keeps as many bytes as it is told, and needs as many more for a step."""

    def __init__(self, kept: int, passing: int) -> None:
        self.kept, self.passing = kept, passing

    def prepare(self, data: Data, threads: int) -> Prepared:
        workspace = torch.ones(self.kept, dtype=torch.uint8)

        def step() -> torch.Tensor:
            assert workspace[0]
            return torch.ones(self.passing, dtype=torch.uint8)

        return Prepared(step, step, dict, step)


def test_peak_memory_is_what_is_kept_and_what_a_step_adds() -> None:
    # Large enough for glibc to map, and give back, each tensor for itself.
    kept, passing = 100 * 2**20, 50 * 2**20
    found = memory.extra_bytes(Hungry(kept, passing), SMALL, 1)  # type: ignore[arg-type]
    assert found == pytest.approx(kept + passing, rel=0.1)


def test_what_a_step_needs() -> None:
    needed = memory.allowance(Cell(B=3, H=5, T=7, I=2, layers=2, dtype="float64"))
    weights = 5 * (2 + 5 + 2) + 5 * (5 + 5 + 2)
    assert needed == {
        "u_h_q": 8 * 3 * 7 * 3 * 5 * 2,
        "gradients": 8 * (7 * 3 * 2 + 2 * 3 * 5 + weights),
    }


def test_the_reference_is_the_same_in_another_process(reference: str) -> None:
    kept, here = Reference.load(Path(reference)), cell_data(SMALL)[1]
    assert kept.own_error == here.own_error
    assert all(torch.equal(kept.results[name], value) for name, value in here.results.items())


def test_long_sequences_are_checked_at_fewer_steps() -> None:
    assert reference_cell(SMALL) == SMALL
    assert reference_cell(Cell(1, 16, T=10**6)) == Cell(1, 16, T=10_000)
    assert reference_cell(Cell(1, 4096)).T < 20


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_that_is_here_agrees_with_float64(name: str, tmp_path: Path) -> None:
    """In a process of its own, as in a run."""
    cell = Cell(B=2, H=8, T=3)
    path = tmp_path / "reference.pt"
    cell_data(cell)[1].save(path)
    orders = {"rival": name, "threads": 1, "turn_seconds": 0.001}
    arm = processes.Process("fused_bptt.bench.arm", orders, isolation.choose_cpus(1))
    try:
        said = arm.answer()
        if "missing" in said:
            pytest.skip(f"{name}: {said['missing']}")
        assert said["version"]
        assert said["settings"]
        arm.tell(do="prepare", cell=vars(cell), checked=vars(cell), reference=str(path))
        assert arm.answer()["error"] < 1e-5
        arm.tell(do="warm_up", mode="forward_backward")
        assert arm.answer()["seconds"] > 0
        arm.tell(do="take")
        assert arm.answer()["seconds"] > 0
    finally:
        arm.close()


def test_a_process_that_fails_says_why() -> None:
    process = processes.Process("fused_bptt.bench.nobody", {}, isolation.choose_cpus(1))
    with pytest.raises(processes.EndedError, match="nobody"):
        process.answer()
    process.close()


# A run.


def bench(*arguments: str) -> int:
    try:
        return cli.main(["bench", *arguments])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_a_run_is_stopped_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    # One thread: with two, an engine waits for the other core, which other tests may use.
    run = ["--shapes", "1x4xT3", "--threads", "1", "--rounds", "3", "--out", str(out)]
    run += ["--rivals", OURS, "nn.RNN", "xma"]
    assert bench(*run, "--minutes", "0.0001") == 0
    assert "--resume goes on from there" in capsys.readouterr().err.replace("\n", " ")
    assert not out.exists()

    assert bench(*run) == 0
    assert "1 thread, forward + backward" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["rivals"]["xma"]["missing"].startswith("has kernels for a GPU alone")
    assert [b["mode"] for b in found["blocks"]] == ["forward_backward", "forward"]
    for one in found["blocks"]:
        assert list(one["rivals"]) == [OURS, "nn.RNN"]
        assert all(len(outcome["seconds"]) == 3 for outcome in one["rivals"].values())
        assert one["probes"] is None or one["roofline_seconds"] > 0
    described = (ROOT / "benchmarks" / "README.md").read_text().split("## The file of results")[1]
    block, memory = found["blocks"][0], found["memory"][0]
    for part in (found, found["method"], found["machine"], found["software"], block, memory):
        assert [key for key in part if f"`{key}`" not in described] == ["schema"] * (part is found)
    assert [entry["rival"] for entry in found["memory"]] == [OURS, "nn.RNN"]
    assert all(entry["extra_bytes"] >= 0 for entry in found["memory"])

    # As if it had been interrupted after the first block.
    found["blocks"].pop()
    unfinished = out.with_suffix(".partial.json")
    unfinished.write_text(json.dumps(found))
    out.unlink()
    assert bench(*run, "--resume", "--no-memory") == 0
    again = json.loads(out.read_text())
    assert again["blocks"][:1] == found["blocks"]
    assert [b["mode"] for b in again["blocks"]] == ["forward_backward", "forward"]
    assert not unfinished.exists()

    found["method"]["rounds"] = 4
    unfinished.write_text(json.dumps(found))
    assert bench(*run, "--resume") == 2
    assert "cannot be gone on with: its method differs" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: session.Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "run", interrupted)
    assert bench("--out", str(tmp_path)) == 130
    assert "--resume goes on from there" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rivals", "nobody"], "--rivals: expected some of fused_bptt.RNN, .*, got nobody"),
        (["--threads", "4096"], "--threads 4096: there are"),
        (["--shapes", "8by8"], "shape: expected one such as 8x64"),
        (["--device", "cuda"], "make gpu"),
        (["--against", "HEAD", "--rivals", "nn.RNN"], "leave --rivals out"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*arguments) == 2
    assert re.search(message, capsys.readouterr().err)


# Two revisions.


@pytest.mark.parametrize(
    ("old", "new", "again", "verdict"),
    [
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], [1.01, 0.99, 1.0], "slower"),
        ([1.0, 1.0, 1.0], [0.8, 0.8, 0.8], [1.01, 0.99, 1.0], "faster"),
        ([1.0, 1.0, 1.0], [1.1, 1.1, 1.1], [1.2, 1.2, 1.2], "the same"),  # as noisy as that
        ([1.0, 1.0, 1.0], [1.2, 1.0, 0.9], [1.0, 1.0, 1.0], "the same"),  # rounds disagree
    ],
)
def test_a_change_counts_beyond_the_noise(
    old: list[float], new: list[float], again: list[float], verdict: str
) -> None:
    names = against.Names("a", "b")
    found = results(block(**{"a": old, "b": new, "a again": again}))
    (change,) = against.changes(found, names)
    assert change.verdict == verdict
    counts = {"slower": 0, "the same": 0, "faster": 0, verdict: 1}
    said = ", ".join(f"{n} {word}" for word, n in counts.items())
    assert against.lines(found, names)[-1] == f"b against a: {said}"


def test_revisions_are_those_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(revisions.RevisionError, match="needs a clone"):
        revisions.clone()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "fused_bptt").mkdir()
    (tmp_path / "fused_bptt" / "module.py").write_text("first\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    assert revisions.clone() == tmp_path
    with pytest.raises(revisions.RevisionError, match="git knows no such revision"):
        revisions.commit_of(tmp_path, "nowhere")
    head = revisions.commit_of(tmp_path, "HEAD")
    assert revisions.working_tree(tmp_path) == (head, head[:9])
    (tmp_path / "fused_bptt" / "module.py").write_text("second\n")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "a")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "a@b")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "a")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "a@b")
    commit, name = revisions.working_tree(tmp_path)
    assert name == f"{head[:9]}+changes"
    kept = subprocess.run(
        ["git", "show", f"{commit}:fused_bptt/module.py"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert kept.stdout == "second\n"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(revisions.RevisionError, match="does not build"):
        revisions.build(tmp_path, commit)
    assert list((tmp_path / "cache" / "fused-bptt" / "revisions").iterdir()) == []


def test_the_committed_baseline_has_every_case_of_pytest_benchmarks() -> None:
    baseline = json.loads(
        (ROOT / "benchmarks/results/pytest-amd-epyc-2-cores.json").read_text(encoding="utf-8")
    )
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--collect-only", "--threads", "1"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"::(\S+)", listed)
    assert sorted(one["name"] for one in baseline["benchmarks"]) == sorted(names)
    assert len(names) > 40
