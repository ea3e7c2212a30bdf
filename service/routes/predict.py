"""POST an image, or many, and get verdicts."""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request, Response

from model_store import images
from model_store.score_specs import OFFLINE_ONLY
from service.batcher import Waited
from service.bodies import encoded_images, read_body
from service.engine import Engine, Verdict
from service.errors import ClientLeftError, DeadlineExceededError, InvalidFieldError, InvalidHeaderError
from service.metrics import Stage
from service.routes.documentation import PREDICT_BODY, error_responses
from service.schemas import ModelName, Prediction, PredictReply, ScorePrediction, Timing
from service.state import State, state_of

DEADLINE_HEADER = "x-deadline-ms"
SCORES_PARAMETER = "scores"
router = APIRouter(tags=["predict"])
T = TypeVar("T")

_PREDICT_RESPONSES = error_responses(400, 401, 404, 405, 408, 411, 413, 415, 422, 429, 503, 504)


@router.post(
    "/predict",
    response_model=PredictReply,
    responses=_PREDICT_RESPONSES,
    openapi_extra=PREDICT_BODY,
    summary="Judge images by the default model",
)
async def predict(request: Request) -> Response:
    """Give class, confidence, negative energy, p-value and OOD flag of one image or many."""
    return await _answer(request, state_of(request).models.default())


@router.post(
    "/models/{model}/predict",
    response_model=PredictReply,
    responses=_PREDICT_RESPONSES,
    openapi_extra=PREDICT_BODY,
    summary="Judge images by a named model",
)
async def predict_by(
    request: Request,
    model: Annotated[str, Path(description="`name`, its newest version that is loaded, or `name@version`.")],
) -> Response:
    """Give the verdicts of a named model."""
    return await _answer(request, state_of(request).models.find(model))


async def _answer(request: Request, engine: Engine) -> Response:
    state, settings = state_of(request), state_of(request).settings
    budget_s, all_scores = _budget_s(request, settings.deadline_s), _asks_for_all_scores(request)
    engine.require_room(1)
    with state.pending.lease() as lease:
        body = await read_body(request, lease, max_bytes=settings.max_request_bytes, timeout_s=settings.body_timeout_s)
        begun = time.monotonic()
        content_type = request.headers.get("content-type", "")
        work = _judge(state, engine, body, content_type, begun + budget_s, all_scores)
        waited, decode_s = await _while_connected(request, work)
    seconds: dict[Stage, float] = {
        "decode": decode_s,
        "queue": waited.queue_s,
        "forward": waited.forward_s,
        "total": time.monotonic() - begun,
    }
    engine.count_answered(waited.results, seconds)
    return _reply(request, engine, waited.results, seconds, all_scores)


async def _judge(
    state: State, engine: Engine, body: bytes, content_type: str, deadline: float, all_scores: bool
) -> tuple[Waited[Verdict], float]:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(deadline - begun):
            encoded = await _split(state, body, content_type)
            pixels = await state.decoder.decode(encoded, engine.bundle.manifest.preprocess)
            decode_s = time.monotonic() - begun
            return await engine.predict(pixels, deadline, all_scores=all_scores), decode_s
    except TimeoutError:
        raise DeadlineExceededError(f"{engine.name} had no verdict within the deadline") from None


async def _split(state: State, body: bytes, content_type: str) -> list[bytes]:
    """Take a body apart: what begins like an image is one, whatever its Content-Type; else, off the event loop."""
    if images.looks_like_image(body):
        return [body]
    largest = state.settings.max_images_per_request
    return await state.decoder.run(lambda: encoded_images(body, content_type, max_images=largest))


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; cancel it if the client leaves, so that what it queued is never computed."""
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientLeftError("the client left before the answer")
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _budget_s(request: Request, longest: float) -> float:
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return longest
    try:
        wanted = float(text) / 1000
    except ValueError:
        wanted = math.nan
    if not (math.isfinite(wanted) and wanted > 0):
        raise InvalidHeaderError(f"X-Deadline-Ms is {text[:40]!r}; it must be a number above 0, in milliseconds")
    return min(wanted, longest)


def _asks_for_all_scores(request: Request) -> bool:
    given = request.query_params.getlist(SCORES_PARAMETER)
    if given in ([], ["all"]):
        return bool(given)
    if offline := [name for name in OFFLINE_ONLY if name in given]:
        raise InvalidFieldError(
            f"{offline[0]} is offline only: it takes gradients and a second forward pass. A server gives scores=all, "
            "every score of the bundle from one forward pass"
        )
    raise InvalidFieldError(
        f"scores is {', '.join(given)[:40]!r}; its one value is 'all', every score of the bundle; leave it out for the "
        "verdict alone"
    )


def _reply(
    request: Request, engine: Engine, found: Sequence[Verdict], seconds: dict[Stage, float], all_scores: bool
) -> Response:
    manifest, predictor = engine.bundle.manifest, engine.bundle.predictor
    reply = PredictReply(
        model=ModelName(name=manifest.name, version=manifest.version, sha256=engine.bundle.sha256),
        threshold=float(predictor.threshold),
        verdict=manifest.verdict if all_scores or manifest.verdict != "negative_energy" else None,
        thresholds={name: float(s.threshold) for name, s in predictor.scores.items()} if all_scores else None,
        predictions=[_prediction(verdict, manifest.classes) for verdict in found],
        timing_ms=Timing(**{stage: round(1000 * value, 3) for stage, value in seconds.items()}),
        request_id=request.state.request_id,
    )
    return Response(reply.model_dump_json(exclude_none=True), media_type="application/json")


def _prediction(verdict: Verdict, classes: Sequence[str]) -> Prediction:
    scores = verdict.scores
    shown = None if scores is None else {name: ScorePrediction(**score._asdict()) for name, score in scores.items()}
    return Prediction(class_name=classes[verdict.class_id], **(verdict._asdict() | {"scores": shown}))
