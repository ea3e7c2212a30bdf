"""The engine behind a real server, with its device held by a gate."""

import asyncio
import gc
import io
import itertools
import math
import socket
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from live import BUNDLE, MODEL, VERSION, Gate, Running, running, samples, wait_until

import model_store.predictor
import service.engine
import service.models
from model_store import images
from model_store.bundle import Bundle, load_bundle
from model_store.predictor import Predictor
from service.engine import batch_sizes, worthwhile
from service.errors import StartError
from service.metrics import Metrics
from service.models import load_models
from service.settings import Settings

Post = Callable[..., httpx.Response]


def post(server: Running, image: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", content=image, headers=headers, timeout=30)


def waiting(server: Running) -> int:
    return int(samples(server.url)[f"ood_queue_images{{{MODEL}}}"])


def test_batch_sizes_grow_by_half_and_end_at_the_largest() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(10) == (1, 2, 3, 4, 6, 8, 10)
    assert batch_sizes(64) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def test_every_size_runs_before_the_server_listens(
    settings: Callable[..., Settings], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those also that are cut in pieces offline."""
    monkeypatch.setattr(model_store.predictor, "BATCH_SIZE", 2)
    with running(settings(max_batch_size=4)):
        assert set(gate.batches) == {1, 2, 3, 4}


def test_a_model_that_can_not_warm_up_leaves_nothing_in_memory(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models beside it need the device's."""
    predictors: list[weakref.ref[Predictor]] = []

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = load_bundle(*args, **kwargs)
        predictors.append(weakref.ref(bundle.predictor))
        bundle.predictor.scorer.runtime.start = refuse  # type: ignore[method-assign]
        return bundle

    def refuse(_: np.ndarray) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(service.models, "load_bundle", load)
    metrics = Metrics([])
    with pytest.raises(StartError, match="out of memory"):
        load_models(settings(), metrics)
    gc.collect()
    assert [left() for left in predictors] == [None]
    assert f"ood_threshold{{{MODEL}}}".encode() in asyncio.run(metrics.exposition())


def test_batches_are_of_sizes_that_take_less_time_an_image_than_all_smaller_ones() -> None:
    assert worthwhile({1: 3.0}) == (1,)
    assert worthwhile({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}) == (1, 2, 3, 4)
    assert worthwhile({1: 1.0, 2: 2.0, 4: 4.1}) == (1,)
    # An image of 1.86 ms alone; of 2.44, 1.84, 1.68, 1.59, 1.456 and 1.45 ms in a batch.
    measured = {1: 1.86, 2: 4.87, 8: 14.75, 12: 20.21, 16: 25.42, 32: 46.58, 64: 92.6}
    assert worthwhile(measured) == (1, 8, 12, 16, 32, 64)


@pytest.mark.parametrize(("seconds", "sizes"), [(lambda n: 0.03 * n**2, {1}), (lambda _: 0.05, {1, 2, 3, 4})])
def test_a_server_learns_on_its_device_which_batches_pay(
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    pixels: np.ndarray,
    seconds: Callable[[int], float],
    sizes: set[int],
) -> None:
    """One whose images hold one another up, and one whose batches all take the same."""
    batches: list[int] = []

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = load_bundle(*args, **kwargs)
        start = bundle.predictor.scorer.runtime.start

        def slow(images: np.ndarray) -> Any:
            batches.append(len(images))
            time.sleep(seconds(len(images)))
            return start(images)

        monkeypatch.setattr(bundle.predictor.scorer.runtime, "start", slow)
        return bundle

    monkeypatch.setattr(service.models, "load_bundle", load)
    with running(settings(max_batch_size=4)) as server:
        assert set(batches) == {1, 2, 3, 4}
        batches.clear()
        for count in (1, 2, 3, 4):
            array = io.BytesIO()
            np.save(array, pixels[:count])
            assert post(server, array.getvalue()).status_code == 200
        assert set(batches) == sizes
        assert sum(batches) == 10


def test_what_disturbs_a_start_for_a_while_does_not_decide_which_batches_pay(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches in a row take four times as long: those of size 2, were sizes timed one after another."""
    calls, a_size, clock = itertools.count(), 1 + service.engine.TIMED, [0.0]

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = load_bundle(*args, **kwargs)
        start = bundle.predictor.scorer.runtime.start

        def slow(images: np.ndarray) -> Any:
            clock[0] += 0.08 if next(calls) in range(a_size, 2 * a_size) else 0.02
            return start(images)

        monkeypatch.setattr(bundle.predictor.scorer.runtime, "start", slow)
        return bundle

    monkeypatch.setattr(service.models, "load_bundle", load)
    monkeypatch.setattr(service.engine.time, "perf_counter", lambda: clock[0])
    with running(settings(max_batch_size=6)) as server:
        assert server.state.models.engines[0]._batcher.sizes == (1, 2, 3, 4, 6)


def test_while_a_batch_runs_the_next_one_gathers(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings(max_batch_size=4)) as server, ThreadPoolExecutor(8) as pool:
        gate.close()
        first = pool.submit(post, server, pngs[0])
        assert gate.entered.wait(10)
        others = [pool.submit(post, server, png) for png in pngs[1:7]]
        wait_until(lambda: waiting(server) == 6)
        gate.open.set()
        assert [future.result().status_code for future in (first, *others)] == [200] * 7
        assert gate.batches == [1, 4, 2]


def test_a_full_queue_refuses_at_once_and_says_when_to_return(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings(max_queue_images=2, max_images_per_request=2)) as server, ThreadPoolExecutor(8) as pool:
        gate.close()
        held = [pool.submit(post, server, pngs[0])]
        assert gate.entered.wait(10)
        held += [pool.submit(post, server, png) for png in pngs[1:3]]
        wait_until(lambda: waiting(server) == 2)
        begun = time.monotonic()
        refused = post(server, pngs[3])
        assert time.monotonic() - begun < 1
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        assert [future.result().status_code for future in held] == [200] * 3
        assert samples(server.url)['ood_refused_requests_total{code="queue_full"}'] == 1


def test_bulk_requests_leave_room_for_single_images_which_go_first(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    form = [("images", ("i", png)) for png in pngs[:6]]
    with running(settings(max_queue_images=16, max_images_per_request=6)) as server, ThreadPoolExecutor(8) as pool:
        gate.close()
        held = [pool.submit(post, server, pngs[0])]
        assert gate.entered.wait(10)
        held += [pool.submit(httpx.post, f"{server.url}/predict", files=form, timeout=30) for _ in range(2)]
        wait_until(lambda: waiting(server) == 12)
        refused = httpx.post(f"{server.url}/predict", files=form[:2])
        assert refused.status_code == 429
        assert "12 images of requests of more than 1 wait" in refused.json()["error"]["message"]
        single = pool.submit(post, server, pngs[7])
        wait_until(lambda: waiting(server) == 13)
        gate.open.set()
        assert [future.result().status_code for future in [*held, single]] == [200] * 4
        times = [future.result().json()["timing_ms"]["queue"] for future in [*held[1:], single]]
        assert times[2] < max(times)


@pytest.mark.parametrize(("settings_s", "header"), [(0.2, None), (10, "200")])
def test_a_request_past_its_deadline_gets_504_and_never_runs(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes], settings_s: float, header: str | None
) -> None:
    with running(settings(deadline_s=settings_s)) as server, ThreadPoolExecutor(8) as pool:
        gate.close()
        patient = pool.submit(post, server, pngs[0])
        assert gate.entered.wait(10)
        begun = time.monotonic()
        late = post(server, pngs[1], **({"X-Deadline-Ms": header} if header else {}))
        assert 0.2 <= time.monotonic() - begun < 5
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        gate.open.set()
        assert patient.result().status_code == (504 if header is None else 200)
        assert post(server, pngs[2]).status_code == 200
        assert gate.batches == [1, 1]  # the patient one and the last
        found = samples(server.url)
        assert found[f'ood_dropped_requests_total{{model="cifar10",reason="deadline",version="{VERSION}"}}'] == 1


def test_a_header_cannot_lengthen_the_deadline(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings(deadline_s=0.2)) as server:
        gate.close()
        assert post(server, pngs[0], **{"X-Deadline-Ms": "60000"}).status_code == 504
        gate.open.set()


def test_clients_that_leave_are_dropped_and_their_neighbours_answered(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    """A storm of disconnects: nothing of it reaches the network."""
    with running(settings(max_batch_size=4)) as server, ThreadPoolExecutor(2) as pool:
        gate.close()
        held = [pool.submit(post, server, pngs[0])]
        assert gate.entered.wait(10)
        leaving = [_send(server, png) for png in pngs[1:21]]
        wait_until(lambda: waiting(server) == 20)
        held.append(pool.submit(post, server, pngs[21]))
        wait_until(lambda: waiting(server) == 21)
        for connection in leaving:
            connection.close()
        wait_until(lambda: samples(server.url)['ood_refused_requests_total{code="client_left"}'] == 20)
        gate.open.set()
        assert [future.result().status_code for future in held] == [200, 200]
        assert gate.batches == [1, 1]
        found = samples(server.url)
        assert found[f'ood_dropped_requests_total{{model="cifar10",reason="client_left",version="{VERSION}"}}'] == 20
        judged = [value for key, value in found.items() if key.startswith("ood_images_total")]
        assert sum(judged) == 2


def _send(server: Running, image: bytes) -> socket.socket:
    """Post an image and don't wait for the answer."""
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port or 0))
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image) + image)
    return connection


