"""Servers as a user has them: processes of their own, started from a command, stopped by SIGTERM."""

import os
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02
_LOG_TAIL = 2000
"""Characters of a server's last words in an error."""


class ServerEndedError(Exception):
    """A server ended before it was told to, or never became ready."""


@dataclass(frozen=True)
class RunningServer:
    """A server that has said that it is ready; `start_s` is the time from its process's start till then."""

    url: str
    pid: int
    start_s: float

    def rss_mib(self) -> float:
        """Return the memory that the process has resident now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        if found is None:
            raise ServerEndedError(f"process {self.pid} has ended")
        return int(found[1]) / 1024


def ood_serve(port: int, *options: str) -> list[str]:
    """Return the command of our server."""
    return [str(Path(sysconfig.get_path("scripts"), "ood-serve")), "--port", str(port), *options]


def plain_fastapi(port: int, *options: str) -> list[str]:
    """Return the command of the plain server."""
    return [sys.executable, "-m", "benchmarks.plain_fastapi", "--port", str(port), *options]


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as claimed:
        claimed.bind(("127.0.0.1", 0))
        port: int = claimed.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[RunningServer]:
    """Run a server, from the moment it is ready to the end of the block.

    Its output goes to a temporary file, as a service manager would keep it.

    Raises:
        ServerEndedError: it ended by itself, or was not ready in time; with the end of its output.
    """
    with tempfile.TemporaryFile("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(process, url, begun)
            yield RunningServer(url, process.pid, time.monotonic() - begun)
        finally:
            status = process.poll()
            _stop(process)
            if status is not None:
                raise ServerEndedError(f"{command} ended with status {status}: {_end_of(log)}")


def _environment() -> dict[str, str]:
    """Keep `OOD_*` settings of the shell out of what is measured, and this folder importable."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("OOD_")}
    return ours | {"PYTHONPATH": str(Path(__file__).parents[1])}


def _await_ready(process: "subprocess.Popen[bytes]", url: str, begun: float) -> None:
    with httpx.Client(base_url=url, timeout=5) as client:
        while not _is_ready(client):
            if process.poll() is not None or time.monotonic() - begun > START_TIMEOUT_S:
                raise ServerEndedError(f"{process.args!r} is not ready after {time.monotonic() - begun:.0f} s")
            time.sleep(POLL_S)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_of(log: IO[str]) -> str:
    log.seek(0)
    return log.read()[-_LOG_TAIL:]
