"""Capture folders that really lie on disk, and what is told of them."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.capture.folder import CaptureFolder
from service.capture.hand_over import Bounds, HandOver
from service.capture.record import DropReason, Kind, Record
from service.capture.writer import Writer
from service.engine_protocol import Verdict


class Told:
    """Counts what a writer tells."""

    def __init__(self) -> None:
        self.kept: Counter[Kind] = Counter()
        self.drops: Counter[DropReason] = Counter()
        self.bytes: list[int] = []

    def captured(self, kind: Kind, images: int) -> None:
        self.kept[kind] += images

    def dropped(self, reason: DropReason, images: int = 1) -> None:
        self.drops[reason] += images

    def holds(self, total: int) -> None:
        self.bytes.append(total)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def write(told: Told) -> Callable[..., None]:
    """Write records as a server does, in batches of so many, and stop."""

    def through(folder: CaptureFolder, records: Sequence[Record], batch: int = 64) -> None:
        queue = HandOver(waiting=Bounds(10**4, 10**9), batch=Bounds(batch, 10**9), wait_s=1000)
        for one in records:
            assert queue.put(one)
        writer = Writer(folder, queue, told)
        writer.start()
        writer.close()

    return through


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where images are captured; it is not there yet."""
    return tmp_path / "captured"


@pytest.fixture
def folder(root: Path) -> Callable[..., CaptureFolder]:
    return lambda max_bytes=2**30, days=30.0: CaptureFolder(root, max_bytes=max_bytes, max_age=timedelta(days=days))


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encode 32 x 32 random pixels, in PNG if nothing else is said."""

    def make(seed: int = 0, form: str = "PNG", side: int = 32) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def record(encode: Callable[..., bytes]) -> Callable[..., Record]:
    """Make one of a flagged image, unless something else is said; `at` tells it from others."""

    def make(at: int = 0, **changes: object) -> Record:
        flagged = Record(
            kind="flagged",
            model="cifar10@1",
            sha256="0" * 64,
            score="negative_energy",
            class_name="cat",
            verdict=Verdict(3, 0.5, 10.0 + at, 0.01, is_ood=True),
            time=1.7e9 + at,
            request_id=f"request-{at}",
            content=encode(at),
        )
        return flagged._replace(**changes)

    return make
