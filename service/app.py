"""The application: one server's state, routes and layers, made from its settings."""

import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import model_store
from service.admission import make_admission
from service.bodies import PendingBytes
from service.capture.capture import make_capture
from service.cors import cors
from service.decoding import Decoder
from service.engine_protocol import Engine
from service.errors import ServiceError
from service.metrics import Metrics
from service.middleware import RequestScope, error_reply
from service.open_inference.errors import speaks
from service.open_inference.model import BYTES_SUFFIX
from service.routes import health, models, open_inference, page, predict, watch
from service.routes.direct import DirectRoutes
from service.settings import Settings
from service.state import State
from service.tracing import TracedRequests, Tracing, is_wanted
from service.watching.state import kept

ROUTERS = (predict.router, open_inference.router, models.router, watch.router, health.router, page.router)
DESCRIPTION = (
    "Image classifiers that know when they don't know: every prediction comes with its negative energy, a p-value and "
    "an out-of-distribution flag whose rate of false alarms is a stated number."
)


def create_app(settings: Settings) -> FastAPI:
    """Load the bundles of the settings and return the application that serves them.

    Raises:
        StartError: none of the bundles could be loaded, or the state can't be kept.
        CaptureError: images are to be captured, and what that needs is not installed.
    """
    # HTTP workers, which load nothing, do without the network libraries.
    from service.models import load_models, watched

    metrics = Metrics(route_templates(), settings.watch_options)
    state = State(
        settings=settings,
        metrics=metrics,
        models=load_models(settings, metrics),
        decoder=Decoder(settings.decode_threads, settings.decode_limits),
        pending=PendingBytes(settings.max_pending_bytes),
        admission=make_admission(settings),
        capture=make_capture(settings, metrics.capture),
    )
    metrics.pending_bytes.set_function(lambda: state.pending.held)
    metrics.waiting_requests.set_function(lambda: state.admission.in_line)
    metrics.http_workers.set(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with kept(settings.state_dir, watched(state.models, metrics)):
            if state.capture:
                state.capture.start()
            yield
            state.models.close()
            state.decoder.close()
            if state.capture:
                state.capture.close()

    return make_app(state, lifespan)


def route_templates() -> list[str]:
    """Return every path that the application has, as in `/models/{model}/predict`."""
    return [str(getattr(route, "path", "")) for router in ROUTERS for route in router.routes]


def make_app(state: State, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """Return the application that serves a state, whose parts `lifespan` starts and ends.

    Raises:
        StartError: OTEL_* variables ask for traces, and they can't be had.
    """
    tracing = Tracing() if is_wanted(os.environ) else None

    app: FastAPI = FastAPIOffline(
        title="energy-ood",
        version=model_store.__version__,
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_and_traces(lifespan, tracing) if tracing else lifespan,
        exception_handlers=dict.fromkeys((ServiceError, HTTPException, RequestValidationError), _answer_error),
    )
    app.state.service = state
    for router in ROUTERS:
        app.include_router(router)
    ours = app.build_middleware_stack
    app.build_middleware_stack = lambda: _layers(ours(), state, tracing)  # type: ignore[method-assign]
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _layers(app: ASGIApp, state: State, tracing: Tracing | None) -> ASGIApp:
    """Put our layers around FastAPI's own, through which no request goes then that it does not route itself."""
    app = DirectRoutes(app, ROUTERS)
    app = RequestScope(app, lambda: state)
    if tracing:
        app = TracedRequests(app, tracing, route_templates())
    app = open_inference.WithoutSlash(app)
    # The outermost, so that pages may read errors and preflights need no token.
    return cors(app, state.settings) or app


def _and_traces(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]], tracing: Tracing
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan at whose end traces are sent."""

    @asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            yield
        await asyncio.to_thread(tracing.close)

    return both


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_reply(request, error)


def _example_image(engine: Engine, settings: Settings) -> bytes:
    """Return a golden image; where tokens are needed, a white one, since the schema is for all to read."""
    manifest = engine.bundle.manifest
    if not settings.api_keys:
        return (engine.bundle.folder / manifest.golden[0].file).read_bytes()
    file = io.BytesIO()
    Image.new("RGB", (manifest.preprocess.width, manifest.preprocess.height), "white").save(file, "PNG")
    return file.getvalue()


def _examples(path: str, engine: Engine, image: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a body that a path takes, and the parts of the path that are open."""
    manifest = engine.bundle.manifest
    if speaks(path):
        return open_inference.infer_example(image), {
            "model": manifest.name + BYTES_SUFFIX,
            "version": str(manifest.version),
        }
    return {"images": [image]}, {"model": engine.name}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the schema, its examples ready to be sent."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    state: State = app.state.service
    engine = state.models.engines[0]
    image = base64.b64encode(_example_image(engine, state.settings)).decode()
    for path, operations in schema["paths"].items():
        body, named = _examples(path, engine, image)
        if "requestBody" in operations.get("post", {}):
            operations["post"]["requestBody"]["content"]["application/json"]["example"] = body
        for parameter in (p for operation in operations.values() for p in operation.get("parameters", [])):
            if parameter["in"] == "path":
                parameter["example"] = named[parameter["name"]]
        if speaks(path):  # FastAPI announces 422 wherever a path has parts; there it is 400
            for operation in operations.values():
                operation["responses"].pop("422", None)
    if state.settings.api_keys:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
    app.openapi_schema = schema
    return schema
