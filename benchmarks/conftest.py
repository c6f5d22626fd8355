"""Options of `pytest benchmarks/`, and the cores, bound before a library starts threads."""

from __future__ import annotations

from typing import Any

import pytest

from fused_bptt.bench.isolation import isolate
from fused_bptt.bench.rivals import BASELINE, OURS, RIVALS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fused-bptt")
    group.addoption("--threads", type=int, default=1, help="cores to use (default: 1)")
    group.addoption(
        "--rivals",
        default=f"{OURS},{BASELINE}",
        help=f"who is timed, comma-separated, of {', '.join(RIVALS)}, or all",
    )


def pytest_configure(config: pytest.Config) -> None:
    isolate(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rival_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--rivals")
        metafunc.parametrize("rival_name", list(RIVALS) if chosen == "all" else chosen.split(","))


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--threads")


# What is committed says on which kind of machine it was measured, and nothing of whose it is.
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    cpu = machine_info["cpu"]
    kept = {"cpu": {"brand_raw": cpu.get("brand_raw"), "count": cpu.get("count")}}
    kept |= {name: machine_info[name] for name in ("machine", "system", "python_version")}
    machine_info.clear()
    machine_info.update(kept)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for name in ("project", "branch"):
        output_json["commit_info"].pop(name, None)
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)  # every round's time: megabytes that no comparison reads
