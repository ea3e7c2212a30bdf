"""What capture adds: CPU microseconds an image, of looking at it, of handing it over, and of the thread that writes it.

Each part is done many times over, all by turns. For scale, a whole request of one image without capture, its engine one
that answers at once (`benchmarks.layers`).
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.http_requests import as_body, jpegs, sample_images
from benchmarks.in_process import Frontend
from benchmarks.layers import VERDICT, InstantEngine, application
from benchmarks.spread import spread
from service.capture.capture import Answered, Capture
from service.capture.folder import CaptureFolder
from service.capture.hand_over import Bounds, HandOver
from service.capture.record import DropReason, Kind, Record
from service.capture.sampler import Sampler
from service.capture.writer import Writer
from service.engine_protocol import Described, Pixels
from service.served_models import Models

BATCH = 64
"""Images that are written together."""
Turn = Callable[[], float]
"""Does a part many times over and returns the CPU microseconds an image."""


class Nowhere:
    """Takes what is told, keeps nothing."""

    def captured(self, kind: Kind, images: int) -> None:
        """Take note of nothing."""

    def dropped(self, reason: DropReason, images: int = 1) -> None:
        """Let images go by the rate alone; others would be no figure."""
        if reason != "rate":
            raise RuntimeError(f"{images} images were dropped: {reason}")

    def holds(self, total: int) -> None:
        """Take note of nothing."""

    def start(self) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Write nothing."""


def looking(bundle: Described, jpeg: bytes, images: int, *, share: float, per_minute: float) -> Turn:
    """Offer one image after another, each a request; those that are handed over are thrown away, a queue at a time."""
    sampler = Sampler({"control": share, "flagged": share}, per_minute)
    verdicts, sent = [VERDICT], [jpeg]

    def turn() -> float:
        spent_s, left = 0.0, images
        while left > 0:
            queue = HandOver(waiting=Bounds(256, 2**30), batch=Bounds(BATCH, 2**30), wait_s=1000)
            capture = Capture(sampler, queue, Nowhere(), Nowhere(), max_bytes=2**20)
            begun = time.thread_time()
            for _ in range(256):
                capture.offer(bundle, Answered("0" * 32, verdicts, sent, ()))
            spent_s += time.thread_time() - begun
            left -= 256
        return 1e6 * spent_s / (images - left)

    return turn


def writing(content: bytes | Pixels, images: int) -> Turn:
    """Write batches into a folder of their own, from the start of the thread to its end."""
    record = Record("control", "cifar10@1", "0" * 64, "negative_energy", "cat", VERDICT, 1.7e9, "0" * 32, content)

    def turn() -> float:
        with TemporaryDirectory() as root:
            folder = CaptureFolder(Path(root), max_bytes=2**30, max_age=timedelta(days=1))
            queue = HandOver(waiting=Bounds(images, 2**30), batch=Bounds(BATCH, 2**30), wait_s=0)
            for _ in range(images):
                queue.put(record)
            writer, begun = Writer(folder, queue, Nowhere()), time.process_time()
            writer.start()
            writer.close()
            return 1e6 * (time.process_time() - begun) / images

    return turn


@contextmanager
def parts(model: str, images: int) -> Iterator[dict[str, Turn]]:
    """Give what is measured."""
    pixels = sample_images()
    (jpeg,) = jpegs(pixels[:1])
    with application(model) as app:
        state, frontend = app.state.service, Frontend(app)
        bundle = state.models.engines[0].bundle
        series = state.metrics.model(bundle.manifest)
        state.models = Models((InstantEngine(bundle, series, max_batch_size=1, max_queue_images=64, stall_s=60),))
        (request,) = as_body([jpeg])
        yield {
            "a request of one JPEG, capture off": lambda: frontend.cpu_us(
                request, status=200, connections=1, requests=images
            ),
            "looking at an image that is not in the sample": looking(bundle, jpeg, images, share=0, per_minute=60),
            "looking at one that is above the rate": looking(bundle, jpeg, images, share=1, per_minute=1e-9),
            "handing one over": looking(bundle, jpeg, images, share=1, per_minute=1e12),
            "writing it, a file as it came": writing(jpeg, images),
            "writing it, pixels as PNG": writing(pixels[0], images),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print medians of the rounds with their spread; a first round warms up and does not count."""
    parser = argparse.ArgumentParser(prog="capture", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship for 32x32 images")
    parser.add_argument("--rounds", type=int, default=15, help="how often each part has its turn")
    parser.add_argument("--images", type=int, default=1024, help="how many it gets in a turn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with parts(options.model, options.images) as found:
        rounds = [{name: turn() for name, turn in found.items()} for _ in range(options.rounds + 1)][1:]
    print("| | CPU us an image |\n| --- | --- |")
    for name in found:
        print(f"| {name} | {spread([each[name] for each in rounds], 2)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
