"""OpenTelemetry traces of the requests that are posted, where the standard OTEL_* variables ask for them.

A span a request, under the one that its `traceparent` names, and one for each of its stages, made of the seconds that
the metrics have. The SDK is imported where traces are asked for, and nowhere else.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import model_store
from service.arrival import arrival_of
from service.errors import StartError
from service.metrics import Routes
from service.stages import Stage

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

SERVICE = "energy-ood"
"""The service's name, where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES give none."""
CLOSE_S = 2.0
"""How long, at the end, traces may take to be sent."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_SDK = "opentelemetry.exporter.otlp.proto.http"
_KEY = "ood.trace"
_SPANS: tuple[Stage, ...] = ("decode", "queue", "forward")
"""The stages that follow one another."""


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces.

    Raises:
        StartError: they do, for an exporter or a protocol that is not known here, or the SDK is not installed.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    asked = exporter or any(environment.get(name) for name in _ENDPOINTS)
    if not asked or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if exporter not in ("", "otlp"):
        raise StartError(f"OTEL_TRACES_EXPORTER is {exporter!r}; it must be 'otlp' or 'none'")
    protocol = next(filter(None, map(environment.get, _PROTOCOLS)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise StartError(f"the OTLP protocol is {protocol!r}; it must be {_PROTOCOL!r}")
    if not _is_installed(_SDK):
        raise StartError(
            "OTEL_* variables ask for traces, and OpenTelemetry's exporter is not installed; install "
            "energy-ood[tracing], or unset them"
        )
    return True


def require_usable(environment: Mapping[str, str]) -> None:
    """Refuse variables that no traces could be sent by.

    Raises:
        StartError: as `is_wanted` and `Tracing`.
    """
    if is_wanted(environment):
        Tracing().close()


class Tracing:
    """Where traces go, as the standard variables say, in batches and on a thread of its own."""

    def __init__(self) -> None:
        """Read the variables.

        Raises:
            StartError: one has a value that OpenTelemetry does not take.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": SERVICE}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        try:
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ValueError as err:
            raise StartError(f"OpenTelemetry does not take the OTEL_* variables that are set: {err}") from err
        self.tracer: Tracer = self._provider.get_tracer("energy-ood", model_store.__version__)

    def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for."""
        sending = Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(CLOSE_S)


class RequestTrace:
    """One request's span. `clock` is what makes of a `time.monotonic()`, in nanoseconds, the time of day."""

    def __init__(self, tracer: "Tracer", span: "Span", clock: int) -> None:
        self._tracer = tracer
        self._span = span
        self._clock = clock

    def judged(self, model: str, images: int, begun: float, seconds: Mapping[Stage, float]) -> None:
        """Add who judged how many images, and a span for each stage; `begun` is the first one's `time.monotonic()`."""
        from opentelemetry.trace import set_span_in_context

        self._span.set_attributes({"ood.model": model, "ood.images": images})
        parent = set_span_in_context(self._span)
        at = self._clock + _nanoseconds(begun)
        for stage in _SPANS:
            span = self._tracer.start_span(stage, parent, start_time=at)
            at += _nanoseconds(seconds[stage])
            span.end(at)

    def answering(self, message: Message) -> None:
        """Add what the head of the reply says."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", message["status"])
        for name, value in message["headers"]:
            if name == b"x-request-id":
                self._span.set_attribute("ood.request_id", value.decode("latin-1"))
        if message["status"] >= 500:
            self._span.set_status(StatusCode.ERROR)


class TracedRequests:
    """Gives each request that is posted a span."""

    def __init__(self, app: ASGIApp, tracing: Tracing, templates: Iterable[str]) -> None:
        self._app = app
        self._tracer = tracing.tracer
        self._routes = Routes(templates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        route = self._routes.of(scope["path"])
        begun = arrival_of(HTTPConnection(scope)).whole_at or time.monotonic()
        clock = time.time_ns() - _nanoseconds(time.monotonic())
        with self._tracer.start_as_current_span(
            f"POST {route}",
            extract(dict(HTTPConnection(scope).headers)),
            SpanKind.SERVER,
            {"http.request.method": "POST", "http.route": route},
            start_time=clock + _nanoseconds(begun),
        ) as span:
            trace = scope[_KEY] = RequestTrace(self._tracer, span, clock)
            await self._app(scope, receive, _told(trace.answering, send))


def trace_of(request: Request) -> RequestTrace | None:
    """Return a request's trace, if there is one."""
    found: RequestTrace | None = request.scope.get(_KEY)
    return found


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


def _told(tell: Callable[[Message], None], send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            tell(message)
        await send(message)

    return told


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it lies in
        return False
