"""Images sent to a server again and again, in distribution and not, in a share that is set."""

import io
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGES = Path(__file__).parents[1] / "tests" / "data" / "images"
IMAGES_PER_REQUEST = 4
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Pools:
    """Encoded images to draw from."""

    in_distribution: Sequence[bytes]
    ood: Sequence[bytes]


def load_pools() -> Pools:
    """Return the tests' images: 300 of CIFAR-10, and 78 of SVHN and of textures.

    Of the 300 cifar10@3 flags 13, of the 5 % that it states at most: 6 of 200 that it was trained on, 7 of 100 that it
    was not.
    """
    files = sorted((IMAGES / "cifar10").rglob("*.png"))
    ood = [image for name in ("svhn", "textures") for image in np.load(IMAGES / name / "test.npz")["images"]]
    return Pools([file.read_bytes() for file in files], [png(image) for image in ood])


def png(image: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 (H, W, 3), as a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def mixed(pools: Pools, ood_share: float, seed: int) -> Iterator[bytes]:
    """Yield images without end, each OOD with probability `ood_share`.

    Each is drawn from its whole pool whatever was drawn before, since flags that come independently are what the watch
    assumes; passes through the pool would have hardly any chance in how many are flagged.
    """
    generator = random.Random(seed)  # noqa: S311
    while True:
        yield generator.choice(pools.ood if generator.random() < ood_share else pools.in_distribution)


@dataclass
class Sent:
    """Images that were judged, how many of them were flagged, and requests that failed, so far."""

    images: int = 0
    flagged: int = 0
    failures: int = 0
    last_failure: str = ""


@contextmanager
def replaying(url: str, images: Iterator[bytes], images_per_s: float) -> Iterator[Sent]:
    """Send images to a server during the block, in a thread, at a rate that it may fall behind."""
    sent, stop = Sent(), threading.Event()
    thread = threading.Thread(target=_replay, args=(url, images, images_per_s, sent, stop), daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def _replay(url: str, images: Iterator[bytes], images_per_s: float, sent: Sent, stop: threading.Event) -> None:
    pause_s = IMAGES_PER_REQUEST / images_per_s
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + pause_s, time.monotonic() - 1)  # what it fell behind by more than a second is not made up
            _send(client, [next(images) for _ in range(IMAGES_PER_REQUEST)], sent)


def _send(client: httpx.Client, images: Sequence[bytes], sent: Sent) -> None:
    try:
        reply = client.post("/predict", files=[("images", ("image.png", image)) for image in images])
        verdicts = reply.raise_for_status().json()["predictions"]
    except httpx.HTTPError as err:
        sent.failures += 1
        sent.last_failure = str(err)
        return
    sent.images += len(verdicts)
    sent.flagged += sum(verdict["is_ood"] for verdict in verdicts)