def test_a_broken_device_answers_all_and_turns_health_red(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings()) as server, ThreadPoolExecutor(8) as pool:
        gate.close()
        held = [pool.submit(post, server, pngs[0])]
        assert gate.entered.wait(10)
        held += [pool.submit(post, server, png) for png in pngs[1:5]]
        wait_until(lambda: waiting(server) == 4)
        gate.broken = True
        gate.open.set()
        replies = [future.result() for future in held]
        assert [reply.status_code for reply in replies] == [503] * 5
        assert {reply.json()["error"]["code"] for reply in replies} == {"engine_died"}
        assert server.state.models.engines[0].health == "died"
        wait_until(lambda: server.server.engine_died)


def test_a_stalled_device_turns_health_red_until_it_moves(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings(stall_s=0.1)) as server, ThreadPoolExecutor(2) as pool:
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        gate.close()
        held = pool.submit(post, server, pngs[0])
        assert gate.entered.wait(10)
        wait_until(lambda: httpx.get(f"{server.url}/healthz").status_code == 503)
        assert httpx.get(f"{server.url}/healthz").json()["models"] == {f"cifar10@{VERSION}": "stalled"}
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert samples(server.url)[f"ood_model_up{{{MODEL}}}"] == 0
        gate.open.set()
        assert held.result().status_code == 200
        wait_until(lambda: httpx.get(f"{server.url}/healthz").status_code == 200)


