"""The `fused-bptt` command: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_bptt
from fused_bptt import _ops, cli

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from fused_bptt.cli import learner as learning
from fused_bptt.cli import machine, options, record, side_by_side, table, tasks

NAMES = ["nn.RNN", "fused_bptt.RNN"]
TINY = ["--T", "8", "--hidden", "8", "--batch-size", "64", "--epochs", "2", "--threads", "1"]


@dataclasses.dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Outcome:
        try:
            code = cli.main(arguments)
        except SystemExit as leaving:
            code = leaving.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def rows(out: str) -> list[list[float]]:
    """Numbers of the table's lines: epoch, two losses, two scores, two times, the ratio."""
    lines = [line.replace(" %", "") for line in out.splitlines()]
    return [
        [float(word) for word in line.split()]
        for line in lines
        if re.match(r"\s+\d+(\s+[\d.]+){7}$", line)
    ]


def refused(outcome: Outcome, phrase: str) -> None:
    assert outcome.code == 2
    assert phrase in outcome.err
    assert outcome.err.startswith("fused-bptt")
    assert outcome.err.count("\n") == 1, "one sentence, on a line of its own"
    assert "Traceback" not in outcome.err


# What is printed and written.


@pytest.mark.parametrize(("task", "score"), [("digits", "test_accuracy"), ("adding", "test_MSE")])
def test_train_prints_and_records_the_same_numbers(command, tmp_path, task, score):
    done = command("train", "--task", task, *TINY, "--seed", "3", "--output", str(tmp_path))
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "run.json").read_text())
    printed = rows(done.out)
    assert [row[0] for row in printed] == [1, 2] == [epoch["epoch"] for epoch in written["epochs"]]
    for row, epoch in zip(printed, written["epochs"], strict=True):
        assert row[1:3] == pytest.approx([epoch["loss"][name] for name in NAMES], abs=1e-5)
        unit = 100 if task == "digits" else 1
        scores = [unit * epoch[score][name] for name in NAMES]
        assert row[3:5] == pytest.approx(scores, abs=0.05 if task == "digits" else 1e-5)
        assert row[5:7] == pytest.approx([epoch["seconds"][name] for name in NAMES], abs=1e-3)
        seconds = [epoch["seconds"][name] for name in NAMES]
        assert epoch["ratio"] == pytest.approx(seconds[0] / seconds[1])
        assert row[7] == pytest.approx(epoch["ratio"], abs=0.06)

    summary = written["summary"]
    assert f"{summary['largest_loss_difference']:.1e}" in done.out
    ratio = summary["ratio"]  # at this size, on a busy machine, either may win
    said = f"{ratio:.1f} times faster" if ratio >= 1 else f"{1 / ratio:.1f} times slower"
    assert said in done.out
    for name in NAMES:
        assert summary["seconds"][name] == pytest.approx(
            sum(epoch["seconds"][name] for epoch in written["epochs"])
        )
    settings = written["settings"]
    assert (settings["task"], settings["T"], settings["hidden"]) == (task, 8, 8)
    assert (settings["batch_size"], settings["seed"], settings["dtype"]) == (64, 3, "float32")
    assert written["machine"]["threads"] == 1
    assert written["machine"]["torch"] == torch.__version__
    assert written["machine"]["isa_in_use"] == _ops.cpu_isa()


def test_both_modules_learn_digits_alike(command, tmp_path):
    sizes = ["--T", "8", "--hidden", "64", "--epochs", "8", "--threads", "1"]
    done = command("train", *sizes, "--output", str(tmp_path))
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "run.json").read_text())
    last = written["epochs"][-1]
    assert min(last["test_accuracy"].values()) >= 0.9
    assert last["loss"]["nn.RNN"] < 0.3 * written["epochs"][0]["loss"]["nn.RNN"]
    assert 0 < written["summary"]["largest_loss_difference"] < 1e-5


