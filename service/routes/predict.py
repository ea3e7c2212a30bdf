"""POST an image, or many, and get verdicts."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic_core import to_json

from model_store import images
from model_store.score_specs import OFFLINE_ONLY
from service import arrays
from service.bodies import Lease, encoded_images
from service.engine_protocol import Engine, Verdict
from service.errors import InvalidFieldError
from service.judging import Judged, Question, judge
from service.routes.direct import DirectRoute
from service.routes.documentation import PREDICT_BODY, error_responses
from service.schemas import PredictReply
from service.state import State, state_of

SCORES_PARAMETER = "scores"
router = APIRouter(tags=["predict"], route_class=DirectRoute)

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
    all_scores = _asks_for_all_scores(request)

    async def read(body: bytes, _: Lease) -> Question:
        content_type = request.headers.get("content-type", "")
        return await _question(state_of(request), engine, body, content_type, all_scores=all_scores)

    return _reply(request, engine, await judge(request, engine, read))


async def _question(state: State, engine: Engine, body: bytes, content_type: str, *, all_scores: bool) -> Question:
    """Make pixels of a body, which is known by its first bytes before its Content-Type."""
    spec, most = engine.bundle.manifest.preprocess, state.settings.max_images_per_request
    if images.looks_like_image(body):
        return Question(await state.decoder.decode([body], spec), [body], all_scores)
    if arrays.looks_like_array(body) or content_type.partition(";")[0].strip().lower() == arrays.MEDIA_TYPE:
        return Question(list(arrays.read_array(body, spec, max_images=most)), all_scores=all_scores)
    work = partial(encoded_images, body, content_type, max_images=most)
    encoded = await state.decoder.run_by_size(work, len(body))
    engine.require_room(len(encoded))
    return Question(await state.decoder.decode(encoded, spec), encoded if state.capture else (), all_scores)


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


def _reply(request: Request, engine: Engine, judged: Judged[Question]) -> Response:
    manifest, all_scores = engine.bundle.manifest, judged.question.all_scores
    reply: dict[str, Any] = {
        "model": {"name": manifest.name, "version": manifest.version, "sha256": engine.bundle.sha256},
        "threshold": manifest.calibrations[manifest.verdict].threshold,
    }
    if all_scores or manifest.verdict != "negative_energy":
        reply["verdict"] = manifest.verdict
    if all_scores:
        reply["thresholds"] = {name: manifest.calibrations[name].threshold for name in manifest.score_names}
    reply["predictions"] = [_prediction(verdict, manifest.classes) for verdict in judged.verdicts]
    reply["timing_ms"] = {stage: round(1000 * value, 3) for stage, value in judged.seconds.items()}
    reply["request_id"] = request.state.request_id
    return Response(to_json(reply), media_type="application/json")


def _prediction(verdict: Verdict, classes: Sequence[str]) -> dict[str, Any]:
    prediction: dict[str, Any] = {
        "class_id": verdict.class_id,
        "class_name": classes[verdict.class_id],
        "confidence": verdict.confidence,
        "negative_energy": verdict.negative_energy,
        "p_value": verdict.p_value,
        "is_ood": verdict.is_ood,
    }
    if verdict.scores is not None:
        prediction["scores"] = {name: score._asdict() for name, score in verdict.scores.items()}
    return prediction
