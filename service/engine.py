"""One model on one device of this process: its queue, the thread that runs it, its health, its part of the metrics."""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from model_store.bundle import Bundle
from model_store.networks import NetworkOutput
from model_store.predictor import Predictions, ScoreVerdicts
from model_store.runtimes import Runtime
from model_store.score_specs import ScoreName
from service.batcher import Batch, Batcher, ClosedError, DropReason, ExpiredError, FullError, Waited
from service.engine_protocol import Health, Pixels, ScoreVerdict, Verdict
from service.errors import EngineDiedError, NotReadyError, QueueFullError, full, late
from service.futures import result_of
from service.metrics import ModelMetrics
from service.stages import Stage

CLOSE_S = 5.0
"""How long a closed engine has for what still waits; what takes longer is given up."""
TIMED, LONG_S = 4, 0.1
"""Batches of a size that are timed; fewer, where that takes long, which little disturbs."""
log = logging.getLogger(__name__)


class Ask(NamedTuple):
    """One image, and what is wanted beside the verdict: every score, the logits."""

    pixels: Pixels
    all_scores: bool = False
    logits: bool = False


class Started(NamedTuple):
    """A batch that the device is working on."""

    batch: Batch[Ask, Verdict]
    ticket: Any
    at: float


class Computed(NamedTuple):
    """A batch that the device is done with, what the network made of it, and how long it took."""

    batch: Batch[Ask, Verdict]
    output: NetworkOutput
    forward_s: float


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Return the sizes that are tried: 1, 2, 3, 4, 6, 8, 12, ... and `largest`.

    What waits is cut to the largest of them that it fills, so nothing is padded and at most a third is left over,
    which is the next batch.
    """
    steps = {size for power in range(largest.bit_length()) for size in (2**power, 3 * 2**power)}
    return tuple(sorted({size for size in steps if size <= largest} | {largest}))


def worthwhile(seconds: Mapping[int, float]) -> tuple[int, ...]:
    """Return the batch sizes that take less time an image than all smaller ones; `seconds` are those of each.

    A batch that saves nothing only makes its images wait for one another: a few images at once may take a processor
    longer than one after another.
    """
    kept = [min(seconds)]
    for size in sorted(seconds)[1:]:
        if seconds[size] / size < seconds[kept[-1]] / kept[-1]:
            kept.append(size)
    return tuple(kept)


class LocalEngine:
    """Runs one bundle's images in batches, on a thread of its own. Every accepted request gets an answer or an error.

    An error of the runtime is the end of it: all that waits fails with EngineDiedError, and health turns red.
    """

    def __init__(
        self,
        bundle: Bundle,
        metrics: ModelMetrics,
        *,
        max_batch_size: int,
        max_queue_images: int,
        stall_s: float,
    ) -> None:
        self.bundle = bundle
        self._metrics = metrics
        self._stall_s = stall_s
        self._batcher: Batcher[Ask, Verdict] = Batcher(
            sizes=batch_sizes(max_batch_size), max_items=max_queue_images, on_drop=self._dropped
        )
        self._started: deque[Started] = deque()
        self._computed: Computed | None = None
        self._busy_since: float | None = None
        self._finished_at = 0.0
        self._image_s = 0.0
        self._warm: Future[None] = Future()
        self._state: Health = "ready"
        self._thread = Thread(target=self._main, name=f"engine {bundle.manifest.name}", daemon=True)

    @property
    def name(self) -> str:
        """The model, as `name@version`."""
        return f"{self.bundle.manifest.name}@{self.bundle.manifest.version}"

    @property
    def runtime_name(self) -> str:
        """How the network runs."""
        return self._runtime.name

    @property
    def _runtime(self) -> Runtime:
        return self.bundle.predictor.scorer.runtime

    @property
    def health(self) -> Health:
        """Whether it answers; `stalled` means that a batch has been running for longer than it may."""
        busy_since = self._busy_since
        if self._state == "ready" and busy_since is not None and time.monotonic() - busy_since > self._stall_s:
            return "stalled"
        return self._state

    def start(self) -> None:
        """Start the thread and run every batch size once; return when all are warm, and its queue is in the metrics.

        Raises:
            Exception: whatever the runtime raised.
        """
        self._thread.start()
        self._warm.result()
        self._metrics.watch_queue(lambda: self._batcher.depth)  # not before: metrics stay, and so would what failed

    def close(self) -> None:
        """Answer what waits, then stop; return when the thread has, or when it hangs."""
        self._batcher.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def require_room(self, images: int | None = None) -> None:
        """Refuse early, before anything is decoded, what could not be queued now.

        Args:
            images: how many there are; None while that is unknown, which refuses only what nothing has room for.

        Raises:
            QueueFullError: the queue has no room for so many images.
            NotReadyError: the engine is dead or closed.
        """
        if self._state != "ready":
            raise self._not_ready()
        if why := self._batcher.why_full(images or 1):
            if images is None and self._batcher.depth < self._batcher.max_items:
                return
            raise self._full(why)

    async def predict(
        self, images: Sequence[Pixels], deadline: float, *, all_scores: bool = False, logits: bool = False
    ) -> Waited[Verdict]:
        """Queue a request's images and await all of their verdicts.

        Cancelling it takes them out of the queue.

        Args:
            images: uint8 (H, W, 3) each, fitted to the bundle's PreprocessSpec.
            deadline: a `time.monotonic()`; what waits still by then is never run.
            all_scores: every score of the bundle is wanted, not the verdict alone.
            logits: the logits are wanted, too.

        Raises:
            QueueFullError: they do not fit into the queue.
            NotReadyError: the engine is closed or dead, or died meanwhile.
            DeadlineExceededError: their turn came after the deadline.
        """
        future = self.submit(images, deadline, all_scores=all_scores, logits=logits)
        try:
            return await result_of(future)
        except ExpiredError:
            raise late(self.name) from None

    def submit(
        self, images: Sequence[Pixels], deadline: float, *, all_scores: bool = False, logits: bool = False
    ) -> "Future[Waited[Verdict]]":
        """Queue a request's images, as `predict` does; its future fails with ExpiredError after the deadline.

        Raises:
            QueueFullError: they do not fit into the queue.
            NotReadyError: the engine is closed or dead.
        """
        try:
            return self._batcher.submit([Ask(pixels, all_scores, logits) for pixels in images], deadline)
        except FullError as err:
            raise self._full(str(err)) from None
        except ClosedError:
            raise self._not_ready() from None

    def count_answered(self, found: Sequence[Verdict], seconds: dict[Stage, float]) -> None:
        """Count the images and the stages of one request whose reply is about to be sent; on the event loop."""
        self._metrics.answered(found, seconds)

    @property
    def depth(self) -> int:
        """Images that wait."""
        return self._batcher.depth

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, in which what waits now should be done."""
        return max(1, math.ceil(self._batcher.depth * self._image_s))

    def _full(self, why: str) -> QueueFullError:
        return full(self.name, why, self.retry_after_s)

    def _not_ready(self) -> NotReadyError:
        if self._state == "died":
            return EngineDiedError(f"the engine of {self.name} has died")
        return NotReadyError(f"{self.name} takes no more requests: the server is stopping")

    def _dropped(self, reason: DropReason) -> None:
        self._metrics.dropped(reason)

    def _main(self) -> None:
        try:
            self._warm_up()
            self._warm.set_result(None)
            self._run()
            self._state = "closed"
        except BaseException as err:
            self._state = "died"
            self._batcher.die(EngineDiedError(f"the engine of {self.name} died"))
            if not self._warm.done():
                self._warm.set_exception(err)
                return
            log.exception("the engine died", extra={"model": self.name})

    def _warm_up(self) -> None:
        """Run every batch size, and keep to those that pay."""
        seconds = self._seconds_by_size()
        self._batcher.sizes = worthwhile(seconds)
        largest = self._batcher.sizes[-1]
        self._image_s = seconds[largest] / largest

    def _seconds_by_size(self) -> dict[int, float]:
        """Return the least time of a batch of each size; the first, which may have to be prepared for, does not count.

        Sizes take turns: what disturbs the device for a while then hits all of them, and not the one that is timed.
        """
        spec, times = self.bundle.manifest.preprocess, {size: list[float]() for size in self._batcher.sizes}
        images = np.zeros((max(times), spec.height, spec.width, 3), np.uint8)
        for size in times:
            self._seconds_of(images[:size])
        for _ in range(TIMED):
            for size, found in times.items():
                if sum(found) < LONG_S:
                    found.append(self._seconds_of(images[:size]))
        return {size: min(found) for size, found in times.items()}

    def _seconds_of(self, images: np.ndarray) -> float:
        begun, predictor = time.perf_counter(), self.bundle.predictor
        predictor.finish(predictor.start(images))
        return time.perf_counter() - begun

    def _run(self) -> None:
        """Have batches computed until the queue is closed and empty.

        What is computed is judged and handed out while the next batch, if any waits, is computed.
        """
        while True:
            idle = not self._started and self._computed is None
            batch = self._batcher.take(wait=idle)
            if batch is None and idle:
                return
            try:
                if batch is not None:
                    self._start(batch)
            finally:  # answers that are there are given, whatever comes of the next batch
                self._hand_out()
            if self._started and (batch is None or len(self._started) >= self._runtime.in_flight):
                self._computed = self._finish(self._started.popleft())
                if not self._runtime.in_flight:  # `start` would compute before these were answered
                    self._hand_out()

    def _start(self, batch: Batch[Ask, Verdict]) -> None:
        at = time.monotonic()
        self._busy_since = self._busy_since or at
        ticket = self.bundle.predictor.start(np.stack([ask.pixels for ask in batch.items]))
        self._started.append(Started(batch, ticket, at))

    def _finish(self, started: Started) -> Computed:
        output, now = self._runtime.finish(started.ticket), time.monotonic()
        forward_s = now - max(started.at, self._finished_at)  # of a device that does one after another
        self._finished_at = now
        self._busy_since = now if self._started else None
        self._image_s = 0.9 * self._image_s + 0.1 * forward_s / len(started.batch)
        self._metrics.batch(len(started.batch), forward_s)
        return Computed(started.batch, output, forward_s)

    def _hand_out(self) -> None:
        """Judge and answer what is computed, if anything is."""
        if (computed := self._computed) is not None:
            self._computed = None
            self._batcher.finish(computed.batch, self._judge(computed), computed.forward_s)

    def _judge(self, computed: Computed) -> list[Verdict]:
        """Judge a batch; what only some of its images want is computed only if one does."""
        predictor, asked = self.bundle.predictor, computed.batch.items
        scored = predictor.scorer.from_output(computed.output)
        found = verdicts(predictor.judge(scored))
        if any(ask.all_scores for ask in asked):
            by_image = score_verdicts(predictor.judge_by_all(scored))
            found = [
                verdict._replace(scores=scores) if ask.all_scores else verdict
                for verdict, scores, ask in zip(found, by_image, asked, strict=True)
            ]
        if any(ask.logits for ask in asked):
            found = [
                verdict._replace(logits=row) if ask.logits else verdict
                for verdict, row, ask in zip(found, scored.logits.numpy(), asked, strict=True)
            ]
        return found


def verdicts(predictions: Predictions) -> list[Verdict]:
    """Split N predictions into one verdict an image."""
    columns = (
        predictions.class_id,
        predictions.confidence,
        predictions.negative_energy,
        predictions.p_value,
        predictions.is_ood,
    )
    return [Verdict(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def score_verdicts(by_score: Mapping[ScoreName, ScoreVerdicts]) -> list[dict[ScoreName, ScoreVerdict]]:
    """Split what each score says of N images into what all of them say of each image."""
    columns = {
        name: [ScoreVerdict(*row) for row in zip(*(c.tolist() for c in (v.value, v.p_value, v.is_ood)), strict=True)]
        for name, v in by_score.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
