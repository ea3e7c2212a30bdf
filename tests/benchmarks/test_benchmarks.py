"""The measurements on small counts, against real servers: above all, that each can fail."""

import asyncio
import dataclasses
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import load, served_verdicts, serving
from benchmarks.load import http_post, run_load
from benchmarks.processor import ProcessorUse
from benchmarks.rounds import Measured, Round, Start, table
from benchmarks.servers import RunningServer, ServerEndedError, free_port, ood_serve, plain_fastapi, running
from model_store.bundle import Bundle, load_bundle
from model_store.predictor import Predictions, Predictor
from model_store.store import SHIPPED, BundleRef, Store
from training.datasets import ImageSet, load_set
from training.evaluate import predict_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(openvino_cache: Path) -> Iterator[RunningServer]:
    """Ours, with a queue that is full when two forms of 64 images wait."""
    port, cache = free_port(), str(openvino_cache)
    with running(
        ood_serve(port, "--models", "cifar10@1", "--cache-dir", cache, "--max-queue-images", "64"), port
    ) as it:
        yield it


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    folder = Store(SHIPPED).resolve(BundleRef("cifar10", 1))
    return load_bundle(folder, runtime="torch-eager", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def labelled(bundle: Bundle, image_sets: Path) -> ImageSet:
    return load_set("cifar10/test", image_sets, bundle.manifest.preprocess, None)


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return serving.encoded_images("cifar10@1")


def test_served_verdicts_are_the_offline_ones(
    server: RunningServer, image_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(image_sets), "--url", server.url, "--model", "cifar10@1"]
    assert served_verdicts.main([*arguments, "--sets", "cifar10/test", "svhn/test"]) == 0
    printed = capsys.readouterr().out
    assert "offline torch-eager-float32-cpu, served openvino-float32-cpu" in printed
    assert "| cifar10/test | 100 | 11 | 11 | 11.00 % false flags | 11.00 % false flags | 0 | 0 |" in printed
    assert "| svhn/test | 40 | 37 | 37 | 7.50 % missed | 7.50 % missed | 0 | 0 |" in printed
    assert "0 of 140 verdicts differ" in printed


def test_served_verdicts_fail_where_one_image_is_judged_by_another_threshold(
    server: RunningServer, bundle: Bundle, labelled: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = bundle.predictor
    scores = predictor.predict(labelled.images).negative_energy
    spared = np.sort(scores[scores > predictor.threshold])[0]  # the least of those that are not flagged
    energy = dataclasses.replace(
        predictor.scores["negative_energy"], threshold=np.nextafter(spared, np.float32(np.inf))
    )
    stricter = Predictor(predictor.scorer, {"negative_energy": energy})
    assert served_verdicts.check(server.url, dataclasses.replace(bundle, predictor=stricter), [labelled]) == 1
    assert "1 of 100 verdicts differ" in capsys.readouterr().out


class Mirrored(Predictor):
    """An offline side that reads its images from right to left."""

    def predict(self, images: NDArray[np.uint8]) -> Predictions:
        return super().predict(np.ascontiguousarray(images[:, :, ::-1]))


def test_served_verdicts_fail_where_the_offline_side_sees_other_pixels(
    server: RunningServer, bundle: Bundle, labelled: ImageSet
) -> None:
    predictor = bundle.predictor
    mirrored = Mirrored(predictor.scorer, predictor.scores)
    assert served_verdicts.check(server.url, dataclasses.replace(bundle, predictor=mirrored), [labelled]) == 1


def test_served_verdicts_refuse_another_bundle(server: RunningServer, bundle: Bundle, labelled: ImageSet) -> None:
    other = dataclasses.replace(bundle, sha256="0" * 64)
    with pytest.raises(served_verdicts.RefusedError, match="the server's bundle is"):
        served_verdicts.check(server.url, other, [labelled])


def test_served_verdicts_of_a_set_that_is_not_there_are_status_2(
    image_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert served_verdicts.main(["--data", str(image_sets), "--url", "http://127.0.0.1:9", "--sets", "absent"]) == 2
    assert "no set 'absent'" in capsys.readouterr().err


def test_images_refused_for_a_full_queue_are_sent_again(
    server: RunningServer, bundle: Bundle, labelled: ImageSet
) -> None:
    pixels = np.tile(labelled.images, (5, 1, 1, 1))  # 8 requests, 4 at once, where one fits into the queue
    served = asyncio.run(served_verdicts.ask(server.url, bundle, pixels))
    assert np.array_equal(served.is_ood, np.tile(bundle.predictor.predict(labelled.images).is_ood, 5))
    refused = re.search(r'^ood_refused_requests_total\{code="queue_full"\} (.*)$', _metrics(server), re.MULTILINE)
    assert refused is not None
    assert float(refused[1]) > 0


def _metrics(server: RunningServer) -> str:
    return httpx.get(f"{server.url}/metrics").text


def test_load_sends_each_request_once_and_in_turn(server: RunningServer, jpegs: list[bytes]) -> None:
    good = http_post("/predict", "image/jpeg", jpegs[0])
    bad = http_post("/predict", "image/jpeg", b"no image")
    lost = http_post("/absent", "image/jpeg", jpegs[0])
    outcome = run_load(server.url, [good, bad, good, lost], connections=3, max_requests=40)
    assert len(outcome.latencies_s) == 20
    assert outcome.failures == {"415": 10, "404": 10}
    assert 0 < outcome.latency_ms(50) <= outcome.latency_ms(99) <= 1000 * outcome.seconds
    assert outcome.requests_per_s == 20 / outcome.seconds


def test_load_lasts_as_long_as_it_is_told(server: RunningServer, jpegs: list[bytes]) -> None:
    request = http_post("/predict", "image/jpeg", jpegs[0])
    outcome = run_load(server.url, [request], connections=2, seconds=0.5)
    assert outcome.failures == {}
    assert outcome.seconds >= 0.45


def test_load_counts_a_server_that_is_not_there() -> None:
    outcome = run_load(f"http://127.0.0.1:{free_port()}", [b""], connections=2, max_requests=4)
    assert (outcome.latencies_s, outcome.failures) == ([], {load.REFUSED: 4})


@pytest.mark.parametrize(
    ("answer", "cause"),
    [(b"", load.LOST), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", load.LOST), (b"???\r\n", load.UNREADABLE)],
)
def test_load_counts_broken_answers(answer: bytes, cause: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=_answer_and_close, args=(listener, answer, 2)).start()
        outcome = run_load(f"http://127.0.0.1:{listener.getsockname()[1]}", [b"GET"], connections=1, max_requests=2)
    assert (outcome.latencies_s, outcome.failures) == ([], {cause: 2})


def _answer_and_close(listener: socket.socket, answer: bytes, times: int) -> None:
    for _ in range(times):
        connection = listener.accept()[0]
        with connection:
            connection.recv(100)
            connection.sendall(answer)


def test_a_server_that_ends_by_itself_is_an_error_with_its_last_words() -> None:
    port = free_port()
    with (
        pytest.raises(ServerEndedError, match=r"(?s)ended with status 1: .*absent"),
        running(ood_serve(port, "--models", "absent"), port),
    ):
        pass


def test_plain_server_gives_the_same_verdicts(bundle: Bundle, jpegs: list[bytes]) -> None:
    port, expected = free_port(), predict_files(bundle.predictor, jpegs[:5])
    with (
        running(plain_fastapi(port, "--model", "cifar10@1"), port) as plain,
        httpx.Client(base_url=plain.url) as client,
    ):
        headers = {"Content-Type": "image/jpeg"}
        answers = [client.post("/predict", content=jpeg, headers=headers).json() for jpeg in jpegs[:5]]
    assert [answer["is_ood"] for answer in answers] == expected.is_ood.tolist()
    assert [answer["class_name"] for answer in answers] == [bundle.manifest.classes[i] for i in expected.class_id]
    assert [answer["negative_energy"] for answer in answers] == pytest.approx(expected.negative_energy, abs=1e-3)


def test_a_round_starts_a_server_twice_and_loads_it(jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WARM_UP_S", 0.1)
    monkeypatch.setattr(serving, "ATTEMPTS", 2)  # beside other tests no core is quiet

    def command(port: int, cache: str) -> list[str]:
        return ood_serve(port, "--models", "cifar10@1", "--cache-dir", cache, "--max-batch-size", "4")

    scenarios = [*serving.single_images(jpegs[:8]), serving.forms(jpegs)]
    found = serving.one_round(serving.Contender("ours", command, scenarios), seconds=0.3)
    assert found.start.seconds < found.first_start.seconds  # which had to convert the network
    assert found.loads.keys() == {"1 connection", "64 connections", "forms of 64, 4 connections"}
    assert found.failures == 0
    assert all(measured.images_per_s > 1 for measured in found.loads.values())
    assert found.start.rss_mib > 100


def test_soak_watches_memory_to_the_last_request(server: RunningServer, jpegs: list[bytes]) -> None:
    soaked = serving.soak(server, jpegs, 50)
    assert [sent for sent, _ in soaked.rss_mib] == [*range(0, 50, 3), 50]
    assert soaked.failures == {}


def _round(server: str, images_per_s: float, failures: int = 0) -> Round:
    loads = {"1 connection": Measured(images_per_s, 10.0, 20.0, 30.0, ProcessorUse(0.01, 1.5, 0.1), {"429": failures})}
    return Round(server, Start(16.0, 900.0), Start(4.0, 500.0), loads, 600.0)


def test_table_has_medians_spread_and_ratios_to_the_first_server() -> None:
    rounds = [
        _round("a", 100),
        _round("b", 300),
        _round("a", 120),
        _round("b", 280, 2),
        _round("a", 50),
        _round("b", 1),
    ]
    lines = table(rounds).splitlines()
    assert lines[0] == "| | a | b |"
    assert "| 1 connection: images/s | 100 (50 to 120) | 280 (1 to 300), x 2.80 |" in lines
    assert "| start to ready, s | 4.0 | 4.0, x 1.00 |" in lines
    assert "| failed requests | 0 | 0 (0 to 2) |" in lines
