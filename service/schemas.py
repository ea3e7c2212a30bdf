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
