"""In what order an engine has batches computed and hands them out, on a device made of a lock and a clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from live import BUNDLE, wait_until

from model_store.bundle import Bundle, read_manifest
from model_store.networks import NetworkOutput
from model_store.predictor import CalibratedScore, Predictor, Scorer
from model_store.scores import NegativeEnergy
from service.engine import LocalEngine
from service.errors import EngineDiedError
from service.metrics import Metrics

BATCH_S = 0.05
IMAGE = np.zeros((32, 32, 3), np.uint8)


class Device:
    """Computes one batch after another, each in BATCH_S; or, where none may be in flight, in `start`."""

    name = "device"

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.events: list[str] = []
        self.open = Event()
        self.open.set()
        self.broken = False
        self._free_at = 0.0

    def start(self, images: np.ndarray) -> Any:
        """Begin a batch."""
        if self.broken:
            raise RuntimeError("the device is gone")
        self.events.append("start")
        self._free_at = max(self._free_at, time.monotonic()) + BATCH_S
        if not self.in_flight:
            self._wait(self._free_at)
        return self._free_at, len(images)

    def finish(self, ticket: Any) -> NetworkOutput:
        """Wait for a batch."""
        at, images = ticket
        assert self.open.wait(30)
        self._wait(at)
        self.events.append("computed")
        return NetworkOutput(torch.arange(10.0).repeat(images, 1), torch.zeros(images, 4))

    @staticmethod
    def _wait(until: float) -> None:
        time.sleep(max(0.0, until - time.monotonic()))


class Rig(NamedTuple):
    """An engine that is warm, its device, which has noted nothing since, and its metrics."""

    engine: LocalEngine
    device: Device
    metrics: Metrics

    def ask(self, images: int = 1) -> Any:
        future = self.engine.submit([IMAGE] * images, time.monotonic() + 60)
        future.add_done_callback(lambda _: self.device.events.append("answered"))
        return future


@contextmanager
def rig(in_flight: int, *, stall_s: float = 30.0) -> Iterator[Rig]:
    manifest, device, metrics = read_manifest(BUNDLE), Device(in_flight), Metrics(["/predict"])
    score = CalibratedScore(NegativeEnergy(), np.arange(100, dtype=np.float32), np.float32(5))
    predictor = Predictor(Scorer(device, manifest.preprocess, 1.0), {"negative_energy": score})
    bundle = Bundle(folder=Path(), manifest=manifest, sha256="", predictor=predictor)
    engine = LocalEngine(bundle, metrics.model(manifest), max_batch_size=1, max_queue_images=1024, stall_s=stall_s)
    engine.start()
    device.events.clear()
    try:
        yield Rig(engine, device, metrics)
    finally:
        device.open.set()
        engine.close()


def queued(rig: Rig, requests: int) -> list[Any]:
    """Queue so many requests behind a batch that the device is held at."""
    rig.device.open.clear()
    first = rig.ask()
    wait_until(lambda: "start" in rig.device.events)
    futures = [first, *(rig.ask() for _ in range(requests - 1))]
    rig.device.open.set()
    return futures


def test_the_next_batch_is_computed_while_the_one_before_is_handed_out() -> None:
    with rig(in_flight=1) as running:
        for future in queued(running, 3):
            future.result(10)
        assert running.device.events == [
            *("start", "computed"),
            *("start", "answered", "computed"),
            *("start", "answered", "computed", "answered"),
        ]


def test_what_computes_in_start_is_handed_out_before_the_next() -> None:
    with rig(in_flight=0) as running:
        for future in queued(running, 3):
            future.result(10)
        assert running.device.events == 3 * ["start", "computed", "answered"]


def test_two_batches_travel_where_they_can() -> None:
    with rig(in_flight=2) as running:
        for future in queued(running, 4):
            future.result(10)
        # The first was taken before the others came.
        assert running.device.events[:1] == ["start"]
        waiting, most = 0, 0
        for event in running.device.events:
            waiting += {"start": 1, "computed": -1, "answered": 0}[event]
            most = max(most, waiting)
        assert most == 2


def test_a_device_that_breaks_at_the_next_batch_takes_no_answer_with_it() -> None:
    with rig(in_flight=1) as running:
        running.device.open.clear()
        first = running.ask()
        wait_until(lambda: "start" in running.device.events)
        second = running.ask()
        running.device.broken = True
        running.device.open.set()
        assert len(first.result(10).results) == 1
        with pytest.raises(EngineDiedError):
            second.result(10)
        assert running.engine.health == "died"


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_a_batch_takes_the_time_of_its_own(in_flight: int) -> None:
    """Not that of the one before it on the device, in the metrics as in the search for a device that hangs."""
    with rig(in_flight, stall_s=1.7 * BATCH_S) as running:
        before = _batch_seconds(running.metrics)
        begun = time.monotonic()
        futures, seen = [running.ask() for _ in range(12)], set()
        while not futures[-1].done():
            seen.add(running.engine.health)
            time.sleep(0.002)
        wall = time.monotonic() - begun
        assert seen == {"ready"}
        assert 12 * BATCH_S <= _batch_seconds(running.metrics) - before <= wall + 0.005


def _batch_seconds(metrics: Metrics) -> float:
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "ood_batch_seconds_sum")
