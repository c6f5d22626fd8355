"""Options of `pytest benchmarks/`, and the thread count, set before torch and JAX are imported."""

from __future__ import annotations

import pytest

from benchmarks.isolation import isolate

RIVALS = ("fused_bptt.RNN", "nn.RNN", "onednn", "jax")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fused-bptt")
    group.addoption("--threads", type=int, default=1, help="cores to use (default: 1)")
    group.addoption(
        "--rivals",
        default="fused_bptt.RNN,nn.RNN",
        help=f"who is timed, comma-separated, of {', '.join(RIVALS)}, or all",
    )


def pytest_configure(config: pytest.Config) -> None:
    isolate(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rival_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--rivals")
        metafunc.parametrize("rival_name", RIVALS if chosen == "all" else chosen.split(","))


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--threads")
