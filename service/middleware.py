"""Around every request: its id, its token, one log line, one count, and an answer whatever happens."""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.errors import ImageError
from service.errors import (
    BadImageError,
    BodyTimeoutError,
    InvalidFieldError,
    MethodNotAllowedError,
    NotReadyError,
    QueueFullError,
    ServiceError,
    UnauthorizedError,
    UnknownRouteError,
    answer_for,
)
from service.open_inference import errors as open_inference
from service.schemas import ErrorBody, ErrorReply
from service.settings import Settings
from service.state import State

log = logging.getLogger("service.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestScope:
    """Gives each request an id, refuses it without its token, answers what went wrong, counts and logs it.

    No exception leaves it.
    """

    def __init__(self, app: ASGIApp, state: Callable[[], State]) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, state, request = time.monotonic(), self._state(), Request(scope, receive)
        request.state.request_id = request_id_of(request.headers)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request.state.request_id.encode())]
                if state.draining:  # keep-alive clients must look for another server
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            require_token(request, state.settings)
            await self._app(scope, receive, send_marked)
        except asyncio.CancelledError:  # the time for draining is up
            if status == 0:
                stopped = NotReadyError("the server stopped before the answer")
                await error_reply(request, stopped)(scope, receive, send_marked)
        except Exception as err:
            if not isinstance(_ours(err), ServiceError):
                log.exception("request failed", extra={"request_id": request.state.request_id})
            if status == 0:
                await error_reply(request, err)(scope, receive, send_marked)
        self._count(request, status, time.monotonic() - begun)

    def _count(self, request: Request, status: int, seconds: float) -> None:
        code = getattr(request.state, "error_code", None)
        self._state().metrics.count_request(request.scope["path"], status, code)
        log.info(
            "request",
            extra={
                "request_id": request.state.request_id,
                "method": request.method,
                "path": request.scope["path"][:200],
                "status": status,
                "code": code,
                "ms": round(1000 * seconds, 3),
            },
        )


def require_token(request: Request, settings: Settings) -> None:
    """Let a request pass that has one of the server's bearer tokens, or needs none.

    Raises:
        UnauthorizedError: it has none of them.
    """
    if not settings.api_keys or _is_public(request, settings):
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip(" \t").encode("latin-1")  # as headers are decoded: back to the bytes that came
    # Every key is compared, each in constant time, so that the time taken tells nothing of them.
    matches = [hmac.compare_digest(given, key.get_secret_value().encode()) for key in settings.api_keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise UnauthorizedError("send one of the server's keys as `Authorization: Bearer <key>`")


def error_reply(request: Request, error: Exception) -> Response:
    """Return the one answer to an error, by the table in `service.errors`."""
    index = error.index if isinstance(error, BadImageError) else None
    cause = error.cause if isinstance(error, BadImageError) else _ours(error)
    answer = answer_for(cause)
    request.state.error_code = answer.code
    message = str(cause) if isinstance(cause, ServiceError | ImageError) else answer.meaning
    headers = _headers(cause, error)
    if open_inference.speaks(request.scope["path"]):
        content, status = open_inference.error_body(message, index), open_inference.status_of(answer)
        return Response(content, status, headers, media_type="application/json")
    body = ErrorReply(
        error=ErrorBody(code=answer.code, message=message, request_id=request.state.request_id, index=index)
    )
    return Response(body.model_dump_json(exclude_none=True), answer.status, headers, media_type="application/json")


def _ours(error: Exception) -> Exception:
    """Translate what the framework raises."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return InvalidFieldError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowedError(f"this path takes {(error.headers or {}).get('Allow', 'another method')}")
    if isinstance(error, HTTPException) and error.status_code == 404:
        return UnknownRouteError("there is no such path; /docs shows those that there are")
    return error


def _headers(cause: Exception, error: Exception) -> dict[str, str]:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(cause, QueueFullError):
        headers["Retry-After"] = str(cause.retry_after_s)
    elif answer_for(cause).status == 503:
        headers["Retry-After"] = "5"
    elif isinstance(cause, BodyTimeoutError):
        headers["Connection"] = "close"  # the rest of the body may never come
    elif isinstance(cause, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _is_public(request: Request, settings: Settings) -> bool:
    path = request.scope["path"]
    if path == "/metrics":
        return settings.public_metrics
    if path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        return settings.public_health
    # A browser can't send a token for pages. Those that document the interface hold no image of a bundle then; the one
    # that judges images asks for the token itself.
    return path in ("/", "/docs", "/openapi.json") or path.startswith(("/web/", "/static-offline-docs/"))


def request_id_of(headers: Headers) -> str:
    """Return the id that a client gave its request, if it is fit to be one, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
