"""What routes ask of an engine, wherever it runs: in this process, or in one of its own behind several HTTP workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import Manifest
from model_store.score_specs import ScoreName
from service.batcher import Waited
from service.stages import Stage

Pixels = NDArray[np.uint8]
Health = Literal["ready", "stalled", "died", "closed"]


class ScoreVerdict(NamedTuple):
    """What one score says of one image."""

    value: float
    p_value: float
    is_ood: bool


class Verdict(NamedTuple):
    """What a model says of one image; where that was asked for, each of its scores, and its logits float32 (K,)."""

    class_id: int
    confidence: float
    negative_energy: float
    p_value: float
    is_ood: bool
    scores: Mapping[ScoreName, ScoreVerdict] | None = None
    logits: NDArray[np.float32] | None = None


class Described(Protocol):
    """A bundle, as far as routes know it."""

    @property
    def manifest(self) -> Manifest:
        """All that it says about itself."""

    @property
    def sha256(self) -> str:
        """Its manifest's."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def calibration_counts(self) -> Mapping[ScoreName, tuple[int, ...]]:
        """Calibration images in each bucket of each score's `histogram_edges`, and above the last edge."""


@dataclass(frozen=True)
class BundleFacts:
    """A bundle that another process has loaded."""

    manifest: Manifest
    sha256: str
    folder: Path
    calibration_counts: Mapping[ScoreName, tuple[int, ...]]


class Engine(Protocol):
    """One model that can be asked. Its methods are called on the event loop."""

    @property
    def bundle(self) -> Described:
        """What it runs."""

    @property
    def name(self) -> str:
        """The model, as `name@version`."""

    @property
    def runtime_name(self) -> str:
        """How the network runs."""

    @property
    def health(self) -> Health:
        """Whether it answers; `stalled` means that a batch has been running for longer than it may."""

    def require_room(self, images: int | None = None) -> None:
        """Refuse early, before anything is decoded, what could not be queued now.

        Args:
            images: how many there are; None while that is unknown, which refuses only what nothing has room for.

        Raises:
            QueueFullError: the queue has no room for so many images.
            NotReadyError: the engine is dead or closed.
        """

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

    def count_answered(self, found: Sequence[Verdict], seconds: dict[Stage, float]) -> None:
        """Count the images and the stages of one request whose reply is about to be sent."""

    def close(self) -> None:
        """Answer what waits, then stop."""
