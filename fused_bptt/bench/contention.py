"""How much of the measured cores went to anything but the processes that measure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # idle, waiting for input or output
_GUEST = (8, 9)  # counted within user and nice already


class Elsewhere:
    """The share, since it was made, of these CPUs' time that others used: processes, hypervisor.

    Args:
        cpus: the CPUs' numbers.
        own: seconds of processor time that those who measure have used so far.
    """

    def __init__(self, cpus: Sequence[int], own: Callable[[], float]) -> None:
        """From now on."""
        self._own = own
        self._names = {f"cpu{cpu}" for cpu in cpus}
        self._start = self._now()

    def _busy(self) -> float | None:
        """Seconds for which the CPUs were not idle, None where the system does not say."""
        try:
            lines = _STAT.read_text().splitlines()
        except OSError:
            return None
        ticks = 0
        for line in lines:
            name, *fields = line.split()
            if name in self._names:
                skipped = (*_IDLE, *_GUEST)
                ticks += sum(int(f) for i, f in enumerate(fields) if i not in skipped)
        return ticks / os.sysconf("SC_CLK_TCK")

    def _now(self) -> tuple[float, float, float | None]:
        return time.perf_counter(), self._own(), self._busy()

    def so_far(self) -> float | None:
        """Between 0 and 1, to about 0.02 s over the time that passed."""
        (wall, own, busy), (wall_0, own_0, busy_0) = self._now(), self._start
        if busy is None or busy_0 is None:
            return None
        others = (busy - busy_0) - (own - own_0)
        return max(0.0, others / ((wall - wall_0) * len(self._names)))
