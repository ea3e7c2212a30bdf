"""The engine process's end of the workers' connections: their requests into the queues, the answers back."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, cast

from service.batcher import ExpiredError, Waited
from service.counts import Counts, Held
from service.engine import LocalEngine
from service.engine_protocol import Engine, Verdict
from service.errors import ServiceError, late
from service.metrics import Metrics
from service.processes.frames import FrameReader, Kind, pack
from service.processes.messages import (
    Answered,
    Shape,
    Status,
    Welcome,
    WelcomedModel,
    pack_answer,
    pack_refusal,
    pack_statuses,
    unpack_ask,
)
from service.served_models import FailedModel, Models

FLUSH_S = 1.0
"""How long a scrape waits for what workers have counted; one that takes longer than this is stuck."""
MAX_UNREAD_BYTES = 2**16
"""A worker that has so much of ours unread is told no news until it reads again."""
Answer = Future[Waited[Verdict]]
log = logging.getLogger(__name__)


class Hub:
    """All workers' connections. `answered` is called on any thread, all else on the event loop's."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self.engines = {at: entry for at, entry in enumerate(models.entries) if isinstance(entry, LocalEngine)}
        self.shapes = {at: Shape.of(engine.bundle.manifest) for at, engine in self.engines.items()}
        self.metrics = metrics
        self._places = len(models.entries)
        self.welcome = Welcome(models=[_welcomed(entry) for entry in models.entries]).model_dump_json().encode()
        self.ends: set[WorkerEnd] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._answers: deque[tuple[WorkerEnd, int, int, Answer]] = deque()
        self._awake = False
        metrics.http_workers.set_function(lambda: len(self.ends))
        metrics.pending_bytes.set_function(lambda: sum(end.held.pending_bytes for end in self.ends))
        metrics.waiting_requests.set_function(lambda: sum(end.held.waiting_requests for end in self.ends))

    def statuses(self) -> bytes:
        """Return the payload of a STATUS: how every model does now."""
        return pack_statuses([_status(self.engines.get(place)) for place in range(self._places)])

    def tell_statuses(self) -> None:
        """Tell every worker how the models do."""
        payload = self.statuses()
        for end in self.ends:
            if end.unread_bytes < MAX_UNREAD_BYTES:
                end.send(Kind.STATUS, 0, [payload])

    def answered(self, end: "WorkerEnd", number: int, model: int, answer: Answer) -> None:
        """Send an answer with all others that are there by the time that the loop turns."""
        self._answers.append((end, number, model, answer))
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self.send_answers)

    def send_answers(self) -> None:
        """Send every answer that is there, in one write a worker."""
        self._awake = False
        while self._answers:
            end, number, model, answer = self._answers.popleft()
            if end.forget(number):
                end.send(*self._packed(number, model, answer))

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes longer than a turn of the loop."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def scrape(self, end: "WorkerEnd", number: int) -> None:
        """Have every worker tell what it has counted, then answer with all metrics."""
        await self._hear_all()
        end.send(Kind.METRICS, number, [await self.metrics.exposition()])

    async def watch(self, end: "WorkerEnd", number: int, name: str) -> None:
        """Have every worker tell what it has counted, then answer with what is watched of a model."""
        await self._hear_all()
        end.send(Kind.WATCHED, number, [(await self.metrics.watched(name)).model_dump_json().encode()])

    async def close(self) -> None:
        """Send what is to be sent and hang up."""
        self.send_answers()
        ends = list(self.ends)
        for end in ends:
            end.hang_up()
        if ends:
            await asyncio.wait([end.closed for end in ends], timeout=FLUSH_S)

    async def _hear_all(self) -> None:
        told = [end.flush() for end in self.ends]
        await asyncio.wait(told, timeout=FLUSH_S)

    def _packed(self, number: int, model: int, answer: Answer) -> tuple[Kind, int, Sequence[bytes]]:
        engine = self.engines[model]
        try:
            answered = Answered(answer.result(), engine.depth, engine.retry_after_s)
            return Kind.VERDICTS, number, pack_answer(answered, self.shapes[model])
        except ExpiredError:
            return Kind.REFUSAL, number, [pack_refusal(late(engine.name))]
        except ServiceError as err:
            return Kind.REFUSAL, number, [pack_refusal(err)]
        except Exception as err:
            log.exception("an answer could not be given", extra={"model": engine.name})
            return Kind.REFUSAL, number, [pack_refusal(err)]


