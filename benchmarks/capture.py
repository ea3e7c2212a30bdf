"""What capture adds to a request: CPU time of the whole process, the thread that writes included, without sockets.

The whole application, with an engine that answers at once (`benchmarks.layers`), is asked with capture off, on, and on
for every image, by turns. A turn is over when all that it handed over is on disk.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.http_requests import as_arrays, as_body, jpegs, sample_images
from benchmarks.in_process import Frontend
from benchmarks.layers import IMAGES_PER_REQUEST, SECONDS, VERDICT, InstantEngine, application
from benchmarks.spread import spread
from service.batcher import Waited
from service.capture.capture import Capture, make_capture
from service.capture.record import DropReason, Kind
from service.engine_protocol import Pixels, Verdict
from service.served_models import Models
from service.settings import Settings

IMAGES = 256
"""In a turn: as many as a queue holds, so that none is dropped."""
WAYS: dict[str, dict[str, float] | None] = {
    "off": None,
    "on, as it is by default": {},
    "on, every image kept": {"capture_control_share": 1.0, "capture_images_per_minute": 1e9},
}


class Progress:
    """Counts images on disk, and refuses to lose any but by the rate."""

    def __init__(self) -> None:
        self.kept = 0

    def captured(self, kind: Kind, images: int) -> None:  # noqa: ARG002
        """Count images on disk."""
        self.kept += images

    def dropped(self, reason: DropReason, images: int = 1) -> None:
        """Raise RuntimeError if that was a fault."""
        if reason != "rate":
            raise RuntimeError(f"{images} images were dropped ({reason}); such a turn is no figure")

    def holds(self, total: int) -> None:
        """Take no note."""


@dataclass(frozen=True)
class Way:
    """How images are captured in a turn: not at all, or so that `every` one is kept."""

    name: str
    capture: Capture | None
    progress: Progress
    every: bool


@dataclass(frozen=True)
class Case:
    """A request of so many images, all of which get one verdict."""

    name: str
    request: bytes
    images: int
    verdict: Verdict


class FixedEngine(InstantEngine):
    """An engine that gives one verdict at once."""

    verdict = VERDICT

    async def predict(self, images: Sequence[Pixels], *_: Any, **__: Any) -> Waited[Verdict]:
        """Answer."""
        return Waited([self.verdict] * len(images), SECONDS["queue"], SECONDS["forward"])


@contextmanager
def way(name: str) -> Iterator[Way]:
    """Begin to capture into a folder that is removed again."""
    changes, progress = WAYS[name], Progress()
    with TemporaryDirectory() as folder:
        if changes is None:
            yield Way(name, None, progress, every=False)
            return
        capture = make_capture(Settings(capture_dir=Path(folder), capture_flush_s=0.01, **changes), progress)
        assert capture is not None
        capture.start()
        yield Way(name, capture, progress, every=bool(changes))
        capture.close()


def cases() -> list[Case]:
    """Return what is asked."""
    pixels = sample_images()
    jpeg, array = as_body(jpegs(pixels[:1]))[0], as_arrays(pixels, IMAGES_PER_REQUEST)[0]
    return [
        Case("JPEG, not flagged", jpeg, 1, VERDICT),
        Case("JPEG, flagged", jpeg, 1, VERDICT._replace(is_ood=True)),
        Case(f"npy of {IMAGES_PER_REQUEST}, not flagged", array, IMAGES_PER_REQUEST, VERDICT),
    ]


def turn_us(frontend: Frontend, case: Case, way: Way) -> float:
    """Return the CPU microseconds a request of one turn, one request at a time."""
    aim, begun = way.progress.kept + IMAGES, time.process_time()
    frontend.cpu_us(case.request, status=200, connections=1, requests=IMAGES // case.images)
    while way.every and way.progress.kept < aim:
        time.sleep(0.01)
    return 1e6 * (time.process_time() - begun) / (IMAGES // case.images)


def measure(model: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return CPU microseconds a request by case and way, a figure a round, without a first to warm up."""
    found: dict[tuple[str, str], list[float]] = {}
    with application(model) as app, ExitStack() as stack:
        state, frontend = app.state.service, Frontend(app)
        bundle = state.models.engines[0].bundle
        series = state.metrics.model(bundle.manifest)
        engine = FixedEngine(bundle, series, max_batch_size=1, max_queue_images=2 * IMAGES, stall_s=60)
        state.models = Models((engine,))
        ways = [stack.enter_context(way(name)) for name in WAYS]
        for turn in range(rounds + 1):
            for case in cases():
                engine.verdict = case.verdict
                for each in ways:
                    state.capture = each.capture
                    spent = turn_us(frontend, case, each)
                    found.setdefault((case.name, each.name), [])
                    if turn:
                        found[case.name, each.name].append(spent)
    return found


def table(found: dict[tuple[str, str], list[float]]) -> str:
    """Return medians over the rounds with their spread, and what each is above `off`."""
    lines = ["| request | capture | CPU us | above off, us |", "| --- | --- | --- | --- |"]
    for (case, name), values in found.items():
        above = statistics.median(values) - statistics.median(found[case, "off"])
        lines.append(f"| {case} | {name} | {spread(values, 0)} | {above:,.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="capture", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship for 32x32 images")
    parser.add_argument("--rounds", type=int, default=15, help="how often each way has its turn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(table(measure(options.model, options.rounds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
