"""An HTTP worker's view of an engine, over a socket pair, against a real engine: what it answers and what it counts."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pytest
import torch
from live import BUNDLE, MODEL, VERSION, Gate, samples_of

import service.processes.hub
from model_store.bundle import Bundle, load_bundle
from model_store.networks import NetworkOutput
from service.counts import Held
from service.engine import LocalEngine
from service.engine_protocol import Pixels
from service.errors import DeadlineExceededError, EngineDiedError, NotReadyError, QueueFullError
from service.metrics import Metrics
from service.processes.frames import Kind
from service.processes.hub import Hub, WorkerEnd
from service.processes.link import EngineLink
from service.processes.remote_engine import RemoteEngine, remote_models
from service.processes.tally import CaptureTally, Tally
from service.schemas import WatchReply
from service.served_models import Models
from service.settings import Settings

NAME = f"cifar10@{VERSION}"
IMAGES = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
SETTINGS = Settings(max_batch_size=2, max_queue_images=4, max_images_per_request=4, stall_s=30)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(BUNDLE, device=torch.device("cpu"))


@dataclass
class Side:
    """The engine's process, without the process."""

    engine: LocalEngine
    metrics: Metrics
    gate: Gate
    held: Held = field(default_factory=Held)
    tallies: list[Tally] = field(default_factory=list)


@pytest.fixture
def side(bundle: Bundle) -> Iterator[Side]:
    runtime = bundle.predictor.scorer.runtime
    metrics, gate, start = Metrics(["/predict"]), Gate(), runtime.start
    engine = LocalEngine(
        bundle,
        metrics.model(bundle.manifest),
        max_batch_size=SETTINGS.max_batch_size,
        max_queue_images=SETTINGS.max_queue_images,
        stall_s=SETTINGS.stall_s,
    )
    engine.start()
    gate.install(runtime)
    gate.open.set()
    yield Side(engine, metrics, gate)
    gate.open.set()
    engine.close()
    runtime.start = start


@asynccontextmanager
async def connected(
    side: Side, workers: int = 1, beside: Sequence[LocalEngine] = ()
) -> AsyncIterator[tuple[Hub, list[EngineLink], list[RemoteEngine]]]:
    """Connect workers; hang up at the end, so that no request of theirs is left."""
    loop = asyncio.get_running_loop()
    hub, links, engines = Hub(Models((side.engine, *beside)), side.metrics), [], []
    for _ in range(workers):
        ours, theirs = socket.socketpair()
        await loop.connect_accepted_socket(lambda: WorkerEnd(hub), theirs)
        tally = Tally(["/predict"], lambda: side.held, CaptureTally())
        _, link = await loop.create_unix_connection(lambda tally=tally: EngineLink(counts_of(tally)), sock=ours)
        await link.welcome
        engines += cast(tuple[RemoteEngine, ...], remote_models(link, tally, SETTINGS).entries)
        side.tallies.append(tally)
        links.append(link)
    try:
        yield hub, links, engines
    finally:
        for link in links:
            await link.close()


def counts_of(tally: Tally) -> Callable[[], bytes]:
    def take() -> bytes:
        counts = tally.take()
        return b"" if counts is None else counts.model_dump_json().encode()

    return take


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something that another thread does has happened."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def hold(side: Side, engine: RemoteEngine, images: list[Pixels]) -> "asyncio.Task[object]":
    """Ask for images and have the device hold the first batch of them."""
    side.gate.close()
    task = asyncio.ensure_future(engine.predict(images, soon()))
    await until(side.gate.entered.is_set)
    return task


