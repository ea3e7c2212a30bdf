"""The Open Inference Protocol v2 under /v2, for clients of KServe and Triton."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.types import ASGIApp, Receive, Scope, Send

import model_store
from service.bodies import Lease, content_encoding, read_body
from service.engine_protocol import Pixels
from service.errors import ANSWERS, InvalidHeaderError, InvalidTensorError, MalformedJsonError
from service.inflate import ENCODINGS, inflate
from service.judging import Question, judge
from service.open_inference import model as served
from service.open_inference.errors import ROOT, status_of, without_slash
from service.open_inference.model import BYTES_SUFFIX, INPUT, ServedModel
from service.open_inference.reply import JSON_LENGTH_HEADER, reply
from service.open_inference.request import ParsedRequest, parse
from service.open_inference.schemas import (
    IndexEntry,
    InferReply,
    InferRequest,
    LiveReply,
    ModelConfig,
    ModelMetadata,
    ModelReadyReply,
    ProtocolError,
    ReadyReply,
    ServerMetadata,
)
from service.routes.direct import DirectRoute
from service.routes.health import why_not_live, why_not_ready
from service.state import State, state_of

EXTENSIONS = ["binary_tensor_data", "model_configuration"]
_MAX_INDEX_BYTES = 1000
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
router = APIRouter(tags=["Open Inference Protocol v2"])

Model = Annotated[str, Path(description=f"`NAME` takes pixels, `NAME{BYTES_SUFFIX}` encoded image files.")]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Version = Annotated[str, Path(description="A version that is served.")]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "model": ProtocolError,
            "description": " ".join(a.meaning for a in ANSWERS.values() if status_of(a) == status),
        }
        for status in statuses
    }


_ASKED_FOR = _errors(401, 404, 503)
INFER: dict[str, Any] = {
    "responses": _errors(400, 401, 404, 405, 408, 411, 413, 429, 503, 504),
    "response_model": InferReply,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON, and behind it the input where it comes in binary; gzip or deflate at will.",
            "content": {
                "application/json": {"schema": InferRequest.model_json_schema()},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "parameters": [
            {
                "name": JSON_LENGTH_HEADER,
                "in": "header",
                "required": False,
                "description": "Bytes of the body that are JSON, where the input follows them in binary.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
    },
}


@router.get(ROOT, responses=_errors(401), summary="Describe the server")
async def server() -> ServerMetadata:
    """Name the server, its version and the extensions that it has."""
    return ServerMetadata(name="energy-ood", version=model_store.__version__, extensions=EXTENSIONS)


@router.get("/v2/health/live", response_model=LiveReply, responses=_errors(401, 503), summary="Is it alive?")
async def live(request: Request) -> Response:
    """Say whether every engine works, as /healthz does."""
    fault = why_not_live(state_of(request))
    return _unavailable(fault) if fault else _json(LiveReply(live=True))


@router.get(
    "/v2/health/ready", response_model=ReadyReply, responses=_errors(401, 503), summary="Does it take requests?"
)
async def ready(request: Request) -> Response:
    """Say whether requests should come here, as /readyz does."""
    fault = why_not_ready(state_of(request))
    return _unavailable(fault) if fault else _json(ReadyReply(ready=True, live=True))


async def _newest(request: Request, model: Model) -> None:
    request.state.served = served.find(state_of(request).models, model, None)


async def _of_version(request: Request, model: Model, version: Version) -> None:
    request.state.served = served.find(state_of(request).models, model, version)


def _of_model(method: str, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Serve a path below a model's own, which is there without and with a version."""

    def serve(endpoint: Endpoint) -> Endpoint:
        for prefix, named in (
            ("/v2/models/{model}", _newest),
            ("/v2/models/{model}/versions/{version}", _of_version),
        ):
            router.add_api_route(prefix + path, endpoint, methods=[method], dependencies=[Depends(named)], **options)
        return endpoint

    return serve


def _asked(request: Request) -> ServedModel:
    """Return the model that the path names."""
    found: ServedModel = request.state.served
    return found


@_of_model("GET", "", responses=_ASKED_FOR, summary="Describe a model")
async def metadata(request: Request) -> ModelMetadata:
    """Show versions, inputs and outputs."""
    return served.metadata(state_of(request).models, _asked(request))


@_of_model("GET", "/ready", response_model=ModelReadyReply, responses=_ASKED_FOR, summary="Does a model answer?")
async def model_ready(request: Request) -> Response:
    """Say whether a model takes requests."""
    state, model = state_of(request), _asked(request)
    if (health := model.engine.health) != "ready" or state.draining:
        fault = "the server is stopping" if health == "ready" else f"the engine of {model.name} is {health}"
        return _unavailable(fault)
    return _json(ModelReadyReply(name=model.name, ready=True))