class WorkerEnd(asyncio.Protocol):
    """One worker's connection. When it ends, what the worker has queued is cancelled.

    A worker that ends in good order has written all captured images, and said so; those of a killed one are lost.
    """

    def __init__(self, hub: Hub) -> None:
        loop = asyncio.get_running_loop()
        self.held = Held()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._hub = hub
        self._reader = FrameReader()
        self._waiting: dict[int, Answer] = {}
        self._flushes: dict[int, asyncio.Future[None]] = {}
        self._numbers = count(1)
        self._outbox: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @property
    def unread_bytes(self) -> int:
        """What the worker has not read."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def send(self, kind: Kind, number: int, parts: Sequence[bytes]) -> None:
        """Send with whatever else is sent in this turn of the loop, in one write."""
        if not self._outbox:
            self._loop.call_soon(self._write)
        self._outbox += [pack(kind, number, sum(map(len, parts))), *parts]

    def forget(self, number: int) -> bool:
        """Stop waiting for an answer; return whether the worker still does."""
        return self._waiting.pop(number, None) is not None

    def flush(self) -> "asyncio.Future[None]":
        """Ask for what was counted; the future is done when it is there, or the worker gone."""
        told = self._loop.create_future()
        number = next(self._numbers)
        self._flushes[number] = told
        self.send(Kind.FLUSH, number, [])
        return told

    def hang_up(self) -> None:
        """Send what is to be sent and close."""
        self._write()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say which models there are."""
        self._transport = cast(asyncio.Transport, transport)
        self._hub.ends.add(self)
        self.send(Kind.STATUS, 0, [self._hub.statuses()])
        self.send(Kind.WELCOME, 0, [self._hub.welcome])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Cancel what the worker has queued: nobody waits for it any more; count the captured images lost with it."""
        self.closed.set_result(None)
        self._hub.ends.discard(self)
        self._hub.metrics.capture.dropped("killed", self.held.unwritten_images)
        abandoned, self._waiting = self._waiting, {}
        for answer in abandoned.values():
            answer.cancel()
        for told in self._flushes.values():
            if not told.done():
                told.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Do what the worker says."""
        for kind, number, payload in self._reader.feed(data):
            match kind:
                case Kind.ASK:
                    self._ask(number, payload)
                case Kind.CANCEL:
                    if answer := self._waiting.pop(number, None):
                        answer.cancel()
                case Kind.COUNTS:
                    self._take_counts(number, payload)
                case Kind.SCRAPE:
                    self._hub.begin(self._hub.scrape(self, number))
                case Kind.WATCH:
                    self._hub.begin(self._hub.watch(self, number, payload.decode()))

    def _ask(self, number: int, payload: bytes) -> None:
        asked = unpack_ask(payload, self._hub.shapes)
        engine = self._hub.engines[asked.model]
        try:
            answer = engine.submit(list(asked.pixels), asked.deadline, all_scores=asked.all_scores, logits=asked.logits)
        except ServiceError as err:
            self.send(Kind.REFUSAL, number, [pack_refusal(err)])
            return
        self._waiting[number] = answer
        answer.add_done_callback(partial(self._hub.answered, self, number, asked.model))

    def _take_counts(self, number: int, payload: bytes) -> None:
        if payload:
            counts = Counts.model_validate_json(payload)
            self.held = counts.held
            self._hub.metrics.add(counts)
        told = self._flushes.pop(number, None)
        if told is not None and not told.done():
            told.set_result(None)

    def _write(self) -> None:
        if self._outbox and self._transport is not None and not self.closed.done():
            self._transport.write(b"".join(self._outbox))
        self._outbox.clear()


def _status(engine: LocalEngine | None) -> Status:
    return Status("died", 0, 0) if engine is None else Status(engine.health, engine.depth, engine.retry_after_s)


def _welcomed(entry: Engine | FailedModel) -> WelcomedModel:
    if isinstance(entry, FailedModel):
        return WelcomedModel(ref=str(entry.ref), reason=entry.reason)
    bundle = entry.bundle
    return WelcomedModel(
        ref=entry.name,
        manifest=bundle.manifest,
        sha256=bundle.sha256,
        folder=bundle.folder.absolute(),
        calibration_counts=dict(bundle.calibration_counts),
        runtime=entry.runtime_name,
    )
