"""What an HTTP worker has counted since it last told: the part of the metrics that the engine's process adds up."""

from pydantic import BaseModel, ConfigDict

from service.capture.record import DropReason, Kind
from service.stages import Stage


class Frozen(BaseModel):
    """Frozen; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Observed(Frozen):
    """What a histogram has grown by: a count a bucket, the last one that above every edge, and the sum."""

    counts: list[int]
    sum: float


class ModelCounts(Frozen):
    """Of one model: images by decision, the histograms of scores and stages, and what is watched.

    p_values: of every image, in order; energy_buckets: likewise, as places among the counts of `negative_energy`.
    classes: [in distribution, ood] of each class, where they are counted.
    """

    in_distribution: int
    ood: int
    p_value: Observed
    negative_energy: Observed
    stages: dict[Stage, Observed]
    p_values: list[float]
    energy_buckets: list[int]
    classes: list[list[int]]


class CaptureCounts(Frozen):
    """Of captured images; `bytes` is what the folder, which all workers share, takes now."""

    captured: dict[Kind, int]
    dropped: dict[DropReason, int]
    bytes: int


class Held(Frozen):
    """What a worker holds now: bytes of bodies, requests in its line, captured images that are not written yet."""

    pending_bytes: int = 0
    waiting_requests: int = 0
    unwritten_images: int = 0


class Counts(Frozen):
    """Of one worker; models by `name@version`."""

    requests: list[tuple[str, int, int]]
    """Route, status, how many."""
    refused: dict[str, int]
    models: dict[str, ModelCounts]
    held: Held
    capture: CaptureCounts | None = None