@_of_model(
    "GET",
    "/config",
    response_model_exclude_none=True,
    responses=_ASKED_FOR,
    summary="Describe a model in Triton's terms",
)
async def config(request: Request) -> ModelConfig:
    """Show the part of Triton's model configuration that holds here."""
    return served.config(_asked(request), state_of(request).settings.max_images_per_request)


async def infer(request: Request, model: Model) -> Response:
    """Give label, logits, negative energy and OOD flag of a tensor of images."""
    return await _infer(request, served.find(state_of(request).models, model, None))


async def infer_by_version(request: Request, model: Model, version: Version) -> Response:
    """Give label, logits, negative energy and OOD flag of a tensor of images."""
    return await _infer(request, served.find(state_of(request).models, model, version))


for _path, _endpoint in (
    ("/v2/models/{model}/infer", infer),
    ("/v2/models/{model}/versions/{version}/infer", infer_by_version),
):
    router.add_api_route(
        _path,
        _endpoint,
        methods=["POST"],
        name="infer",
        summary="Judge images",
        route_class_override=DirectRoute,
        **INFER,
    )


@router.post("/v2/repository/index", responses=_errors(400, 401, 413), summary="List the models")
async def index(request: Request) -> list[IndexEntry]:
    """List every model under both of its names; `{"ready": true}` leaves out those that are not ready."""
    return served.index(state_of(request).models, ready_only=await _wants_ready_only(request))


def infer_example(image: str) -> dict[str, Any]:
    """Return a request of one file, in base64, to `NAME-bytes`."""
    tensor = {"name": INPUT, "shape": [1], "datatype": "BYTES"}
    return {"inputs": [tensor | {"parameters": {"content_type": "base64"}, "data": [image]}]}


class WithoutSlash:
    """Takes one slash off the end of the protocol's paths, with which some clients send them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            scope = {**scope, "path": without_slash(scope["path"])}
        await self._app(scope, receive, send)


@dataclass(frozen=True, kw_only=True)
class _Asked(Question):
    """A question, and the request that it was made of."""

    request: ParsedRequest


async def _infer(request: Request, model: ServedModel) -> Response:
    state, json_bytes = state_of(request), _json_bytes(request)

    async def read(body: bytes, lease: Lease) -> _Asked:
        parsed = await _parsed(state, model, await _inflated(request, body, lease), json_bytes)
        wants_logits = any(output.name == "LOGITS" for output in parsed.outputs)
        sent = parsed.images if state.capture and isinstance(parsed.images, list) else ()
        return _Asked(await _pixels(state, model, parsed), sent, logits=wants_logits, request=parsed)

    judged = await judge(request, model.engine, read, encodings=ENCODINGS)
    return reply(model, judged.question.request, judged.verdicts)


async def _inflated(request: Request, body: bytes, lease: Lease) -> bytes:
    state, encoding = state_of(request), content_encoding(request)
    if encoding not in ENCODINGS:
        return body
    return await inflate(
        body, encoding, max_bytes=state.settings.max_request_bytes, run=state.decoder.run, grow=lease.grow
    )


async def _parsed(state: State, model: ServedModel, body: bytes, json_bytes: int | None) -> ParsedRequest:
    work = partial(parse, body, json_bytes, model.input, max_images=state.settings.max_images_per_request)
    return await state.decoder.run_by_size(work, len(body) if json_bytes is None else json_bytes)


async def _pixels(state: State, model: ServedModel, parsed: ParsedRequest) -> Sequence[Pixels]:
    if isinstance(parsed.images, list):
        model.engine.require_room(len(parsed.images))
        return await state.decoder.decode(parsed.images, model.engine.bundle.manifest.preprocess)
    return list(parsed.images)


def _json_bytes(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH_HEADER)
    if text is None:
        return None
    if not _LENGTH.fullmatch(text):
        raise InvalidHeaderError(f"{JSON_LENGTH_HEADER} is {text[:40]!r}; it must be an integer, 0 or more")
    return int(text)


async def _wants_ready_only(request: Request) -> bool:
    state = state_of(request)
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return False
    with state.pending.lease() as lease:
        body = await read_body(request, lease, max_bytes=_MAX_INDEX_BYTES, timeout_s=state.settings.body_timeout_s)
    try:
        asked = from_json(body)
    except ValueError as err:
        raise MalformedJsonError(f"the request is not JSON: {str(err)[:120]}") from None
    if not isinstance(asked, dict) or asked.keys() - {"ready"} or not isinstance(asked.get("ready", False), bool):
        raise InvalidTensorError('the request must be {"ready": true}, {"ready": false} or {}')
    return bool(asked.get("ready", False))


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def _unavailable(reason: str) -> Response:
    return Response(ProtocolError(error=reason).model_dump_json(), 503, media_type="application/json")
