"""Who used the processor: the load generator, the server, and whatever else disturbed the measurement. Linux only."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_store.frozen import Frozen

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE, _IO_WAIT, _GUEST = 3, 4, 8
"""Columns of /proc/stat; guest time, from there on, is in user time already."""
_SESSION, _UTIME, _END_OF_CHILDREN = 3, 11, 15
"""Columns of /proc/<pid>/stat after the command: utime, stime, and those of children that have ended."""


class Cores(Frozen):
    """Cores that were busy on average: with the load generator, the server, and everything else on the machine."""

    generator: float
    server: float
    others: float


@dataclass(frozen=True)
class ProcessorTimes:
    """Seconds of all cores together since they were started: all work, the generator's, and a server's.

    The generator is this process and the children that it has waited for; the server is a session of processes.
    """

    at: float
    all_s: float
    generator_s: float
    server_s: float

    @classmethod
    def now(cls, server: int) -> "ProcessorTimes":
        """Read them; the server is all processes of the session `server`."""
        own = os.times()
        generator_s = own.user + own.system + own.children_user + own.children_system
        return cls(time.perf_counter(), _all_s(), generator_s, _session_s(server))

    def until(self, after: "ProcessorTimes") -> Cores:
        """Return what was used from here to `after`."""
        seconds = after.at - self.at
        generator, server = after.generator_s - self.generator_s, after.server_s - self.server_s
        others = max(after.all_s - self.all_s - generator - server, 0.0)
        shares = {"generator": generator, "server": server, "others": others}
        return Cores(**{name: round(used / seconds, 3) for name, used in shares.items()})


def session_is_alive(session: int) -> bool:
    """Tell whether any process of a session runs; one that has ended and waits for its parent does not."""
    return any(int(fields[_SESSION]) == session and fields[0] != "Z" for _, fields in _processes())


def session_memory_mib(session: int) -> float:
    """Return the memory that the processes of a session have resident; what they share counts once (PSS)."""
    return sum(_pss_mib(pid) for pid, fields in _processes() if int(fields[_SESSION]) == session)


def _pss_mib(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _session_s(session: int) -> float:
    ticks = 0
    for _, fields in _processes():
        if int(fields[_SESSION]) == session:
            ticks += sum(int(value) for value in fields[_UTIME:_END_OF_CHILDREN])
    return ticks / _TICKS_PER_S


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it has ended
                continue


def _all_s() -> float:
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(value for at, value in enumerate(ticks[:_GUEST]) if at not in (_IDLE, _IO_WAIT)) / _TICKS_PER_S