def test_concurrent_mixed_clients_get_the_answers_they_get_alone(
    settings: Callable[..., Settings], pngs: list[bytes]
) -> None:
    """Any interleaving of single images, forms and bad requests; batches mix them all."""
    bundle = load_bundle(BUNDLE)
    pixels = np.stack([images.load(png, bundle.manifest.preprocess) for png in pngs])
    alone = bundle.predictor.predict(pixels)
    random = np.random.default_rng(0)
    with running(settings(max_batch_size=16)) as server, httpx.Client(base_url=server.url, timeout=60) as client:

        def ask(seed: int) -> None:
            chosen = np.random.default_rng(seed).choice(len(pngs), size=1 + seed % 5)
            form = [("images", ("i", pngs[row])) for row in chosen]
            if seed % 7 == 0:
                form.insert(seed % 3, ("images", ("i", b"no image")))
            reply = client.post("/predict", files=form)
            if seed % 7 == 0:
                assert reply.status_code == 415
                return
            found = reply.json()["predictions"]
            assert [p["class_id"] for p in found] == alone.class_id[chosen].tolist()
            assert [p["is_ood"] for p in found] == alone.is_ood[chosen].tolist()
            energies = [p["negative_energy"] for p in found]
            np.testing.assert_allclose(energies, alone.negative_energy[chosen], atol=1e-3)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, random.permutation(150).tolist()))


def test_retry_after_is_how_long_the_queue_takes(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings()) as server, ThreadPoolExecutor(8) as pool:
        engine = server.state.models.engines[0]
        gate.close()
        held = [pool.submit(post, server, pngs[0])]
        assert gate.entered.wait(10)
        held += [pool.submit(post, server, png) for png in pngs[1:4]]
        wait_until(lambda: waiting(server) == 3)
        engine._image_s = 1.5
        assert engine.retry_after_s == math.ceil(3 * 1.5)
        gate.open.set()
        assert all(future.result().status_code == 200 for future in held)


def test_the_predictor_is_the_one_of_the_bundle() -> None:
    """The engine adds no scoring of its own: verdicts are the predictor's columns, row by row."""
    from service.engine import verdicts

    bundle = load_bundle(BUNDLE)
    found = bundle.predictor.predict(np.zeros((2, 32, 32, 3), np.uint8))
    flipped = replace(found, is_ood=~found.is_ood)
    assert [verdict.is_ood for verdict in verdicts(flipped)] == (~found.is_ood).tolist()
    assert [verdict.p_value for verdict in verdicts(found)] == found.p_value.tolist()
