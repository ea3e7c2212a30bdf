"""What the server sends and, in JSON, takes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """Frozen; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelName(Reply):
    """Which bundle answered."""

    name: str
    version: int
    sha256: str = Field(description="SHA-256 of the bundle's manifest, which names that of every other file.")


class Prediction(Reply):
    """The verdict on one image."""

    class_id: int
    class_name: str
    confidence: float = Field(description="The greatest softmax probability, in (0, 1].")
    negative_energy: float = Field(description="T logsumexp(logits / T); higher is more in-distribution.")
    p_value: float = Field(description="Share of in-distribution images that score at most this, in (0, 1].")
    is_ood: bool = Field(description="negative_energy <= threshold: the class is not to be trusted.")


class Timing(Reply):
    """Milliseconds in each stage; `total` from the last byte of the body."""

    decode: float
    queue: float
    forward: float
    total: float


class PredictReply(Reply):
    """The verdicts on a request's images, in their order."""

    model: ModelName
    threshold: float
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
    threshold: float | None = None
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
