"""The served verdict against the offline one, on small counts and a real server: above all, that it can fail."""

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import served_verdicts
from benchmarks.servers import RunningServer, ServerEndedError, free_port, ood_serve, running
from model_store.bundle import Bundle, load_bundle
from model_store.predictor import Predictions, Predictor
from model_store.store import SHIPPED, BundleRef, Store
from training.datasets import ImageSet, load_set

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


def test_a_server_that_ends_by_itself_is_an_error_with_its_last_words() -> None:
    port = free_port()
    with (
        pytest.raises(ServerEndedError, match=r"(?s)ended with status 1: .*absent"),
        running(ood_serve(port, "--models", "absent"), port),
    ):
        pass
