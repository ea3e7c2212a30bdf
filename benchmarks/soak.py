"""Memory of our server over many requests of one JPEG each, over 64 connections, in one process."""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.conditions import conditions
from benchmarks.http_requests import as_body, jpegs, sample_images
from benchmarks.servers import RunningServer, free_port, ood_serve, running
from benchmarks.wrk import run_wrk

CONNECTIONS = 64


@dataclass(frozen=True)
class Soak:
    """Memory over many requests: (answered, resident MiB), the first before any."""

    memory_mib: list[tuple[int, float]]
    failures: dict[str, int]

    def __str__(self) -> str:
        samples = ", ".join(f"{mib:,.0f} after {answered:,}" for answered, mib in self.memory_mib)
        return f"MiB resident after so many requests: {samples}; {sum(self.failures.values())} failed"


def soak(server: RunningServer, requests: Sequence[bytes], answers: int, step_s: float) -> Soak:
    """Load a server until it has answered so often, and look at its memory every `step_s`."""
    answered, samples, failures = 0, [(0, round(server.memory_mib(), 1))], Counter[str]()
    while answered < answers and not failures:
        found = run_wrk(server.url, requests, connections=CONNECTIONS, seconds=step_s)
        answered += found.answered
        failures.update(found.failures)
        samples.append((answered, round(server.memory_mib(), 1)))
    return Soak(samples, dict(failures))


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, print; return the exit status, 1 if a request failed or memory grew by more than was allowed."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship")
    parser.add_argument("--requests", type=int, default=100_000, help="after how many answers it ends")
    parser.add_argument("--step-seconds", type=float, default=20, help="how long between looks at the memory")
    parser.add_argument("--growth-mib", type=float, default=64, help="growth after the first step that is allowed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as cache:
        port = free_port()
        with running(ood_serve(port, "--models", options.model, "--cache-dir", str(Path(cache))), port) as server:
            found = soak(server, as_body(jpegs(sample_images())), options.requests, options.step_seconds)
    where = conditions("benchmarks.soak")
    print(f"{where['command']}, {where['date']}, {where['cores']} cores of {where['cpu']}\n{found}")
    grown = found.memory_mib[-1][1] - found.memory_mib[1][1]
    return 1 if found.failures or grown > options.growth_mib else 0


if __name__ == "__main__":
    raise SystemExit(main())
