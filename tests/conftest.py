"""Settings that hold for every test."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Derandomized: the same cases on every machine and in every run.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, max_examples=60
)
hypothesis.settings.load_profile("fixed")

# A warning that PyTorch gives once per process would be seen by the first test alone.
torch.set_warn_always(True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "isa: run again with each instruction set forced")
    config.addinivalue_line(
        "markers", "without_gpu: among tests that need a GPU, one that does not"
    )


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Every test begins with one seed, and leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
