"""Servers that really run, and what tests ask of them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any, NamedTuple

import httpx

from model_store.store import SHIPPED, BundleRef, Store
from service.app import create_app
from service.listener import bind
from service.server import Server
from service.settings import Settings
from service.state import State

SERVE = Path(sys.executable).parent / "ood-serve"
BUNDLE = Store(SHIPPED).resolve(BundleRef("cifar10", 1))
"""The bundle that is served unless another is named: one score, so that a reply has just that."""
VERSION = int(BUNDLE.name)
MODEL = f'model="cifar10",version="{VERSION}"'


class Running(NamedTuple):
    """A server in this process."""

    url: str
    state: State
    server: Server


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    app = create_app(settings)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(app, settings, "listening")
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield Running(f"http://127.0.0.1:{port}", app.state.service, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Gate:
    """Holds every forward pass until it is opened; or breaks it."""

    def __init__(self) -> None:
        self.open = Event()
        self.entered = Event()
        self.broken = False
        self.batches: list[int] = []

    def close(self) -> None:
        """Hold the next forward pass, and begin to count anew."""
        self.entered.clear()
        self.batches.clear()
        self.open.clear()

    def install(self, runtime: Any) -> None:
        """Stand between an engine and its runtime."""
        start = runtime.start

        def gated(images: Any) -> Any:
            self.batches.append(len(images))
            self.entered.set()
            assert self.open.wait(30)
            if self.broken:
                raise RuntimeError("the device is gone")
            return start(images)

        runtime.start = gated


class Process(NamedTuple):
    """A server in a process of its own, and the file of its log."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path
    greeting: str

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def serving(
    log: Path, cache_dir: Path, *flags: str, command: tuple[str, ...] = (str(SERVE),), **environment: str
) -> Iterator[Process]:
    """Run a server as a process, from its greeting on; it is killed at the end."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", "--max-batch-size", "4", *flags],
            env=os.environ | {"OOD_CACHE_DIR": str(cache_dir), "OOD_MODELS": f"cifar10@{VERSION}"} | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("pages:"):
                break
        found = re.search(r" on (http://\S+)", "".join(lines))
        assert found, log.read_text()
        yield Process(found[1], process, log, "".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Poll, since what is awaited happens in another thread or process."""
    limit = monotonic() + seconds
    while not condition():
        assert monotonic() < limit, "it never happened"
        sleep(0.005)


def samples(url: str) -> dict[str, float]:
    """Return every sample of /metrics by its name and labels as exposed."""
    return samples_of(httpx.get(f"{url}/metrics").raise_for_status().text)


def samples_of(text: str) -> dict[str, float]:
    """Return every sample of an exposition by its name and labels."""
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
