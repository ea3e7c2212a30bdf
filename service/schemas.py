"""What the server sends and, in JSON, takes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from model_store.score_specs import ScoreName


class Reply(BaseModel):
    """Frozen; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelName(Reply):
    """Which bundle answered."""

    name: str
    version: int
    sha256: str = Field(description="SHA-256 of the bundle's manifest, which names that of every other file.")


class ScorePrediction(Reply):
    """What one score says of an image; higher is more in-distribution."""

    value: float
    p_value: float = Field(description="Share of in-distribution images whose score is at most this value, in (0, 1].")
    is_ood: bool = Field(description="value <= the score's own threshold.")


class Prediction(Reply):
    """The verdict on one image."""

    class_id: int
    class_name: str
    confidence: float = Field(description="The greatest softmax probability, in (0, 1].")
    negative_energy: float = Field(description="T logsumexp(logits / T); higher is more in-distribution.")
    p_value: float = Field(description="Share of in-distribution images that score at most this, in (0, 1].")
    is_ood: bool = Field(
        description="The verdict's score, negative_energy by default, is <= threshold: the class is not to be trusted."
    )
    scores: dict[ScoreName, ScorePrediction] | None = Field(
        default=None, description="With scores=all alone: every score of the bundle, from the same forward pass."
    )


class Timing(Reply):
    """Milliseconds in each stage; `total` from the last byte of the body."""

    decode: float
    queue: float
    forward: float
    total: float


class PredictReply(Reply):
    """The verdicts on a request's images, in their order."""

    model: ModelName
    threshold: float = Field(description="The verdict's.")
    verdict: ScoreName | None = Field(
        default=None,
        description="The score that p_value and is_ood are of; left out where it is negative_energy and scores=all was "
        "not asked for.",
    )
    thresholds: dict[ScoreName, float] | None = Field(
        default=None, description="With scores=all alone: that of each score."
    )
    predictions: list[Prediction]
    timing_ms: Timing
    request_id: str


class ErrorBody(Reply):
    """What was wrong: a code for programs, a sentence for people."""

    code: str
    message: str
    request_id: str
    index: int | None = Field(default=None, description="Which image of the request it was, from 0.")


class ErrorReply(Reply):
    """Every error's body."""

    error: ErrorBody


class ImagesRequest(Reply):
    """Images as JSON."""

    images: list[str] = Field(min_length=1, description="Image files, each in base64.")


class ServedModel(Reply):
    """One bundle and whether it answers; a bundle that failed to load has no figures but says why."""

    name: str
    version: int | None
    state: Literal["ready", "stalled", "died", "closed", "failed"]
    default: bool
    reason: str | None = None
    sha256: str | None = None
    description: str | None = None
    runtime: str | None = None
    classes: list[str] | None = None
    input: str | None = Field(default=None, description="What images are fitted to.")
    verdict: ScoreName | None = Field(default=None, description="The score that p_value and is_ood are of.")
    threshold: float | None = Field(default=None, description="The verdict's.")
    thresholds: dict[ScoreName, float] | None = Field(
        default=None, description="That of each score; scores=all gives all of them."
    )
    alpha: float | None = Field(default=None, description="The false-flag rate that the threshold was set for.")
    method: str | None = None


class CalibratedScore(Reply):
    """One score's calibration and where its images lay.

    Flagged means value <= threshold, which is the same as p-value <= k / (n + 1). A bucket is closed above; the last
    count is of what is above every edge. The threshold is an edge.
    """

    method: str
    alpha: float
    n: int = Field(description="Calibration images.")
    k: int
    threshold: float
    edges: list[float]
    counts: list[int]


class ModelReply(ServedModel):
    """A model that is loaded, and the calibration of each of its scores."""

    calibrations: dict[ScoreName, CalibratedScore]


class ModelsReply(Reply):
    """All bundles of the server, the default one first."""

    models: list[ServedModel]


class HealthReply(Reply):
    """Whether the server is alive, or ready, and each model's state."""

    ok: bool
    reason: str | None = None
    models: dict[str, str]


class InfoReply(Reply):
    """What runs, and with which settings; secrets are masked."""

    version: str
    libraries: dict[str, str]
    settings: dict[str, str | int | float | bool | list[str] | None]
    models: list[ServedModel]


class OodShare(Reply):
    """The estimated share of images that truly are OOD, and its 95 % interval."""

    estimate: float
    lower: float
    upper: float


class WatchedHistogram(Reply):
    """A bucket is closed above; the last count is of what is above every edge."""

    edges: list[float]
    counts: list[int]


class WatchedWindow(Reply):
    """The last images; figures are null while there are none."""

    images: int
    flagged_ratio: float | None
    ood_share: OodShare | None = Field(description="Null, too, where the bundle states no detection rate.")
    ks_distance: float | None = Field(description="Kolmogorov-Smirnov distance of the p-values from uniform.")
    ks_limit: float | None = Field(description="What the distance stays below in distribution.")
    p_value: WatchedHistogram = Field(description="Of the last images.")
    negative_energy: WatchedHistogram = Field(description="Of the last images.")


class WatchedCusum(Reply):
    """The alarm on the flag rate."""

    statistic: float = Field(description="Natural logarithm; capped at the limit.")
    limit: float
    shifted: bool = Field(description="From the moment the statistic is at its limit until it is back at 0.")
    shifts: int = Field(description="Alarms since the start.")


class WatchedClass(Reply):
    """Images of one predicted class since the start, by decision."""

    name: str
    in_distribution: int
    ood: int


class WatchReply(Reply):
    """What is watched of one model's traffic."""

    model: str = Field(description="`name@version`.")
    images: int = Field(description="Images answered since the start.")
    flagged: int
    window: WatchedWindow
    cusum: WatchedCusum
    p_value: WatchedHistogram = Field(description="Since the start.")
    negative_energy: WatchedHistogram = Field(description="Since the start.")
    classes: list[WatchedClass] | None = Field(description="Null where there are more than 100.")
    images_per_s: float = Field(description="Over the last minute.")
    assumption: str = Field(description="What all of it rests on.")
