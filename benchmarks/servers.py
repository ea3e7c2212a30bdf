"""Servers as a user has them: processes of their own, started from a command, stopped by SIGTERM."""

import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from benchmarks.processor import session_is_alive, session_memory_mib

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
_LOG_TAIL = 2000
"""Characters of a server's last words in an error."""


class ServerEndedError(Exception):
    """A server ended before it was told to, or never became ready."""


@dataclass(frozen=True)
class Probe:
    """What a server is asked until it answers with 200, which says that it is ready: a GET, or a POST with a body."""

    path: str = "/readyz"
    content_type: str = ""
    body: bytes = b""

    def send(self, client: httpx.Client) -> httpx.Response:
        """Ask once."""
        if not self.body:
            return client.get(self.path)
        return client.post(self.path, content=self.body, headers={"Content-Type": self.content_type})


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready; `start_s` is the time from its process's start till then.

    It and the processes that it starts are the session `pid`.
    """

    url: str
    pid: int
    start_s: float

    def memory_mib(self) -> float:
        """Return the memory that its processes have resident now."""
        return session_memory_mib(self.pid)


def ood_serve(port: int, *options: str) -> list[str]:
    """Return the command of our server."""
    return [str(Path(sysconfig.get_path("scripts"), "ood-serve")), "--port", str(port), *options]


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as claimed:
        claimed.bind(("127.0.0.1", 0))
        port: int = claimed.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], port: int, probe: Probe = Probe()) -> Iterator[RunningServer]:
    """Run a server, from the moment it is ready to the end of the block, which no process of it outlives.

    Its output goes to a temporary file, as a service manager would keep it.

    Raises:
        ServerEndedError: it ended by itself, or was not ready in time; with the end of its output.
    """
    with tempfile.TemporaryFile("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(process, url, probe, begun)
            yield RunningServer(url, process.pid, time.monotonic() - begun)
        finally:
            status = process.poll()
            _stop(process)
            if status is not None:
                raise ServerEndedError(f"{command} ended with status {status}: {_end_of(log)}")


def environment() -> dict[str, str]:
    """Keep `OOD_*` settings of the shell out of what is measured, and this folder importable, before what was so."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("OOD_")}
    folders = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return ours | {"PYTHONPATH": os.pathsep.join(folders)}


def _await_ready(process: "subprocess.Popen[bytes]", url: str, probe: Probe, begun: float) -> None:
    with httpx.Client(base_url=url, timeout=START_TIMEOUT_S) as client:
        while not _is_ready(client, probe):
            if process.poll() is not None or time.monotonic() - begun > START_TIMEOUT_S:
                raise ServerEndedError(f"{process.args!r} is not ready after {time.monotonic() - begun:.0f} s")
            time.sleep(POLL_S)


def _is_ready(client: httpx.Client, probe: Probe) -> bool:
    try:
        return probe.send(client).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):  # whom it started, and it itself if it did not end
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + STOP_TIMEOUT_S
    while session_is_alive(process.pid) and time.monotonic() < until:  # a signal is not waited for
        time.sleep(POLL_S)


def _end_of(log: IO[str]) -> str:
    log.seek(0)
    return log.read()[-_LOG_TAIL:]
