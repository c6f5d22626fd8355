"""Programs about threads. test_threads.py runs each in a process of its own, so a hang fails."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import torch
from cases import WIDE, Case
from helpers import run_case
from tolerance import Named, assert_close, assert_exact
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fused_bptt

CASES = (*WIDE, Case("long", T=60, B=33, I=20, H=70), Case("small", T=20, B=2, H=9))


def expected() -> dict[str, Named]:
    return {case.name: run_case(case, nn.RNN) for case in CASES}


def check_all(right: dict[str, Named]) -> None:
    for case in CASES:
        assert_close(run_case(case, fused_bptt.RNN), right[case.name])


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Runs `work` in several Python threads at once and raises what any of them raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run() -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def repeatedly(times: int, work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work()

    return run


def two_python_threads() -> None:
    right = expected()
    for count in (2, 5):
        in_threads(count, repeatedly(10, lambda: check_all(right)))


def more_threads_than_cores() -> None:
    right = expected()
    torch.set_num_threads(16)
    repeatedly(5, lambda: check_all(right))()


def one_thread_and_back() -> None:
    right = expected()
    for threads in (2, 1, 2, 3, 1, 4, 2):
        torch.set_num_threads(threads)
        check_all(right)


def threads_change_while_another_calls() -> None:
    right = expected()
    done = threading.Event()

    def work() -> None:
        try:
            repeatedly(10, lambda: check_all(right))()
        finally:
            done.set()

    caller = threading.Thread(target=lambda: in_threads(1, work))
    caller.start()
    threads = 1
    while not done.wait(0.01):
        threads = threads % 4 + 1
        torch.set_num_threads(threads)
    caller.join()


class Computed(Dataset):
    """Every item is computed by an RNN, forward and backward, in the worker."""

    def __len__(self) -> int:
        return 2 * len(CASES)

    def __getitem__(self, index: int) -> Named:
        return run_case(CASES[index % len(CASES)], fused_bptt.RNN)


def forked_workers() -> None:
    right = expected()
    check_all(right)  # the pool of threads exists before the fork
    loader = DataLoader(Computed(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    count = 0
    for index, found in enumerate(loader):
        assert_close(found, right[CASES[index % len(CASES)].name])
        count += 1
    assert count == len(loader.dataset)
    check_all(right)


def inside_a_parallel_region() -> None:
    """Each thread of an OpenMP region, PyTorch's own pool, calls; no further threads come."""
    right = expected()
    library = ctypes.CDLL(None)
    inside: list[int] = []
    errors: list[BaseException] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_: object) -> None:
        try:
            inside.append(library.omp_in_parallel())
            check_all(right)
        except BaseException as error:
            errors.append(error)

    for threads in (2, 4):
        inside.clear()
        library.GOMP_parallel(body, None, threads, 0)
        assert inside == [1] * threads, inside
    if errors:
        raise errors[0]
    check_all(right)


def inside_several_python_threads_with_dense_products() -> None:
    """Other parallel operators of PyTorch run at the same time on the same pool."""
    right = expected()
    a = torch.randn(300, 300, dtype=torch.float64)
    product = a @ a

    def work() -> None:
        check_all(right)
        assert_close({"a @ a": a @ a}, {"a @ a": product})
        assert torch.equal(a.sigmoid(), a.sigmoid())

    in_threads(3, repeatedly(8, work))


def backward_in_another_thread() -> None:
    case = CASES[0]
    right = run_case(case, nn.RNN)
    results: list[Named] = []

    def forward_here() -> tuple[torch.Tensor, torch.Tensor]:
        x, hx = case.inputs()
        output, _ = case.module(fused_bptt.RNN)(x, hx)
        return x, output

    graphs = [forward_here() for _ in range(4)]
    for x, output in graphs:
        thread = threading.Thread(target=output.sum().backward)
        thread.start()
        thread.join()
        results.append({"x": x.grad})
    for result in results:
        assert result["x"].shape == right["grad x"].shape
        assert_exact(result, results[0])


PROGRAMS = (
    two_python_threads,
    more_threads_than_cores,
    one_thread_and_back,
    threads_change_while_another_calls,
    forked_workers,
    inside_a_parallel_region,
    inside_several_python_threads_with_dense_products,
    backward_in_another_thread,
)
