"""benchmarks/options.py runs, and the options compute what their loops do."""

from __future__ import annotations

import json

import torch

from benchmarks import loops, options


def test_a_small_run(tmp_path, capsys):
    out = tmp_path / "found.json"
    options.main(["--shrink", "16", "--rounds", "1", "--seconds", "0", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] > 0
    by_loop = {cell["loop"]: cell for cell in found["cells"]}
    assert by_loop.keys() == {"plain", "reset", "leaky", "voltage"}
    assert by_loop["reset"]["times_faster_than_the_loop"] > 1
    assert "reset" in by_loop["reset"]["seconds"]
    assert len(capsys.readouterr().out.splitlines()) == len(options.CELLS)


def test_the_voltage_is_the_loops(monkeypatch):
    monkeypatch.setattr(loops, "SIGMA", 0.0)
    inputs = loops.Inputs.draw(7, 2, 3, 5, 0.0)
    torch.testing.assert_close(options.OPTIONS["voltage"](inputs), loops.voltage(inputs))
