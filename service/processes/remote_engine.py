"""A model that the engine's process runs, as the routes of an HTTP worker see it."""

import time
from collections.abc import Sequence

from model_store.refs import BundleRef
from service.batcher import Waited
from service.engine_protocol import BundleFacts, Health, Pixels, Verdict
from service.errors import EngineDiedError, NotReadyError, full
from service.processes.frames import Kind
from service.processes.link import GONE, EngineLink
from service.processes.messages import Shape, Status, WelcomedModel, pack_ask, unpack_answer
from service.processes.tally import ModelTally, Tally
from service.served_models import FailedModel, Models
from service.settings import Settings
from service.stages import Stage

SILENT_S = 1.0
"""Ten times as long as the engine's process is ever silent while its loop turns."""


class RemoteEngine:
    """Asks the engine's process. Its queue is there, and so is the truth about it; here is what was last heard."""

    def __init__(
        self,
        link: EngineLink,
        place: int,
        bundle: BundleFacts,
        runtime: str,
        tally: ModelTally,
        settings: Settings,
        *,
        max_unsent_bytes: int,
    ) -> None:
        """Make one; `max_unsent_bytes` is of the connection, which all models share."""
        self.bundle = bundle
        self.runtime_name = runtime
        self._link = link
        self._place = place
        self._tally = tally
        self._shape = Shape.of(bundle.manifest)
        self._max_queued = settings.max_queue_images
        self._max_asked = max_asked(settings)
        self._max_unsent_bytes = max_unsent_bytes
        self._silent_s = settings.stall_s + SILENT_S
        self._asked = 0

    @property
    def name(self) -> str:
        """The model, as `name@version`."""
        return f"{self.bundle.manifest.name}@{self.bundle.manifest.version}"

    @property
    def health(self) -> Health:
        """What was last heard; `died` without a connection, `stalled` if nothing is heard any more."""
        if self._link.closed.done():
            return "died"
        if time.monotonic() - self._link.heard_at > self._silent_s:
            return "stalled"
        return self._status.health

    def require_room(self, images: int | None = None) -> None:
        """Refuse early, before anything is decoded, what could not be queued now, as far as is known here.

        Raises:
            QueueFullError: the queue has no room for so many images.
            NotReadyError: the engine is dead or closed.
        """
        self._require_open()
        self._require_below(self._status.depth, images or 1, self._max_queued)

    async def predict(
        self, images: Sequence[Pixels], deadline: float, *, all_scores: bool = False, logits: bool = False
    ) -> Waited[Verdict]:
        """Queue a request's images and await all of their verdicts; see `Engine.predict`.

        What was asked and is not answered is bounded here, too: more than the queue and the batches that run could
        hold is refused without being sent, should the other end be slow to read. So is what would wait to be sent
        after those that asked have given up.
        """
        self._require_open()
        self._require_below(self._asked, len(images), self._max_asked)
        self._require_read()
        parts = pack_ask(self._place, images, deadline, all_scores=all_scores, logits=logits)
        self._asked += len(images)
        try:
            payload = await self._link.request(Kind.ASK, parts)
        finally:
            self._asked -= len(images)
        waited, depth, retry_after_s = unpack_answer(payload, self._shape)
        self._link.statuses[self._place] = Status(self._status.health, depth, retry_after_s)
        return waited

    def count_answered(self, found: Sequence[Verdict], seconds: dict[Stage, float]) -> None:
        """Count the images and the stages of one request whose reply is about to be sent."""
        self._tally.answered(found, seconds)

    def close(self) -> None:
        """Do nothing: the engine's process closes it."""

    @property
    def _status(self) -> Status:
        return self._link.statuses[self._place]

    def _require_below(self, waiting: int, images: int, allowed: int) -> None:
        if waiting + images > allowed:
            why = f"{waiting} images wait, {images} more are above the {allowed} allowed"
            raise full(self.name, why, self._status.retry_after_s)

    def _require_read(self) -> None:
        if (unsent := self._link.unsent_bytes) >= self._max_unsent_bytes:
            why = f"{unsent} bytes wait to be read by the engine's process, {self._max_unsent_bytes} may"
            raise full(self.name, why, self._status.retry_after_s)

    def _require_open(self) -> None:
        if self._link.closed.done() or self._status.health == "died":
            raise EngineDiedError(GONE)
        if self._status.health == "closed":
            raise NotReadyError(f"{self.name} takes no more requests: the server is stopping")


def max_asked(settings: Settings) -> int:
    """Return how many images of a model the engine's process could hold: its queue, and two batches that run."""
    return settings.max_queue_images + 2 * settings.max_batch_size


def remote_models(link: EngineLink, tally: Tally, settings: Settings) -> Models:
    """Return the models that the engine's process has, behind this connection to it."""
    welcomed = link.welcome.result().models
    specs = [model.manifest.preprocess for model in welcomed if model.manifest is not None]
    max_unsent_bytes = max_asked(settings) * max(spec.height * spec.width * 3 for spec in specs)

    def entry(place: int, model: WelcomedModel) -> RemoteEngine | FailedModel:
        if model.manifest is None:
            return FailedModel(BundleRef.parse(model.ref), model.reason or "")
        facts = BundleFacts(model.manifest, model.sha256, model.folder, model.calibration_counts)
        series = tally.model(model.manifest)
        return RemoteEngine(link, place, facts, model.runtime, series, settings, max_unsent_bytes=max_unsent_bytes)

    return Models(tuple(entry(place, model) for place, model in enumerate(welcomed)))
