"""The processes that measure: bound to their cores, and gone with whoever listens to them.

Each reads its orders as JSON from its command line, may read a JSON object a line from stdin, and
writes one a line to stdout, after a mark that tells it from what libraries print.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fused_bptt.bench.isolation import cores, environment

MARK = "@fused-bptt-benchmark "


class EndedError(Exception):
    """The process failed; the text is the end of what it said on stderr."""


class TimeUpError(Exception):
    """The time that was given is over."""


def send(**message: Any) -> None:
    """From such a process to the one that listens."""
    print(MARK + json.dumps(message), flush=True)


def end_with_parent() -> None:
    """In such a process: let the kernel end it when the one that started it ends, however it does.

    A process that goes on measuring for nobody would disturb whoever measures next.
    """
    set_death_signal = 1  # PR_SET_PDEATHSIG of Linux's prctl
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def received() -> Iterator[dict[str, Any]]:
    """In such a process: what it is told, until the one that listens is gone."""
    for line in sys.stdin:
        yield json.loads(line)


class Process:
    """`python -m module ORDERS` on some CPUs.

    Args:
        module: what to run.
        orders: its argument.
        cpus: as many as it has threads.
        more: further variables of its environment.
        folder: where modules are looked for first.
        deadline: of `time.monotonic`, at which it is ended.
    """

    def __init__(
        self,
        module: str,
        orders: Mapping[str, Any],
        cpus: Sequence[int],
        *,
        more: Mapping[str, str] | None = None,
        folder: Path | None = None,
        deadline: float | None = None,
    ) -> None:
        """Start it."""
        variables = {**os.environ, **environment(len(cpus)), **(more or {})}
        if folder is not None:
            variables["PYTHONPATH"] = str(folder)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        with cores(cpus):
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(orders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=variables,
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for the one that listens
            )
        self._late = threading.Event()
        self._timer = None
        if deadline is not None:
            self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._end)
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        self._late.set()
        self._process.kill()

    def tell(self, **message: Any) -> None:
        """Write a line to it.

        Raises:
            EndedError: it is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends.

        Raises:
            EndedError: it failed.
            TimeUpError: the deadline has passed.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                yield json.loads(line.removeprefix(MARK))
        if self._late.is_set():
            raise TimeUpError
        if self._process.wait() != 0:
            raise self._failure()

    def answer(self) -> dict[str, Any]:
        """Its next message.

        Raises:
            EndedError: there is none.
        """
        for message in self.messages():
            return message
        raise self._failure()

    def _failure(self) -> EndedError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return EndedError(
            said[-1] if said and code > 0 else f"its process ended with exit status {code}"
        )

    def close(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for stream in (self._process.stdout, self._errors):
            stream.close()
        with contextlib.suppress(BrokenPipeError):  # what was written last was never read
            self._process.stdin.close()
