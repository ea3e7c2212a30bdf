"""Programs that run in the background: each ready when its probe says so, its output in a file, stopped by SIGTERM."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
_LOG_TAIL = 2000
"""Characters of a program's last words in an error."""


class MissingProgramError(Exception):
    """A program that is needed is not installed."""


class PortTakenError(Exception):
    """Somebody listens already where a program should."""


class ProgramEndedError(Exception):
    """A program ended before it was told to, or never became ready."""


def find(*names: str) -> str:
    """Return the path of a program that has one of these names.

    Raises:
        MissingProgramError: it is not installed; how to is said.
    """
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise MissingProgramError(
            f"{names[0]} is not installed: apt-get install prometheus prometheus-alertmanager, "
            "or https://prometheus.io/download"
        )
    return found


def require_free(host: str, port: int) -> None:
    """Check that nobody listens at an address.

    Raises:
        PortTakenError: somebody does, or it is not this machine's.
    """
    with socket.socket() as claimed:
        claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            claimed.bind((host, port))
        except OSError as err:
            raise PortTakenError(
                f"port {port} can't be had ({err.strerror}); choose another, or stop who has it (Debian starts "
                "Prometheus and Alertmanager when they are installed: "
                "systemctl disable --now prometheus prometheus-alertmanager)"
            ) from err


@contextmanager
def running(
    command: Sequence[str], *, ready: str, log: Path, environment: Mapping[str, str] = os.environ
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program from the moment at which the URL `ready` answers with 200 to the end of the block.

    It has a session of its own, so that Ctrl-C at a terminal reaches its parent alone, who ends it in order.

    Raises:
        ProgramEndedError: it ended by itself, or was not ready in time; with the end of its output.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        _await_ready(process, ready, log)
        yield process
    finally:
        _stop(process)


def _await_ready(process: "subprocess.Popen[bytes]", ready: str, log: Path) -> None:
    limit = time.monotonic() + START_TIMEOUT_S
    while not answers(ready):
        if process.poll() is not None or time.monotonic() > limit:
            what = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
            raise ProgramEndedError(f"{log.stem} {what}: {log.read_text()[-_LOG_TAIL:]}")
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Whether a URL answers with 200."""
    try:
        return httpx.get(url, timeout=START_TIMEOUT_S).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    process.kill()
    process.wait()
