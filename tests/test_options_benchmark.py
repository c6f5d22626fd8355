"""benchmarks/options.py runs, and the options compute what their loops do."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import libraries, loops, options


def test_a_small_run(tmp_path, capsys):
    out = tmp_path / "found.json"
    options.main(["--shrink", "16", "--rounds", "1", "--seconds", "0", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] > 0
    by_loop = {cell["loop"]: cell for cell in found["cells"] if "loop" in cell}
    assert by_loop.keys() == {"plain", "reset", "leaky", "voltage", "clip"}
    assert by_loop["reset"]["times_faster_than_the_loop"] > 1
    assert "reset" in by_loop["reset"]["seconds"]
    assert len(capsys.readouterr().out.splitlines()) == len(options.CELLS) + len(options.OTHERS)


def test_the_voltage_is_the_loops(monkeypatch):
    monkeypatch.setattr(loops, "SIGMA", 0.0)
    inputs = loops.Inputs.draw(7, 2, 3, 5, 0.0)
    torch.testing.assert_close(options.OPTIONS["voltage"](inputs)[0](), loops.voltage(inputs))


def test_the_clip_is_the_loops():
    inputs = loops.Inputs.draw(7, 2, 3, 5, 0.0)
    calls = [options.OPTIONS["clip"](inputs)[0], lambda: loops.clipped(inputs)]
    bars = [torch.autograd.grad(9 * call().sin().sum(), inputs.leaves) for call in calls]
    torch.testing.assert_close(*bars)


@pytest.mark.parametrize("library", libraries.LIBRARIES)
def test_a_library_computes_its_loop(library, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setattr(libraries, "SIGMA", 0.0)
    monkeypatch.setattr(loops, "SIGMA", 0.0)
    inputs = loops.Inputs.draw(7, 2, 3, 5, 0.0)
    loop, prepare = libraries.LIBRARIES[library]
    torch.testing.assert_close(prepare(inputs)[0](), loops.LOOPS[loop](inputs))


def test_cells_are_replaced_one_by_one(tmp_path):
    out = tmp_path / "found.json"
    quick = ["--shrink", "32", "--rounds", "1", "--seconds", "0", "--out", str(out)]
    options.main([*quick, "--cell", "2"])
    options.main([*quick, "--cell", "0"])
    first = json.loads(out.read_text())["cells"]
    assert [cell["loop"] for cell in first] == ["plain", "leaky"]
    options.main([*quick, "--cell", "2"])
    again = json.loads(out.read_text())["cells"]
    assert again[0] == first[0]
    assert again[1]["seconds"] != first[1]["seconds"]
    assert 0 < again[1]["share_of_product_rate"] < 1