def test_verdicts_are_those_of_the_engine_itself(side: Side) -> None:
    """Bit for bit, from two workers at once, with every score and the logits."""

    async def ask() -> None:
        async with connected(side, 2) as (_, _, engines):
            alone = [(await side.engine.predict([i], soon(), all_scores=True, logits=True)).results[0] for i in IMAGES]
            asked = [
                engines[row % 2].predict([i], soon(), all_scores=True, logits=True) for row, i in enumerate(IMAGES)
            ]
            found = []
            for two in range(0, 8, 2):  # no more at once than the queue holds
                found += [waited.results[0] for waited in await asyncio.gather(*asked[two : two + 2])]
            for mine, theirs in zip(found, alone, strict=True):
                assert mine[:5] == pytest.approx(theirs[:5], abs=1e-4)
                assert mine.scores.keys() == theirs.scores.keys() == {"negative_energy"}
                assert mine.scores["negative_energy"].value == mine.negative_energy
                np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-4)
            plain = (await engines[0].predict(IMAGES[:1], soon())).results[0]
            assert plain == (*alone[0][:5], None, None)  # the same batch size, so the same bits

    asyncio.run(ask())


def test_a_model_is_described_as_the_engine_has_it(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (_, _, (engine,)):
            assert engine.bundle.manifest == side.engine.bundle.manifest
            assert (engine.bundle.sha256, engine.bundle.folder) == (side.engine.bundle.sha256, BUNDLE)
            assert (engine.name, engine.runtime_name) == (side.engine.name, side.engine.runtime_name)
            assert engine.health == "ready"

    asyncio.run(ask())


def test_a_full_queue_refuses_with_the_engines_own_words(side: Side) -> None:
    async def ask() -> None:
        async with connected(side, 2) as (hub, _, (first, second)):
            held = await hold(side, first, IMAGES[:1])
            waiting = asyncio.ensure_future(first.predict(IMAGES[:4], soon()))
            await until(lambda: side.engine.depth == 4)
            side.engine._image_s = 2.5
            with pytest.raises(
                QueueFullError, match=f"queue of {NAME} is full: 4 images wait, 1 more are above the 4"
            ) as refused:
                await second.predict(IMAGES[:1], soon())  # which has not heard of it yet
            assert refused.value.retry_after_s == 10
            hub.tell_statuses()
            await until(lambda: second._status.depth == 4)
            with pytest.raises(QueueFullError, match="try again in 10 s"):
                second.require_room(1)
            side.gate.open.set()
            assert len((await waiting).results) == 4
            await held
            first.require_room(4)  # the answers said that nothing waits any more
            hub.tell_statuses()
            await until(lambda: second._status.depth == 0)
            second.require_room(4)

    asyncio.run(ask())


def test_what_one_worker_asks_is_bounded_even_if_nobody_reads(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (hub, _, (engine,)):
            (end,) = hub.ends
            end._transport.pause_reading()
            asked = [asyncio.ensure_future(engine.predict(IMAGES[:4], soon())) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match=f"queue of {NAME} is full: 8 images wait, 1 more are above the 8"):
                await engine.predict(IMAGES[:1], soon())
            end._transport.resume_reading()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(ask())


def test_what_waits_to_be_sent_is_bounded_though_all_who_asked_have_given_up(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (hub, (link,), (engine,)):
            (end,) = hub.ends
            end._transport.pause_reading()
            refused = 0
            for _ in range(500):  # 6 MB of pixels, of which the socket takes a part
                asked = asyncio.ensure_future(engine.predict(IMAGES[:4], soon()))
                await asyncio.sleep(0)
                asked.cancel()
                (outcome,) = await asyncio.gather(asked, return_exceptions=True)
                refused += isinstance(outcome, QueueFullError)
            assert refused > 0
            assert link.unsent_bytes < 2 * 8 * IMAGES[0].nbytes
            end._transport.resume_reading()
            await until(lambda: link.unsent_bytes == 0)
            assert len((await engine.predict(IMAGES[:4], soon())).results) == 4

    asyncio.run(ask())


def test_images_that_wait_for_one_model_leave_room_for_those_of_another(side: Side, bundle: Bundle) -> None:
    """What is not read yet is the connection's; 8 large images are as much as 392 small ones."""
    spec = bundle.manifest.preprocess.model_copy(update={"height": 224, "width": 224, "resize_to": 224})
    manifest = bundle.manifest.model_copy(update={"name": "large", "preprocess": spec})
    large = LocalEngine(  # it is never started: what it is asked waits
        replace(bundle, manifest=manifest),
        side.metrics.model(manifest),
        max_batch_size=SETTINGS.max_batch_size,
        max_queue_images=SETTINGS.max_queue_images,
        stall_s=SETTINGS.stall_s,
    )

    async def ask() -> None:
        async with connected(side, beside=[large]) as (hub, (link,), (of_small, of_large)):
            (end,) = hub.ends
            end._transport.pause_reading()
            images = [np.zeros((224, 224, 3), np.uint8)] * 4
            waiting = [asyncio.ensure_future(of_large.predict(images, soon())) for _ in range(2)]
            await until(lambda: link.unsent_bytes > 100 * IMAGES[0].nbytes)
            found = asyncio.ensure_future(of_small.predict(IMAGES[:1], soon()))
            await asyncio.sleep(0)
            end._transport.resume_reading()
            assert len((await found).results) == 1
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(ask())


def test_what_waits_past_its_deadline_is_refused_and_counted(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (_, _, (engine,)):
            held = await hold(side, engine, IMAGES[:1])
            deadline = soon(0.05)
            late = asyncio.ensure_future(engine.predict(IMAGES[:1], deadline))
            await until(lambda: side.engine.depth == 1)
            await until(lambda: time.monotonic() > deadline)
            side.gate.open.set()
            with pytest.raises(DeadlineExceededError, match=f"{NAME} had no verdict within the deadline"):
                await late
            await held
        assert side.gate.batches == [1]
        assert dropped(side, "deadline") == 1

    asyncio.run(ask())


def test_what_is_cancelled_never_runs(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (_, links, (engine,)):
            held = await hold(side, engine, IMAGES[:1])
            left = asyncio.ensure_future(engine.predict(IMAGES[:3], soon()))
            await until(lambda: side.engine.depth == 3)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            await links[0].request(Kind.SCRAPE, ())  # by its answer the cancellation has been read, too
            side.gate.open.set()
            await held
            await until(lambda: side.engine.depth == 0)
        assert side.gate.batches == [1]
        assert dropped(side, "client_left") == 1

    asyncio.run(ask())


def test_when_the_engines_process_is_gone_every_waiter_hears_of_it_at_once(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (hub, _, (engine,)):
            held = await hold(side, engine, IMAGES[:1])
            waiting = [asyncio.ensure_future(engine.predict(IMAGES[:1], soon())) for _ in range(3)]
            await until(lambda: side.engine.depth == 3)
            (end,) = hub.ends
            end._transport.abort()
            for task in (held, *waiting):
                with pytest.raises(EngineDiedError, match="a new one is being started"):
                    await task
            assert engine.health == "died"
            with pytest.raises(EngineDiedError):
                engine.require_room(1)
            with pytest.raises(EngineDiedError):
                await engine.predict(IMAGES[:1], soon())

    asyncio.run(ask())


def test_when_a_worker_is_gone_what_it_queued_is_dropped_and_counted(side: Side) -> None:
    async def ask() -> None:
        async with connected(side, 2) as (hub, links, (first, second)):
            held = await hold(side, first, IMAGES[:1])
            lost = [asyncio.ensure_future(second.predict(IMAGES[:1], soon())) for _ in range(3)]
            await until(lambda: side.engine.depth == 3)
            links[1]._transport.abort()
            await until(lambda: len(hub.ends) == 1)
            side.gate.open.set()
            assert len((await held).results) == 1
            assert len((await first.predict(IMAGES[:1], soon())).results) == 1
            await asyncio.gather(*lost, return_exceptions=True)
        assert side.gate.batches == [1, 1]
        assert dropped(side, "client_left") == 3

    asyncio.run(ask())


@pytest.mark.parametrize("fault", ["raises", "returns NaN"])
def test_when_the_runtime_fails_every_waiter_gets_an_answer(side: Side, bundle: Bundle, fault: str) -> None:
    runtime = bundle.predictor.scorer.runtime
    finish = runtime.finish

    async def ask() -> None:
        async with connected(side) as (hub, _, (engine,)):
            running = await hold(side, engine, IMAGES[:1])
            waiting = [asyncio.ensure_future(engine.predict(IMAGES[:1], soon())) for _ in range(3)]
            await until(lambda: side.engine.depth == 3)
            side.gate.broken = fault == "raises"
            if fault == "returns NaN":
                runtime.finish = lambda ticket: NetworkOutput(*(tensor * torch.nan for tensor in finish(ticket)))
            side.gate.open.set()
            for task in (running, *waiting):
                with pytest.raises(EngineDiedError, match=f"the engine of {NAME} died"):
                    await task
            hub.tell_statuses()
            await until(lambda: engine.health == "died")
            with pytest.raises(EngineDiedError):
                engine.require_room(1)

    try:
        asyncio.run(ask())
    finally:
        runtime.finish = finish


def test_a_closed_engine_takes_nothing_more(side: Side) -> None:
    async def ask() -> None:
        async with connected(side) as (hub, _, (engine,)):
            side.engine.close()
            with pytest.raises(NotReadyError, match="the server is stopping"):
                await engine.predict(IMAGES[:1], soon())
            hub.tell_statuses()
            await until(lambda: engine.health == "closed")
            with pytest.raises(NotReadyError, match="the server is stopping"):
                engine.require_room(1)

    asyncio.run(ask())


def test_silence_is_a_stall(side: Side) -> None:
    """The engine's process hangs as a whole: no news come."""

    async def ask() -> None:
        async with connected(side) as (hub, links, (engine,)):
            links[0].heard_at -= SETTINGS.stall_s + 2
            assert engine.health == "stalled"
            hub.tell_statuses()
            await until(lambda: engine.health == "ready")

    asyncio.run(ask())


def test_metrics_are_the_sum_of_what_all_workers_counted_whichever_is_asked(side: Side) -> None:
    async def ask() -> None:
        async with connected(side, 3) as (_, links, engines):
            found = []
            for row, image in enumerate(IMAGES[:6]):
                waited = await engines[row % 3].predict([image], soon())
                engines[row % 3].count_answered(waited.results, {"decode": 0.002, "total": 20.0 * (row + 1)})
                side.tallies[row % 3].count_request("/predict", 200, None)
                found += waited.results
            side.tallies[1].count_request("/no/such/path", 404, "unknown_route")
            side.held = Held(pending_bytes=7, waiting_requests=5)
            links[2].tell_counts()  # as happens from time to time
            texts = [await link.request(Kind.SCRAPE, ()) for link in (links[0], links[1], links[0])]
            for text in texts:
                sums = samples_of(text.decode())
                assert sums['ood_http_requests_total{route="/predict",status="200"}'] == 6
                assert sums['ood_http_requests_total{route="unmatched",status="404"}'] == 1
                assert sums['ood_refused_requests_total{code="unknown_route"}'] == 1
                flagged = sum(verdict.is_ood for verdict in found)
                assert sums[f'ood_images_total{{decision="ood",{MODEL}}}'] == flagged
                assert sums[f'ood_images_total{{decision="in_distribution",{MODEL}}}'] == 6 - flagged
                assert sums[f"ood_p_value_sum{{{MODEL}}}"] == pytest.approx(sum(v.p_value for v in found))
                assert sums[f'ood_p_value_bucket{{le="0.05",{MODEL}}}'] == sum(v.p_value <= 0.05 for v in found)
                threshold = sums[f"ood_threshold{{{MODEL}}}"]
                assert sums[f'ood_negative_energy_bucket{{le="{threshold}",{MODEL}}}'] == flagged
                assert sums[f'ood_negative_energy_bucket{{le="+Inf",{MODEL}}}'] == 6
                stage = 'model="cifar10",stage="{}",version="' + f'{VERSION}"'
                assert sums[f"ood_stage_seconds_sum{{{stage.format('total')}}}"] == pytest.approx(20 * 21)
                total = stage.format("total").replace('model="cifar10",', 'le="30.0",model="cifar10",')
                assert sums[f"ood_stage_seconds_bucket{{{total}}}"] == 1
                assert sums[f"ood_stage_seconds_count{{{stage.format('decode')}}}"] == 6
                assert sums["ood_pending_bytes"] == 3 * 7
                assert sums["ood_waiting_requests"] == 3 * 5
                assert sums["ood_http_workers"] == 3

    asyncio.run(ask())


def test_what_is_watched_is_of_all_workers_and_as_one_process_has_it(side: Side) -> None:
    """Told after every request, in the order of the requests; whichever worker is asked."""

    async def ask() -> None:
        manifest = side.engine.bundle.manifest
        alone = Metrics(["/predict"]).model(manifest)
        async with connected(side, 3) as (_, links, engines):
            for row, image in enumerate(IMAGES[:6]):
                waited = await engines[row % 3].predict([image, image], soon())
                engines[row % 3].count_answered(waited.results, {"total": 0.1})
                alone.answered(waited.results, {"total": 0.1})
                told = await links[(row + 1) % 3].request(Kind.WATCH, (side.engine.name.encode(),))
                found, expected = WatchReply.model_validate_json(told), alone.watched()
                assert found.images == 2 * (row + 1)
                assert found == expected.model_copy(update={"images_per_s": found.images_per_s})

    asyncio.run(ask())


@pytest.mark.parametrize(("flush_s", "connected_still"), [(1000.0, 1), (0.05, 2)])
def test_a_scrape_does_not_wait_for_a_worker_that_goes_or_hangs(
    side: Side, monkeypatch: pytest.MonkeyPatch, flush_s: float, connected_still: int
) -> None:
    monkeypatch.setattr(service.processes.hub, "FLUSH_S", flush_s)

    async def ask() -> None:
        async with connected(side, 2) as (hub, links, _):
            links[1]._transport.pause_reading()
            scraped = asyncio.ensure_future(links[0].request(Kind.SCRAPE, ()))
            await until(lambda: sum(len(end._flushes) for end in hub.ends) == 1)  # that of the other is told
            if connected_still == 1:
                links[1]._transport.abort()
            assert samples_of((await scraped).decode())["ood_http_workers"] == connected_still

    asyncio.run(ask())


def test_captured_images_that_a_worker_has_not_written_are_lost_with_it(side: Side) -> None:
    """As many as it told last; one that ends in good order has written them."""

    def lost() -> float:
        labels = {"reason": "killed"}
        return side.metrics.registry.get_sample_value("ood_capture_dropped_total", labels) or 0.0

    async def ask() -> None:
        before = lost()
        async with connected(side, 2) as (hub, links, _):
            side.held = Held(unwritten_images=3)
            await links[0].request(Kind.SCRAPE, ())  # both have told
            links[0]._transport.abort()
            await until(lambda: len(hub.ends) == 1)
            assert lost() == before + 3
            side.held = Held()
        assert lost() == before + 3

    asyncio.run(ask())


def test_counts_are_taken_once() -> None:
    tally = Tally(["/predict"], Held, CaptureTally())
    assert tally.take() is None
    tally.count_request("/predict", 503, "engine_died")
    counts = tally.take()
    assert counts is not None
    assert counts.requests == [("/predict", 503, 1)]
    assert counts.refused == {"engine_died": 1}
    assert tally.take() is None


def dropped(side: Side, reason: str) -> float:
    labels = {"model": "cifar10", "version": str(VERSION), "reason": reason}
    return side.metrics.registry.get_sample_value("ood_dropped_requests_total", labels) or 0.0
