"""What a server's processes hold, as Linux counts it."""

from collections.abc import Iterator
from pathlib import Path

RESET_PEAK = "5"
"""What, written to clear_refs, makes the peak what is held now (proc_pid_clear_refs(5))."""


class Memory:
    """The memory of a process and of all that it started."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def held_bytes(self) -> int:
        """Resident now."""
        return self._sum("VmRSS")

    @property
    def peak_bytes(self) -> int:
        """Most that was resident since `forget_peak`, each process by itself."""
        return self._sum("VmHWM")

    @property
    def open_files(self) -> int:
        """Descriptors, sockets among them."""
        return sum(len(list((process / "fd").iterdir())) for process in self._processes())

    def forget_peak(self) -> None:
        """Begin to measure the peak anew."""
        for process in self._processes():
            (process / "clear_refs").write_text(RESET_PEAK)

    def _sum(self, field: str) -> int:
        return sum(_kibibytes(process / "status", field) * 1024 for process in self._processes())

    def _processes(self) -> Iterator[Path]:
        waiting = [self._pid]
        while waiting:
            process = Path("/proc") / str(waiting.pop())
            yield process
            for children in process.glob("task/*/children"):
                waiting += [int(child) for child in children.read_text().split()]


def _kibibytes(status: Path, field: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])
