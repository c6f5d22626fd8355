"""Options of `pytest benchmarks/`, and the cores, bound before a library starts threads."""

from __future__ import annotations

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


def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    machine_info.pop("node", None)  # the name of a machine is its owner's affair
