"""Our server beside a plain FastAPI server, in turns on the same machine: throughput, latency, start-up, memory.

They serve the same bundle at their defaults and get the same JPEG images over keep-alive connections. Every round
starts them anew; the load generator shares the cores with them.
"""

import argparse
import itertools
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.conditions import conditions
from benchmarks.load import http_post, run_load
from benchmarks.processor import ProcessorTimes, ProcessorUse
from benchmarks.rounds import Measured, Round, Start, table
from benchmarks.servers import RunningServer, free_port, ood_serve, plain_fastapi, running
from model_store.bundle import read_manifest
from model_store.store import SHIPPED, BundleRef, Store
from training import encode
from training.datasets import load_set

OURS = "energy-ood"
IMAGES = Path(__file__).parents[1] / "tests" / "data" / "images"
IMAGE_SET = "cifar10/test"
JPEG_QUALITY = 90
IMAGES_PER_FORM = 64
FORMS = 10
WARM_UP_S = 1.0
QUIET_CORES = 0.1
ATTEMPTS = 10
"""How often a load is repeated while other processes keep more than QUIET_CORES busy; the last one counts anyway."""
SOAK_CONNECTIONS = 64
SOAK_SAMPLES = 20


@dataclass(frozen=True)
class Scenario:
    """A load: `requests` sent in turn over so many connections, each of so many images."""

    name: str
    connections: int
    images_per_request: int
    requests: Sequence[bytes]


@dataclass(frozen=True)
class Contender:
    """A server that is measured: the command that runs it, given a port and a cache folder, and the loads it gets."""

    name: str
    command: Callable[[int, str], list[str]]
    scenarios: Sequence[Scenario]


@dataclass(frozen=True)
class Soak:
    """Memory over many requests: (requests sent, resident MiB), the first before any."""

    rss_mib: list[tuple[int, float]]
    images_per_s: float
    failures: dict[str, int]

    def __str__(self) -> str:
        samples = ", ".join(f"{mib:,.0f} after {sent:,}" for sent, mib in self.rss_mib)
        failed = sum(self.failures.values())
        return f"MiB resident after so many requests: {samples}; {self.images_per_s:,.0f} images/s, {failed} failed"


def single_images(jpegs: Sequence[bytes]) -> list[Scenario]:
    """Return the loads that both servers get: one image a request, alone and from many clients."""
    requests = [http_post("/predict", "image/jpeg", jpeg) for jpeg in jpegs]
    return [Scenario(f"{n} connection{'s' if n > 1 else ''}", n, 1, requests) for n in (1, 64)]


def forms(jpegs: Sequence[bytes]) -> Scenario:
    """Return the load of many images a request, which the plain server does not take."""
    endless = itertools.cycle(jpegs)
    requests = [_form([next(endless) for _ in range(IMAGES_PER_FORM)]) for _ in range(FORMS)]
    return Scenario(f"forms of {IMAGES_PER_FORM}, 4 connections", 4, IMAGES_PER_FORM, requests)


def _form(jpegs: Sequence[bytes]) -> bytes:
    files = [("images", ("image.jpg", jpeg, "image/jpeg")) for jpeg in jpegs]
    request = httpx.Request("POST", "http://benchmark/predict", files=files)
    return http_post("/predict", request.headers["content-type"], request.read())


def encoded_images(model: str) -> list[bytes]:
    """Return in-distribution test images of the model's size, as JPEG."""
    preprocess = read_manifest(Store(SHIPPED).resolve(BundleRef.parse(model))).preprocess
    return [encode.jpeg(image, JPEG_QUALITY) for image in load_set(IMAGE_SET, IMAGES, preprocess, None).images]


def contenders(model: str, jpegs: Sequence[bytes]) -> tuple[Contender, ...]:
    """Return what is compared; ours once more on the plain server's runtime, to tell what comes from batching alone."""
    single, all_loads = single_images(jpegs), [*single_images(jpegs), forms(jpegs)]
    plain, ours = ["--model", model], ["--models", model, "--cache-dir"]
    return (
        Contender("plain FastAPI", lambda port, _: plain_fastapi(port, *plain), single),
        Contender(
            f"{OURS}, eager PyTorch",
            lambda port, cache: ood_serve(port, *ours, cache, "--runtime", "torch-eager"),
            all_loads,
        ),
        Contender(OURS, lambda port, cache: ood_serve(port, *ours, cache), all_loads),
    )


