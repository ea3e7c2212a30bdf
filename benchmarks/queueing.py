"""How many images a second a server judges, and how long they wait in its queue, by how many clients ask at once.

Clients are wrk's connections on the same cores, each of which sends one PNG a request and asks again once answered.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.bundles import IMAGES
from benchmarks.conditions import conditions
from benchmarks.http_requests import http_post
from benchmarks.processor import ProcessorTimes
from benchmarks.servers import RunningServer, free_port, ood_serve, running
from benchmarks.wrk import run_wrk

CLIENTS = (1, 8, 32, 64, 256, 512)
WARM_UP_S = 2.0


class Load(NamedTuple):
    """What so many clients met, and how many cores were busy with other processes meanwhile."""

    clients: int
    images_per_s: float
    queue_ms: float
    other_cores: float
    failures: dict[str, int]


def requests() -> list[bytes]:
    """Return a request for each of the tests' 100 test images of CIFAR-10, the file as it is."""
    files = sorted((IMAGES / "cifar10" / "test").rglob("*.png"))
    return [http_post("/predict", "image/png", file.read_bytes()) for file in files]


def waited(server: RunningServer) -> tuple[float, float]:
    """Return the seconds that requests have waited in the queue since the start, and how many they are."""
    text = httpx.get(f"{server.url}/metrics").raise_for_status().text
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("stage") == "queue"
    }
    return found["ood_stage_seconds_sum"], found["ood_stage_seconds_count"]


def load(server: RunningServer, ready: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Ask for so many seconds."""
    queued_s, count = waited(server)
    begun = ProcessorTimes.now(server.pid)
    met = run_wrk(server.url, ready, connections=clients, seconds=seconds)
    used = begun.until(ProcessorTimes.now(server.pid))
    queued_then_s, count_then = waited(server)
    queue_ms = 1000 * (queued_then_s - queued_s) / (count_then - count)
    return Load(clients, met.requests_per_s, queue_ms, used.others, met.failures)


def table(model: str, clients: Sequence[int], seconds: float) -> str:
    """Measure a bundle, and return what was met as a table, with conditions below it."""
    ready, port = requests(), free_port()
    with running(ood_serve(port, "--models", model), port) as server:
        run_wrk(server.url, ready, connections=clients[0], seconds=WARM_UP_S)
        loads = [load(server, ready, count, seconds) for count in clients]
        memory_mib = server.memory_mib()
    found = conditions("benchmarks.queueing")
    failures = {one.clients: one.failures for one in loads if one.failures}
    return "\n".join(
        (
            _row("clients", [str(one.clients) for one in loads]),
            _row("---", ["---"] * len(loads)),
            _row("images a second", [f"{one.images_per_s:.0f}" for one in loads]),
            _row("mean time in the queue, ms", [f"{one.queue_ms:.1f}" for one in loads]),
            _row("cores busy with other processes", [f"{one.other_cores:.2f}" for one in loads]),
            "",
            f"{model}, {found['cores']} cores of {found['cpu']}, {found['date']}; memory {memory_mib:.0f} MiB; "
            f"answers other than 200: {failures or 'none'}",
        )
    )


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queueing", description=__doc__)
    parser.add_argument("--model", default="cifar10@3")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    options = parser.parse_args(arguments)
    print(table(options.model, options.clients, options.seconds))


if __name__ == "__main__":
    main()
