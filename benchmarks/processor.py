"""Who used the processor: what a server took, and whether anything else disturbed the measurement. Linux only."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE, _IO_WAIT, _GUEST = 3, 4, 8
"""Columns of /proc/stat; guest time, from there on, is in user time already."""


@dataclass(frozen=True)
class ProcessorTimes:
    """Seconds of all cores together since they were started: all work, this process's, and a server's."""

    at: float
    all_s: float
    own_s: float
    server_s: float

    @classmethod
    def now(cls, server_pid: int) -> "ProcessorTimes":
        """Read them."""
        return cls(time.perf_counter(), _all_s(), time.process_time(), _process_s(server_pid))


@dataclass(frozen=True)
class ProcessorUse:
    """Cores that were busy on average: with the load generator, the server, and everything else on the machine."""

    generator: float
    server: float
    others: float

    @classmethod
    def between(cls, before: ProcessorTimes, after: ProcessorTimes) -> "ProcessorUse":
        """Return what was used from `before` to `after`."""
        seconds = after.at - before.at
        own, server = after.own_s - before.own_s, after.server_s - before.server_s
        others = max(after.all_s - before.all_s - own - server, 0.0)
        return cls(*(round(used / seconds, 3) for used in (own, server, others)))


def _all_s() -> float:
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(value for at, value in enumerate(ticks[:_GUEST]) if at not in (_IDLE, _IO_WAIT)) / _TICKS_PER_S


def _process_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