def compare(compared: Sequence[Contender], rounds: int, seconds: float) -> list[Round]:
    """Measure the servers in turns."""
    measured = []
    for number in range(1, rounds + 1):
        for contender in compared:
            measured.append(one_round(contender, seconds))
            print(f"round {number} of {rounds}: {measured[-1]}", flush=True)
    return measured


def one_round(contender: Contender, seconds: float) -> Round:
    """Start a server with an empty cache, then again with what that left in it, and load it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as cache:
        command = contender.command(port, cache)
        with running(command, port) as server:
            first_start = _start(server)
        with running(command, port) as server:
            start = _start(server)
            loads = {scenario.name: _measure(server, scenario, seconds) for scenario in contender.scenarios}
            return Round(contender.name, first_start, start, loads, round(server.rss_mib(), 1))


def _start(server: RunningServer) -> Start:
    return Start(round(server.start_s, 2), round(server.rss_mib(), 1))


def _measure(server: RunningServer, scenario: Scenario, seconds: float) -> Measured:
    """Load a server, and again as long as other processes disturb it, which leaves the choice to no figure of ours."""
    _load(server, scenario, WARM_UP_S)
    for _ in range(ATTEMPTS):
        measured = _load(server, scenario, seconds)
        if measured.cores.others <= QUIET_CORES:
            break
    return measured


def _load(server: RunningServer, scenario: Scenario, seconds: float) -> Measured:
    before = ProcessorTimes.now(server.pid)
    outcome = run_load(server.url, scenario.requests, connections=scenario.connections, seconds=seconds)
    cores = ProcessorUse.between(before, ProcessorTimes.now(server.pid))
    return Measured.of(outcome, scenario.images_per_request, cores)


def soak(server: RunningServer, jpegs: Sequence[bytes], requests: int) -> Soak:
    """Send many requests of one image, and look at the server's memory on the way."""
    single = [http_post("/predict", "image/jpeg", jpeg) for jpeg in jpegs]
    sent, samples, failures, seconds = 0, [(0, round(server.rss_mib(), 1))], Counter[str](), 0.0
    while sent < requests:
        step = min(math.ceil(requests / SOAK_SAMPLES), requests - sent)
        outcome = run_load(server.url, single, connections=SOAK_CONNECTIONS, max_requests=step)
        sent, seconds = sent + step, seconds + outcome.seconds
        failures.update(outcome.failures)
        samples.append((sent, round(server.rss_mib(), 1)))
    return Soak(samples, round(requests / seconds, 1), dict(failures))


def describe(server: RunningServer) -> dict[str, Any]:
    """Return what a server of ours says it serves."""
    served: dict[str, Any] = httpx.get(f"{server.url}/models").raise_for_status().json()["models"][0]
    return {key: served[key] for key in ("name", "version", "sha256", "runtime")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit status, 1 if any request failed."""
    options = _parser().parse_args(arguments)
    jpegs, port = encoded_images(options.model), free_port()
    results: dict[str, Any] = {"conditions": conditions("benchmarks.serving")}
    with running(ood_serve(port, "--models", options.model), port) as server:
        results["model"] = describe(server)
        soaked = soak(server, jpegs, options.soak)
    rounds = compare(contenders(options.model, jpegs), options.rounds, options.seconds)
    results |= {"rounds": [asdict(entry) for entry in rounds], "soak": asdict(soaked)}
    print(f"\n{table(rounds)}\n\n{soaked}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    failed = sum(entry.failures for entry in rounds) + sum(soaked.failures.values())
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serving", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server has its turn")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each load lasts")
    parser.add_argument(
        "--soak", type=int, default=1000, help="requests over which memory is watched, before the rounds"
    )
    parser.add_argument("--out", type=Path, help="where to write all figures and their conditions, as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
