"""The payloads of frames. Numbers in fixed structs, pixels and logits as they lie in memory, the rest JSON."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model_store.manifest import Manifest
from model_store.score_specs import ScoreName
from service.batcher import Waited
from service.engine_protocol import Health, Pixels, ScoreVerdict, Verdict
from service.errors import (
    DeadlineExceededError,
    EngineDiedError,
    NotReadyError,
    QueueFullError,
    ServiceError,
)

_ASK = struct.Struct("<H??Id")
"""Model, every score wanted, logits wanted, images, deadline. Pixels follow, image after image.

The deadline is a `time.monotonic()`: all processes of a machine read the same clock, so what a frame waits in a socket
counts.
"""
_STATUS = struct.Struct("<BII")
"""Health, images that wait, seconds until they should be done; so for every model."""
_VERDICTS = struct.Struct("<IddII??")
"""Images, seconds queued, seconds in the network, images that wait, seconds until they should be done, whether scores
and logits follow the verdicts."""
_VERDICT = struct.Struct("<iddd?")
_SCORE = struct.Struct("<dd?")
_REFUSAL = struct.Struct("<BI")
"""Which error, seconds until a retry makes sense; its message follows."""

_HEALTHS: tuple[Health, ...] = get_args(Health)
_REFUSALS: tuple[type[ServiceError], ...] = (QueueFullError, NotReadyError, EngineDiedError, DeadlineExceededError)


class Shape(NamedTuple):
    """What the payloads of one model are cut by: an image's pixels (H, W, 3), its classes and its scores in order."""

    pixels: tuple[int, int, int]
    classes: int
    scores: tuple[ScoreName, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> "Shape":
        """Return that of a bundle."""
        spec = manifest.preprocess
        return cls((spec.height, spec.width, 3), len(manifest.classes), manifest.score_names)


class Asked(NamedTuple):
    """What a worker asks: uint8 (N, H, W, 3) of a model, by its place in the WELCOME."""

    model: int
    all_scores: bool
    logits: bool
    deadline: float
    pixels: NDArray[np.uint8]


class Status(NamedTuple):
    """How a model does."""

    health: Health
    depth: int
    retry_after_s: int


class Answered(NamedTuple):
    """Verdicts, and how many images wait behind them."""

    waited: Waited[Verdict]
    depth: int
    retry_after_s: int


class WelcomedModel(BaseModel):
    """A model as the engine's process has it; one that could not be loaded has a reason and no manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: str
    reason: str | None = None
    manifest: Manifest | None = None
    sha256: str = ""
    folder: Path = Path()
    calibration_counts: dict[ScoreName, tuple[int, ...]] = Field(default_factory=dict)
    runtime: str = ""


class Welcome(BaseModel):
    """The models, in the order of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: list[WelcomedModel]


def pack_ask(
    model: int, images: Sequence[Pixels], deadline: float, *, all_scores: bool, logits: bool
) -> list[bytes | memoryview]:
    """Return the parts of an ASK, the pixels uncopied where they lie in one piece."""
    head = _ASK.pack(model, all_scores, logits, len(images), deadline)
    return [head, *(np.ascontiguousarray(image).data.cast("B") for image in images)]


def unpack_ask(payload: bytes, shapes: Mapping[int, Shape]) -> Asked:
    """Read an ASK; the pixels are a view on it."""
    model, all_scores, logits, count, deadline = _ASK.unpack_from(payload)
    pixels = np.frombuffer(payload, np.uint8, offset=_ASK.size).reshape(count, *shapes[model].pixels)
    return Asked(model, all_scores, logits, deadline, pixels)


def pack_statuses(statuses: Sequence[Status]) -> bytes:
    """Return the payload of a STATUS."""
    return b"".join(_STATUS.pack(_HEALTHS.index(s.health), s.depth, s.retry_after_s) for s in statuses)


def unpack_statuses(payload: bytes) -> list[Status]:
    """Read a STATUS."""
    return [Status(_HEALTHS[health], depth, retry) for health, depth, retry in _STATUS.iter_unpack(payload)]


def pack_answer(answered: Answered, shape: Shape) -> list[bytes]:
    """Return the parts of VERDICTS; scores and logits are there for all images or none, as one request asks."""
    waited, first = answered.waited, answered.waited.results[0]
    head = (len(waited.results), waited.queue_s, waited.forward_s, answered.depth, answered.retry_after_s)
    parts = [_VERDICTS.pack(*head, first.scores is not None, first.logits is not None)]
    parts += [_VERDICT.pack(*verdict[:5]) for verdict in waited.results]
    for verdict in waited.results:
        if verdict.scores is not None:
            parts += [_SCORE.pack(*verdict.scores[name]) for name in shape.scores]
    parts += [np.asarray(v.logits, "<f4").tobytes() for v in waited.results if v.logits is not None]
    return parts


def unpack_answer(payload: bytes, shape: Shape) -> Answered:
    """Read VERDICTS."""
    count, queue_s, forward_s, depth, retry_after_s, has_scores, has_logits = _VERDICTS.unpack_from(payload)
    at = _VERDICTS.size + count * _VERDICT.size
    found = [Verdict(*row) for row in _VERDICT.iter_unpack(payload[_VERDICTS.size : at])]
    if has_scores:
        end = at + count * len(shape.scores) * _SCORE.size
        rows = [ScoreVerdict(*row) for row in _SCORE.iter_unpack(payload[at:end])]
        step, at = len(shape.scores), end
        found = [
            verdict._replace(scores=dict(zip(shape.scores, rows[row * step : (row + 1) * step], strict=True)))
            for row, verdict in enumerate(found)
        ]
    if has_logits:
        logits = np.frombuffer(payload, "<f4", offset=at).reshape(count, shape.classes)
        found = [verdict._replace(logits=row) for verdict, row in zip(found, logits, strict=True)]
    return Answered(Waited(found, queue_s, forward_s), depth, retry_after_s)


def pack_refusal(error: Exception) -> bytes:
    """Return the payload of a REFUSAL; what no one foresaw goes by its type's name alone."""
    code = next((code for code, kind in enumerate(_REFUSALS) if type(error) is kind), len(_REFUSALS))
    text = str(error) if code < len(_REFUSALS) else type(error).__name__
    return _REFUSAL.pack(code, error.retry_after_s if isinstance(error, QueueFullError) else 0) + text.encode()


def unpack_refusal(payload: bytes) -> Exception:
    """Read a REFUSAL: the error to raise."""
    code, retry_after_s = _REFUSAL.unpack_from(payload)
    message = payload[_REFUSAL.size :].decode()
    if code == len(_REFUSALS):
        return RuntimeError(f"the engine's process raised {message}; its log has more")
    kind = _REFUSALS[code]
    return QueueFullError(message, retry_after_s) if kind is QueueFullError else kind(message)
