"""Threads of every kind around a call: right results, and no hang."""

from __future__ import annotations

import pytest
import thread_programs
from helpers import assert_runs


@pytest.mark.parametrize("program", [program.__name__ for program in thread_programs.PROGRAMS])
def test_right_results_in_time(program: str) -> None:
    done = assert_runs(f"import thread_programs as p; p.{program}(); print('done')", timeout=90)
    assert done.endswith("done\n")
