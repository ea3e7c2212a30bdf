"""Load on an HTTP server in a closed loop, by wrk: each connection asks again as soon as it is answered."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_suffix(".lua")
TIMEOUT_S = 60
"""wrk counts what takes longer as an error; slow servers at 64 connections take seconds."""
GRACE_S = 120.0
"""How much longer than it was told wrk may run."""


class WrkError(Exception):
    """wrk is not there, or ended without figures."""


@dataclass(frozen=True)
class Closed:
    """What wrk met: `answered` with status 200, their latencies, and all else in `failures`, by status or cause.

    `seconds` last from the first request to the last answer; what is still asked when wrk ends does not count.
    Latencies are wrk's own, of all answers: it adds the requests that a connection would have sent at its usual pace
    while it waited for a slow answer (coordinated omission).
    """

    answered: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failures: dict[str, int]

    @property
    def requests_per_s(self) -> float:
        """Answers of status 200 a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @classmethod
    def read(cls, line: str) -> "Closed":
        """Read what wrk.lua writes at the end."""
        found = json.loads(line)
        refused = sum(count for name, count in found["failures"].items() if name.isdigit())
        return cls(answered=found.pop("answers") - refused, **found)


def run_wrk(url: str, requests: Sequence[bytes], *, connections: int, seconds: float, threads: int = 1) -> Closed:
    """Send whole HTTP requests in turn over so many connections; `seconds` are rounded up to whole ones.

    Raises:
        WrkError: wrk is not installed, or ended without figures.
    """
    with tempfile.NamedTemporaryFile(suffix=".requests") as file:
        for request in requests:
            file.write(b"%d\n%b" % (len(request), request))
        file.flush()
        whole_s = max(1, -int(-seconds // 1))
        command = [
            *(find_wrk(), "--script", SCRIPT, "--threads", threads, "--connections", connections),
            *("--duration", f"{whole_s}s", "--timeout", f"{TIMEOUT_S}s", url, "--", file.name),
        ]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=whole_s + GRACE_S, check=False
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"answers"')]
    if done.returncode or not lines:
        raise WrkError(f"wrk ended with status {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    return Closed.read(lines[-1])


def find_wrk() -> str:
    """Return wrk's path.

    Raises:
        WrkError: it is not installed; how to is said.
    """
    found = shutil.which("wrk")
    if found is None:
        raise WrkError("wrk is not installed: apt-get install wrk, or brew install wrk, or https://github.com/wg/wrk")
    return found


def wrk_version() -> str:
    """Return wrk's version, as it says it; it has no flag that says it alone."""
    said = subprocess.run([find_wrk(), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"^wrk (?:debian/)?(\S+)", said)
    return found[1] if found else "unknown"