def test_a_wrong_module_shows_in_the_losses(command, tmp_path, monkeypatch):
    class Wrong(nn.RNN):
        def forward(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
            output, last = super().forward(*arguments)
            return output, 1.001 * last

    monkeypatch.setattr(fused_bptt, "RNN", Wrong)
    assert command("train", *TINY, "--output", str(tmp_path)).code == 0
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["summary"]["largest_loss_difference"] > 1e-5


def test_the_picture_shows_both_modules(command, tmp_path):
    from matplotlib.image import imread

    assert command("train", *TINY, "--output", str(tmp_path / "new" / "folder")).code == 0
    image = imread(tmp_path / "new" / "folder" / "loss_and_throughput.png")
    height, width, _ = image.shape
    assert width > 1200
    assert height > 500
    left, right = image[:, : width // 2, :3], image[:, width // 2 :, :3]
    for colour in ("#0072B2", "#E69F00"):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        bars = (abs(right - wanted) < 0.02).all(2)
        assert bars.any(0).sum() > 50, f"no bar in {colour}"
        near = (abs(left - wanted) < 0.25).all(2)
        assert near.any(0).sum() > width // 5, f"no curve in {colour}"


def test_where_the_output_is_no_terminal_there_are_no_bars_nor_colours(command, tmp_path):
    done = command("train", *TINY, "--output", str(tmp_path))
    assert "\x1b" not in done.out
    assert "batches  " not in done.out
    assert done.out.isascii()
    table_lines = done.out[done.out.index("epoch  ") :].split("\n\n")[0].splitlines()
    assert len(table_lines) == 3 + 2
    assert max(map(len, table_lines)) <= 80


def test_on_a_terminal_there_is_a_bar_for_each_module(command, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = command("train", *TINY, "--output", str(tmp_path))
    assert done.code == 0, done.err
    steps = 2 * math.ceil(1437 / 64)
    for name in NAMES:
        assert re.search(rf"{re.escape(name)} .*{steps}/{steps}.*batches", done.out)


def test_a_loss_that_is_lost_is_said(command, tmp_path):
    sizes = ["--task", "adding", *TINY, "--lr", "1e30"]
    done = command("train", *sizes, "--output", str(tmp_path))
    assert done.code == 0, done.err
    assert "not finite from epoch 1" in done.out
    text = (tmp_path / "run.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["epochs"][0]["loss"]["nn.RNN"] is None


@pytest.mark.parametrize("dtype", options.DTYPES)
def test_dtypes(command, tmp_path, dtype):
    done = command("train", *TINY, "--dtype", dtype, "--output", str(tmp_path))
    assert done.code == 0, done.err
    apart = json.loads((tmp_path / "run.json").read_text())["summary"]["largest_loss_difference"]
    assert apart < {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.1}[dtype]


def test_info(command):
    done = command("info")
    assert done.code == 0
    for fact in [
        fused_bptt.__version__,
        torch.__version__,
        f"{' '.join(_ops.compiled_isas())} (compiled in)",
        f"in use          {_ops.cpu_isa()}",
        f"threads           {torch.get_num_threads()}",
        " ".join(_ops.cuda_archs()) or "none (a build for the CPU alone)",
        torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (",
    ]:
        assert fact in done.out


def test_version_and_help(command):
    assert command("--version").out.split() == ["fused-bptt", fused_bptt.__version__]
    assert "train" in command("--help").out


def test_every_option_says_its_default():
    subparsers = next(
        action
        for action in cli.build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert sorted(subparsers.choices) == ["bench", "explain", "info", "report", "train"]
    for parser in subparsers.choices.values():
        for action in parser._actions:
            if action.dest != "help" and action.option_strings:  # what is required has none
                assert "(default: " in action.help, action.option_strings


# What the comparison rests on.


@pytest.fixture
def recipe() -> learning.Recipe:
    return learning.Recipe(
        hidden=8,
        batch_size=64,
        nonlinearity="tanh",
        epochs=2,
        lr=1e-3,
        recurrent_lr=0.1,
        clip=None,
        start="orthogonal",
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=0,
    )


def test_twins_are_the_two_modules_with_one_set_of_weights(recipe):
    theirs, ours = learning.twins(tasks.Digits(8, seed=0), recipe)
    assert [theirs.name, ours.name] == NAMES
    assert type(theirs._model.rnn) is nn.RNN
    assert type(ours._model.rnn) is fused_bptt.RNN
    weights = theirs._model.state_dict()
    assert weights.keys() == ours._model.state_dict().keys()
    for name, weight in ours._model.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert weight.data_ptr() != weights[name].data_ptr()


def test_only_the_training_loop_is_timed(monkeypatch, recipe):
    now = 0.0

    class Clocked(tasks.Digits):
        def loss(self, output: Tensor, targets: Tensor) -> Tensor:
            nonlocal now
            now += 1
            return super().loss(output, targets)

    def progress(batches: int) -> None:
        nonlocal now
        now += 1000

    task = Clocked(1, seed=0)
    _, ours = learning.twins(task, recipe)
    batches = task.training_epoch().batches(64, torch.device("cpu"), torch.float32)
    assert sum(batch.count for batch in batches) == task.training_size == 1437
    monkeypatch.setattr(learning.time, "perf_counter", lambda: now)
    loss, seconds = ours.train(batches, progress)
    assert seconds == len(batches)
    assert 1 < loss < 3


def test_the_loss_is_the_mean_over_sequences_even_if_the_last_batch_is_smaller(recipe):
    task = tasks.Digits(8, seed=0)
    frozen = dataclasses.replace(recipe, lr=1e-30)
    means = []
    for size in (1437, 1000):
        theirs, _ = learning.twins(task, frozen)
        batches = task._train.batches(size, torch.device("cpu"), torch.float32)
        means.append(theirs.train(batches, lambda _: None)[0])
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_the_learning_rate_rises_then_falls_to_nothing():
    factors = [learning.lr_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert factors.index(1.0) == 9
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 <= factors[-1] < 1e-3


def test_digits_are_the_pixels_in_reading_order():
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images)  # [1797, 8, 8]
    by_pixel, by_row = tasks.Digits(64, seed=1), tasks.Digits(8, seed=1)
    assert by_pixel.test.inputs.shape == (64, 360, 1)
    assert by_row.test.inputs.shape == (8, 360, 8)
    flat = by_pixel.test.inputs[:, 0, 0]
    assert torch.equal(by_row.test.inputs[:, 0].reshape(64), flat)
    scaled = ((images - images.mean()) / images.std()).reshape(-1, 64)
    assert (scaled - flat).abs().amax(1).min() < 1e-9


def test_digits_for_training_and_testing_are_different_images():
    task = tasks.Digits(64, seed=0)
    train = {tuple(image.tolist()) for image in task._train.inputs[:, :, 0].T}
    test = {tuple(image.tolist()) for image in task.test.inputs[:, :, 0].T}
    assert len(train | test) == 1797


def test_the_adding_problem_adds_two_marked_numbers():
    task = tasks.Adding(9, seed=0)
    for sequences in (task.test, task.training_epoch(), task.training_epoch()):
        numbers, marks = sequences.inputs.unbind(2)
        assert torch.equal(marks.sum(0), torch.full((sequences.count,), 2.0))
        assert torch.equal(marks[:4].sum(0), torch.ones(sequences.count))
        assert torch.allclose((numbers * marks).sum(0), sequences.targets)
    assert sequences.targets.var().item() == pytest.approx(1 / 6, rel=0.1)


def test_a_slower_module_is_not_called_faster(recipe):
    epoch = record.Epoch(1, losses=(1.0, 1.0), scores=(0.5, 0.5), seconds=(1.0, 2.0))
    slower = record.Run(tasks.Digits(8, seed=0), recipe, machine.look(), [epoch])
    text = table.closing(slower).plain
    assert "2.0 times slower" in text
    assert "faster" not in text


# How it refuses.


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ([], "command"),
        (["tran"], "'tran'"),
        (["train", "--task", "mnist"], "'mnist'"),
        (["train", "--T", "0"], "'0' is not a whole number of at least 1"),
        (["train", "--T", "50"], "must be 1, 2, 4, 8, 16, 32 or 64"),
        (["train", "--task", "adding", "--T", "1"], "T must be 2 or more"),
        (["train", "--hidden", "-3"], "'-3' is not a whole number of at least 1"),
        (["train", "--batch-size", "1.5"], "'1.5' is not a whole number of at least 1"),
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--lr", "nan"], "'nan' is not a number above 0"),
        (["train", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["train", "--seed", str(2**32)], "more than 2**32 - 1"),
        (["train", "--nonlinearity", "sigmoid"], "'sigmoid'"),
        (["train", "--dtype", "int8"], "'int8'"),
        (["train", "--threads", "none"], "--threads"),
        (["train", "--device", "gpu"], "--device gpu: not a device"),
        (["train", "--device", "meta"], "runs on cpu and on cuda"),
        (["train", "--hidden", "10000000"], "not enough memory"),
        (["info", "--loud"], "--loud"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(command, tmp_path, monkeypatch, arguments, phrase):
    monkeypatch.chdir(tmp_path)
    refused(command(*arguments), phrase)


def test_a_device_that_is_not_there(command, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(command("train", "--device", "cuda"), "torch sees no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(command("train", "--device", "cuda:2"), "the CUDA devices here are 0 to 1")
    monkeypatch.setattr(_ops, "cuda_archs", list)
    refused(command("train", "--device", "cuda:1"), "no CUDA kernels")


@pytest.mark.parametrize("module", ["matplotlib", "rich", "sklearn"])
def test_a_missing_extra(command, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    done = command("train", *TINY)
    refused(done, f"needs {module}")
    assert "pip install 'fused-bptt[cli]'" in done.err


def test_an_output_folder_that_is_a_file(command, tmp_path):
    (tmp_path / "taken").write_text("")
    refused(
        command("train", *TINY, "--output", str(tmp_path / "taken")), "no such folder can be made"
    )


def test_an_interrupted_run_leaves_without_a_traceback(command, tmp_path, monkeypatch):
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "train", interrupted)
    done = command("train", *TINY, "--output", str(tmp_path))
    assert (done.code, done.err) == (130, "fused-bptt train: interrupted.\n")


def test_threads_are_put_back(command, tmp_path):
    before = torch.get_num_threads()
    command("train", *TINY, "--threads", str(before + 1), "--output", str(tmp_path))
    assert torch.get_num_threads() == before


# As a process.


def process(*arguments: str, **environment: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "fused_bptt.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_as_a_process(tmp_path: Path):
    done = process("train", *TINY, "--output", str(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert len(rows(done.out)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "loss_and_throughput.png",
        "run.json",
    ]


def test_an_instruction_set_that_is_not_there():
    refused(process("info", FUSED_BPTT_CPU="mmx"), "mmx")


# info --shape


def test_info_prints_a_plan_and_what_else_was_weighed(command):
    done = command(
        "info", "--shape", "1024,16,64,512", "--dtype", "bf16", "--device-limits", "h200"
    )
    assert done.code == 0, done.err
    assert "T=1024 B=16 I=64 H=512, bfloat16" in done.out
    assert "sm_90, 132 SMs, 227 KiB" in done.out
    assert "bf16; a cluster of 8 CTAs" in done.out
    assert "W               in registers\n" in done.out
    step, walk = re.search(
        r"predicted +([\d.]+) µs a step, ([\d.]+) ms for the walk", done.out
    ).groups()
    assert float(walk) == pytest.approx(1024 * float(step) / 1000, abs=0.011)
    weighed = re.findall(
        r"^  bf16 +(cta|cluster|grid|launches) +(registers|shared|global) +(.+)$", done.out, re.M
    )
    assert len({pair[:2] for pair in weighed}) == 10
    assert [how for *_, how in weighed if how.endswith("chosen")] == [f"{step} with 8 CTAs, chosen"]
    assert all(re.match(r"refused: .*\d|[\d.]+", how) for *_, how in weighed)


def test_info_follows_torchs_switch(command):
    before = torch.backends.cudnn.rnn.fp32_precision
    shape = ("info", "--shape", "9,64,64,256", "--device-limits", "h100")
    try:
        torch.backends.cudnn.allow_tf32 = False
        strict = command(*shape).out
        torch.backends.cudnn.allow_tf32 = True
        relaxed = command(*shape).out
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before
    assert "fp32_precision is 'tf32'" in relaxed
    assert re.search(r"^  tf32 ", relaxed, re.M)
    assert not re.search(r"^  tf32 ", strict, re.M)
    assert re.search(r"^  tf32x3 ", command(*shape, "--math", "tf32x3").out, re.M)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_info_without_a_gpu_says_whose_limits_it_takes(command):
    assert "limits            h200 (no GPU here): " in command("info", "--shape", "1,1,1,1").out


def test_info_of_more_units_than_a_device_covers(command):
    done = command("info", "--shape", "7,40,1,1000000", "--device-limits", "a100")
    assert done.code == 0, done.err
    assert "a launch for each step, of " in done.out
    assert "W               streamed from global memory at every step, once for" in done.out
    ctas = int(re.search(r"of (\d+) CTAs a batch tile", done.out)[1])
    teams, waves = re.search(r"batch +(\d+) x \d+ rows, in (\d+) waves\n", done.out).groups()
    assert int(waves) == math.ceil(int(teams) * ctas / 108)
    assert "108 SMs cover" in done.out


@pytest.mark.parametrize("step", ["leaky", "clipped", "norm-clipped"])
def test_info_of_a_step_that_is_not_plain(command, step):
    done = command("info", "--shape", "9,64,64,256", "--device-limits", "h100", "--step", step)
    assert done.code == 0, done.err
    assert re.search(rf"layer .*, {step}\n", done.out)
    if step == "leaky":
        assert "a cluster of " in done.out
        assert "only a launch for each" not in done.out
    else:
        assert "a launch for each step, of " in done.out
        assert f"cta       registers  refused: of a {step} step only a launch for each" in done.out
    assert ("; and one that clips, of a CTA for each row\n" in done.out) == (step == "norm-clipped")


def test_info_of_more_rows_than_can_be_launched(command):
    done = command("info", "--shape", "1,2147483647,1,1000000", "--device-limits", "a100")
    assert done.code == 0, done.err
    assert "none: every way is refused" in done.out
    assert "a grid has at most 2147483647 CTAs, " in done.out


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("--shape", "1,2,3"), "'1,2,3' is not T,B,I,H"),
        (("--shape", "1,2,3,-4"), "'1,2,3,-4' is not T,B,I,H"),
        (("--shape", "1,2,3,3000000000"), "a number of 2**31 or more"),
        (("--shape", "1,2,3,4", "--dtype", "int8"), "'int8' is not float64"),
        (("--shape", "1,2,3,4", "--math", "bf16"), "float32 is multiplied by fp32 or tf32x3"),
        (("--shape", "1,2,3,4", "--device-limits", "v100"), "v100: not one of h200, h100"),
        (("--shape", "1,2,3,4", "--device-limits", "cuda:99"), "no such CUDA device"),
        (("--dtype", "bf16"), "go with --shape"),
        (("--step", "leaky"), "go with --shape"),
    ],
)
def test_info_refuses(command, arguments, phrase):
    refused(command("info", *arguments), phrase)
